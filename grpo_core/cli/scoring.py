"""The command score: a rubric's scores of texts that somebody has, without training."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from grpo_core.analysis.text import format_number
from grpo_core.cli.request import assignment, build_config
from grpo_core.cli.terminal import AddCommand, add_config_options, printable
from grpo_core.config import PRESETS, RunConfig, TaskConfig
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.types import Completion, Prompt

if TYPE_CHECKING:
    from grpo_core.rubric import Rubric

COMPLETION = "completion"
# These checks read how many tokens a completion has, so that a tokenizer is needed.
COUNTING = ("length", "soft_overlong", "cosine_length", "python")
_HINT = 'Write one object a line: {"prompt": …, "completion": …, "answer": …}.'


def add_commands(command: AddCommand) -> None:
    score = command(
        "score",
        score_command,
        "Score completions of a JSONL file by a rubric, as training would.",
        epilog="Each line of the file is one object with prompt and completion (text or chat "
        "messages),\nanswer, and any columns that plug-ins and templates use. With --json, each "
        "line of the output\nis {scores: {criterion: number or null}, reward, why: {criterion: "
        "reason of the null}}.",
    )
    score.add_argument("file", metavar="FILE.jsonl", help="the rows; - for standard input")
    score.add_argument("--preset", help=f"an algorithm: {', '.join(PRESETS)}")
    add_config_options(score, ', e.g. rubric.name="multiple choice"')
    score.add_argument(
        "--rewards",
        metavar="FILE.py",
        action="append",
        default=[],
        help="a plug-in file with reward functions; its checks are named file.function",
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the file."""

    line: int
    prompt: Prompt
    text: str  # of the completion


@dataclass(frozen=True, slots=True)
class Result:
    """The scores of one row. why: criterion -> reason of a null."""

    scores: dict[str, float | None]
    reward: float | None
    why: dict[str, str]


def score_command(arguments: argparse.Namespace) -> int:
    from grpo_core.rubric import add_plugins, build_rubric

    if arguments.rewards:
        add_plugins(arguments.rewards)
    config = build_config(arguments.config, arguments.preset, arguments.set)
    rubric = build_rubric(config.rubric)
    rows = read_rows(arguments.file, _task(config, arguments))
    tokens_in = _token_counter(config, rubric)
    size = config.train.prompts_per_step * config.train.group_size
    results: list[Result] = []
    for start in range(0, len(rows), size):  # what one call of a check would get in training
        step = rows[start : start + size]
        results += score_rows(rubric, step, tokens_in)
        if arguments.json:
            for result in results[-len(step) :]:
                values = {"scores": result.scores, "reward": result.reward, "why": result.why}
                print(json.dumps(values), flush=True)
    if not arguments.json:
        _print_table(rows, results)
    return 0


def _task(config: RunConfig, arguments: argparse.Namespace) -> TaskConfig:
    """The task whose grader `accuracy` uses: that of a file, unless the user names one."""
    named = arguments.config or any(assignment(a)[0] == "task.name" for a in arguments.set)
    return config.task if named else config.task.model_copy(update={"name": "file"})


# ---- rows ----------------------------------------------------------------------------------------


def read_rows(file: str, task: TaskConfig) -> list[Row]:
    """The rows of a file, or of standard input for "-". Raises StudioError naming the line."""
    name = "standard input" if file == "-" else file
    try:
        with ExitStack() as stack:
            stream = sys.stdin
            if file != "-":
                stream = stack.enter_context(open(file, encoding="utf-8-sig"))
            numbered = list(_objects(name, stream))
    except OSError as error:
        raise StudioError(f"{name!r} cannot be read: {error.strerror}. Check the path.") from None
    except UnicodeDecodeError:
        raise StudioError(f"{name!r} is not UTF-8 text. Save it as UTF-8.") from None
    if not numbered:
        raise StudioError(f"{name!r} has no rows. {_HINT}")
    return _read(name, numbered, task)


def _objects(name: str, stream: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    from grpo_core.tasks.text_rows import object_rows

    try:
        yield from object_rows(name, stream)
    except InvalidConfig as error:
        [problem] = error.problems
        raise StudioError(f"{name!r}: {problem.problem}. {problem.hint}") from None


def _read(name: str, numbered: Sequence[tuple[int, dict[str, Any]]], task: TaskConfig) -> list[Row]:
    from grpo_core.tasks.cells import BadCell
    from grpo_core.tasks.columns import Reading, choose_columns, row_to_prompt

    texts, without = [], []
    for line, row in numbered:
        try:
            texts.append(_completion(row))
        except BadCell as error:
            raise StudioError(f"{name!r}, line {line}: {error}. {_HINT}") from None
        without.append({k: v for k, v in row.items() if k != COMPLETION})
    columns = choose_columns(without, task.prompt_column, task.answer_column)
    # The answers of a task that makes its own prompts stand as they are.
    verbatim = task.answers == "as they are" or task.name != "file"
    reading = Reading(task.template, verbatim, {name for row in without for name in row})
    rows = []
    for (line, _), row, text in zip(numbered, without, texts, strict=True):
        try:
            found = row_to_prompt(row, columns, reading)
        except BadCell as error:
            raise StudioError(f"{name!r}, line {line}: {error}. {_HINT}") from None
        if found is None:
            raise StudioError(
                f"{name!r}, line {line}: the column {columns.prompt!r} is empty. {_HINT}"
            )
        system = [{"role": "system", "content": task.system}] if task.system else []
        meta = {
            "before": [*system, *found.before],
            "prompt_column": columns.prompt,
            "answer_column": columns.answer,
            "columns": found.meta,
            "chat": found.is_chat,
        }
        prompt = Prompt(str(line), _whole(found.text), _whole(found.answer), task.name, meta)
        rows.append(Row(line, prompt, _whole(text)))
    return rows


def _whole(text: str) -> str:
    """The text without half characters, which JSON escapes can hold and no terminal can print."""
    return text.encode("utf-8", "replace").decode()


def _completion(row: dict[str, Any]) -> str:
    """The text of a completion: text, or the last message of a chat. Raises BadCell."""
    from grpo_core.tasks.cells import BadCell
    from grpo_core.tasks.chat import read_chat

    value = row.get(COMPLETION)
    if isinstance(value, str):
        return value
    if value is None:
        raise BadCell(f"there is no {COMPLETION!r}")
    chat = read_chat(value) if isinstance(value, list | dict) else None
    if not chat:
        raise BadCell(f"{COMPLETION!r} is neither text nor chat messages")
    if chat[-1].text is None or (len(chat) > 1 and chat[-1].role != "assistant"):
        raise BadCell(f"the chat in {COMPLETION!r} does not end with an answer of the assistant")
    return chat[-1].text


# ---- scores --------------------------------------------------------------------------------------


def _token_counter(config: RunConfig, rubric: Rubric) -> Callable[[str], int]:
    """Tokens of a text, its end token included. Loads the tokenizer only if a check needs it."""
    if not any(c.check in COUNTING for c in rubric.criteria):
        return lambda text: 1
    from grpo_core.models import load_reader  # transformers takes seconds to import

    tokenizer = load_reader(config.model).tokenizer
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1


def score_rows(
    rubric: Rubric, rows: Sequence[Row], tokens_in: Callable[[str], int]
) -> list[Result]:
    """Scores of rows that are scored in one call, and why scores are null."""
    from grpo_core.rubric import Rubric, total

    prompts = [row.prompt for row in rows]
    completions = [Completion(row.text, "stop", tokens_in(row.text)) for row in rows]
    scores: list[dict[str, float | None]] = [{} for _ in rows]
    why: list[dict[str, str]] = [{} for _ in rows]
    for criterion, check, params in rubric.rows:
        one = Rubric(((criterion, check, params),))
        scored = one.score_all(completions, prompts)
        notes = scored.notes.get(criterion.name, {})
        column = [values[criterion.name] for values in scored.scores]
        num_null = column.count(None)
        is_plain = len(notes) == 1 and sum(notes.values()) == num_null
        for i, value in enumerate(column):
            scores[i][criterion.name] = value
            if value is not None:
                continue
            reasons = notes
            if notes and not is_plain and not check.is_async:
                # Several reasons in one batch: ask for this row's alone.
                alone = one.score_all(completions[i : i + 1], prompts[i : i + 1])
                reasons = alone.notes.get(criterion.name, {})
            why[i][criterion.name] = "; ".join(reasons) or _usual_reason(
                criterion.check, prompts[i]
            )
    rewards = [total(s, rubric.weights) for s in scores]
    return [Result(s, r, w) for s, r, w in zip(scores, rewards, why, strict=True)]


def _usual_reason(check: str, prompt: Prompt) -> str:
    """Why a check that gives no reason itself gives null."""
    if check == "natural_language":
        return "the text is too short to tell its language"
    if check == "python" or "." in check:
        return "the function gave no score"
    if not prompt.answer.strip():
        return "the row has no right answer"
    return f"{check} cannot read the right answer {prompt.answer[:60]!r}"


def _print_table(rows: Sequence[Row], results: Sequence[Result]) -> None:
    names = list(results[0].scores)
    widths = [max(8, len(name)) for name in names]
    heads = [f"{name:>{w}}" for name, w in zip(names, widths, strict=True)]
    print(f"{'line':>6} {'reward':>8} {' '.join(heads)}  completion")
    for row, result in zip(rows, results, strict=True):
        cells = [
            f"{format_number(result.scores[n]):>{w}}" for n, w in zip(names, widths, strict=True)
        ]
        text = printable(" ".join(row.text.split())[-40:])
        print(f"{row.line:>6} {format_number(result.reward):>8} {' '.join(cells)}  {text}")
    rewards = [r.reward for r in results if r.reward is not None]
    mean = format_number(sum(rewards) / len(rewards)) if rewards else "none"
    print(f"{len(rows)} rows, mean reward {mean}, {len(rows) - len(rewards)} without a reward")
    for row, result in zip(rows, results, strict=True):
        for name, reason in result.why.items():
            print(printable(f"line {row.line}: {name} could not score: {reason}"))
