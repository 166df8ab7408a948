"""Plug-in files: Python with TRL's reward signature f(completions, prompts, **columns).

The operator names them on the command line. Each file runs in its own process, which cannot write,
use the network, start processes or read anything but Python's own files; see jail.py. A file can
give wrong scores for its own functions, but never for those of another file.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from grpo_core.child_process import KILL_AFTER, Child, ChildFailed, module_child, one_line
from grpo_core.errors import StudioError
from grpo_core.rubric.check import (
    UNBOUNDED,
    Check,
    Many,
    Notes,
    Params,
    RunState,
    batched,
    finite,
)
from grpo_core.types import Completion, Prompt

START_SECONDS = 20.0
ANSWER_NAMES = ("answer", "solution", "ground_truth")
# A file's columns of these names are not passed: they would replace what TRL passes.
TAKEN = ("completions", "prompts", "completion_ids", "trainer_state", "log_extra", "log_metric")


class PluginParams(Params):
    """`seconds`: time limit for all completions of a step.

    `messages`: pass prompts and completions as [{"role": …, "content": …}]. Empty: as TRL does,
    for the rows that are chats.
    """

    seconds: float = Field(10.0, gt=0, le=600)
    messages: bool | None = None


def load_plugins(paths: Sequence[str]) -> dict[str, Check]:
    """Every public function of every file as a check with the name file.function.

    Raises StudioError that names a file that cannot be used.
    """
    checks: dict[str, Check] = {}
    for path in paths:
        file = _python_file(path)
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", file.stem)
        if any(name.startswith(f"{stem}.") for name in checks):
            raise StudioError(
                f"--rewards {path!r}: an earlier file has the same name, so their checks {stem}.… "
                "would be the same. Rename one of them."
            )
        module = "grpo_core.rubric.sandbox.plugin_child"
        child = module_child(module, str(file), str(START_SECONDS))
        question = {"do": "list", "arguments": [], "seconds": START_SECONDS}
        try:
            functions = child.request(question, START_SECONDS, _names)
        except ChildFailed as error:
            raise StudioError(
                f"--rewards {path!r} cannot be used: {error}. Correct the file and start again."
            ) from None
        if not functions:
            raise StudioError(
                f"--rewards {path!r} defines no public function. "
                "Write one: def f(completions, prompts, **columns): …"
            )
        for name in functions:
            help = f"{name} of {file.name}, a plug-in file."
            checks[f"{stem}.{name}"] = batched(_scorer(child, name), PluginParams, help, UNBOUNDED)
    return checks


def _python_file(path: str) -> Path:
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # what odd paths raise
        file = Path(path).expanduser().resolve()
        if file.is_file() and file.suffix == ".py":
            return file
    raise StudioError(
        f"--rewards {path!r} is not a Python file. "
        "Name one with functions f(completions, prompts, **columns)."
    )


def _names(answer: Any) -> list[str]:
    names = answer["value"]
    if not isinstance(names, list) or not all(str.isidentifier(n) for n in names):
        raise ValueError("no list of names")  # others could carry markup to a page or terminal
    return names


def _scorer(child: Child, function: str) -> Many:
    """The scores of one function, as `many` of a check."""

    def score(
        completions: Sequence[Completion],
        prompts: Sequence[Prompt],
        params: PluginParams,
        notes: Notes,
    ) -> list[float | None]:
        arguments = [function, *trl_arguments(completions, prompts, params.messages, notes.run)]
        question = {"do": "score", "arguments": arguments, "seconds": params.seconds}
        count = len(completions)

        def read(answer: Any) -> tuple[list[float | None], Notes]:
            """Scores and reasons. A text among the scores is what the function gave instead."""
            if answer.keys() == {"null"}:
                return [None] * count, Notes({f"{function}: {_line(answer['null'])}": count})
            values, why = answer["value"], Notes()
            if answer.keys() != {"value"} or not isinstance(values, list):
                raise ValueError("no scores")
            if len(values) != count:
                why[f"{function} returned {len(values)} scores for {count} completions"] = count
                return [None] * count, why
            for value in values:
                if isinstance(value, str):
                    why[f"{function} returned {_line(value)}, which is not a finite number"] += 1
            return [None if v is None or isinstance(v, str) else finite(v) for v in values], why

        try:
            scores, why = child.request(question, params.seconds + KILL_AFTER, read)
        except ChildFailed as error:
            notes[f"{function}: {error}"] += count
            return [None] * count
        notes.update(why)
        return scores

    return score


def _line(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError("no text")
    return one_line(text, 500)


def trl_arguments(
    completions: Sequence[Completion],
    prompts: Sequence[Prompt],
    messages: bool | None,
    run: RunState | None,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What TRL 1.x passes to a reward function, by name, and the known fields of `trainer_state`.

    The names are prompts, completions, completion_ids and the columns of the prompt file; see
    GRPOTrainer._calculate_rewards. completion_ids is None for texts that were not sampled.
    """
    as_messages = [p.meta.get("chat", False) if messages is None else messages for p in prompts]
    given = {
        "prompts": [
            messages_of(p) if m else p.text for p, m in zip(prompts, as_messages, strict=True)
        ],
        "completions": [
            [{"role": "assistant", "content": c.text}] if m else c.text
            for c, m in zip(completions, as_messages, strict=True)
        ],
        "completion_ids": None if run is None else [list(ids) for ids in run.completion_ids],
    }
    state = None
    if run is not None:
        state = {
            "global_step": run.global_step,
            "max_steps": run.max_steps,
            "is_local_process_zero": True,
            "is_world_process_zero": True,
        }
    return columns(prompts, as_messages) | given, state


def messages_of(prompt: Prompt) -> list[dict[str, str]]:
    return [*prompt.meta.get("before", ()), {"role": "user", "content": prompt.text}]


def columns(prompts: Sequence[Prompt], as_messages: Sequence[bool]) -> dict[str, list[Any]]:
    """The columns of the prompt file by name, each with one value a prompt.

    The prompt and the right answer have their columns' names, and the answer also has three usual
    names. A row without a column has None.
    """
    rows = []
    for prompt, is_chat in zip(prompts, as_messages, strict=True):
        row = dict.fromkeys(ANSWER_NAMES, prompt.answer)
        row |= prompt.meta.get("columns", {})
        own = {
            prompt.meta.get("answer_column"): prompt.answer,
            prompt.meta.get("prompt_column"): messages_of(prompt) if is_chat else prompt.text,
        }
        rows.append(row | {name: value for name, value in own.items() if name})
    names = dict.fromkeys(name for row in rows for name in row if name not in TAKEN)
    return {name: [row.get(name) for row in rows] for name in names}
