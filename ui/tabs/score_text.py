"""“Score this text”: what each criterion gives a typed completion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from grpo_core.config import RubricConfig
from grpo_core.errors import InvalidConfig
from grpo_core.rubric import Rubric, build_rubric
from grpo_core.tasks import TASKS, Task, load_task, train_prompts
from grpo_core.types import Completion
from ui.components import form
from ui.render.text import esc, format_number, is_number, plain

MAX_CHARS = 20_000
# These cost money or seconds: only “Score as group” runs them, never every key.
ON_DEMAND = ("judge", "reward_model")
# In place of a tokenizer, which the page does not load: each tag, word, digit and sign counts one.
TOKENS = re.compile(r"</?\w+>|\d|[^\W\d]+|[^\w\s]")

_NO_TASK = '<p class="help">Choose a task first: its first prompt has the right answer.</p>'
_BAD_RUBRIC = '<p class="help">Fix the rubric first.</p>'


def score_text(text: Any, fields: Sequence[Any]) -> str:
    """The scores and the reward of a text, as a completion of the task's first prompt."""
    if not isinstance(text, str) or not text:
        return ""
    task = _task_of(fields)
    if task is None:
        return _NO_TASK
    flat = dict(zip(form.NAMES, fields, strict=True))
    criteria, problems = form.read_rows(flat[form.CRITERIA])
    try:
        config = RubricConfig.model_validate({"name": "custom", "criteria": tuple(criteria)})
        rubric = build_rubric(config)
    except (InvalidConfig, ValueError):
        return _BAD_RUBRIC
    if problems:
        return _BAD_RUBRIC
    prompt = train_prompts(task, 0, 1, 1)[0]
    text = text[:MAX_CHARS]
    completion = Completion(text, "stop", len(TOKENS.findall(text)))
    skipped = [c.name for c in rubric.criteria if c.check in ON_DEMAND]
    scored_now = Rubric(tuple(row for row in rubric.rows if row[0].name not in skipped))
    scores, reward = scored_now.score(completion, prompt)
    rows = "".join(
        f'<tr><th scope="row">{esc(c.name)}</th>'
        f"<td>{'not while you type' if c.name in skipped else _score(scores[c.name], 2)}</td>"
        f'<td class="by">×{plain(c.weight)}</td></tr>'
        for c in rubric.criteria
    )
    guess = ""
    if any(c.check == "length" for c in rubric.criteria):
        guess = " Its length is a guess: the model's tokenizer is not loaded."
    return (
        f'<table class="scored"><tbody>{rows}<tr class="total"><th scope="row">reward</th>'
        f'<td colspan="2"><b>{_score(reward, 3)}</b></td></tr></tbody></table>'
        f'<p class="help">As a completion of “{esc(prompt.text)}”, '
        f"whose answer is {esc(prompt.answer)}.{guess}</p>"
    )


def _task_of(fields: Sequence[Any]) -> Task | None:
    """The chosen task; None if its prompts cannot be read."""
    config, _ = form.read(fields)
    # A built-in task works while other fields are still wrong.
    name = str(dict(zip(form.NAMES, fields, strict=True))["task.name"])
    if config is None or name in TASKS:
        return TASKS.get(name)
    try:
        return load_task(config.task)
    except InvalidConfig:
        return None


def _score(value: float | None, digits: int) -> str:
    return format_number(value, digits) if is_number(value) else "could not be scored"
