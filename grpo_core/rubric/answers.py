r"""Checks that compare an answer with the right one, or with a schema. Where the answer stands: <answer>…</answer>, \boxed{…}, or after ####."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from grpo_core.rubric.check import MAX_CHARS, Check, Notes, Params, batched
from grpo_core.rubric.sandbox.child import Child, ChildFailed
from grpo_core.tasks import given_answer
from grpo_core.tasks.answers import number, same_answer
from grpo_core.types import Completion, Prompt

KILL_AFTER = 1.0  # seconds beyond a grader's own limit after which its process is killed
MAX_HUNG = 4
_LAST_NUMBER = re.compile(r"[-+]?\$?(?:\d{1,3}(?:,\d{3})+|\d{1,60})(?:\.\d{1,60})?%?")
_LETTER = re.compile(r"\(?\b([A-J])\b\)?")
_SAID = re.compile(r"(?i:answer|choice|option)\s*(?i:is|:)?\s*\**\(?([A-J])\b")


class ExactParams(Params):
    """`where` the answer is looked for; `ignore_case` compares without case."""

    where: Literal["answer", "whole text"] = "answer"
    ignore_case: bool = False


class NumericParams(Params):
    """Right within `absolute` + `relative`·|right|. `last_number`: without an answer tag the last number of the text counts."""

    absolute: float = Field(0.0, ge=0)
    relative: float = Field(1e-6, ge=0, le=1)
    last_number: bool = False


class MathParams(Params):
    """`seconds`: the time for one comparison."""

    seconds: float = Field(2.0, gt=0, le=30)


class ChoiceParams(Params):
    pass


class SchemaParams(Params):
    """A JSON Schema (draft 2020-12) for what stands in <answer>, in a ```json block, or in the whole text; nothing is fetched for a $ref."""

    # "schema" is the natural name, but pydantic's own
    json_schema: dict[str, Any] = Field(default_factory=lambda: {"type": "object"})
    seconds: float = Field(1.0, gt=0, le=30)

    @field_validator("json_schema")
    @classmethod
    def _is_one(cls, schema: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import Draft202012Validator, SchemaError

        if len(json.dumps(schema)) > 100_000:
            raise ValueError("the schema has more than 100,000 characters")
        try:
            Draft202012Validator.check_schema(schema)
        except (SchemaError, RecursionError) as error:
            raise ValueError(
                f"this is no JSON Schema: {str(error).splitlines()[0][:200]}"
            ) from None
        return schema


def exact(completion: Completion, prompt: Prompt, params: ExactParams) -> float | None:
    """Is the answer the right text, up to white space around it? None without a key."""
    if not prompt.answer:
        return None
    given = (
        completion.text[:MAX_CHARS]
        if params.where == "whole text"
        else given_answer(completion.text[:MAX_CHARS])
    )
    if given is None:
        return 0.0
    fold: Callable[[str], str] = str.casefold if params.ignore_case else str
    return float(fold(given.strip()) == fold(prompt.answer.strip()))


def numeric(completion: Completion, prompt: Prompt, params: NumericParams) -> float | None:
    """Is the answer the right number, |given - right| <= absolute + relative·|right|? None when the key is no number."""
    right = number(prompt.answer)
    if right is None:
        return None
    text = completion.text[:MAX_CHARS]
    given = given_answer(text)
    if given is None and params.last_number:
        given = next(iter(_LAST_NUMBER.findall(text)[::-1]), None)
    value = None if given is None else number(given)
    return (
        0.0
        if value is None
        else float(
            abs(value - right)
            <= type(right)(params.absolute) + type(right)(params.relative) * abs(right)
        )
    )


def choice(completion: Completion, prompt: Prompt, params: ChoiceParams) -> float | None:
    """Is the chosen letter the right one? The answer tag's letter, else the last "answer is X", else a text that is only a letter."""
    right = _letter(prompt.answer)
    if right is None:
        return None
    text = completion.text[:MAX_CHARS]
    given = given_answer(text)
    if given is None:
        said = _SAID.findall(text)
        given = said[-1] if said else text if len(text.strip()) <= 4 else None
    return float(given is not None and _letter(given) == right)


def _letter(text: str) -> str | None:
    found = _LETTER.search(text.replace(r"\text", "").replace("{", " ").replace("}", " ")[:200])
    return found[1] if found else None


def math(
    completions: Sequence[Completion], prompts: Sequence[Prompt], params: MathParams, notes: Notes
) -> list[float | None]:
    """Is the answer the same mathematics as the right one? Equal numbers and texts at once, the rest by math-verify in the killable process.

    Siblings often give the same answer: it is compared once. After MAX_HUNG that took too long the rest of the step is not tried.
    """
    known: dict[tuple[str, str], float | None] = {}
    hung = 0

    def one(completion: Completion, prompt: Prompt) -> float | None:
        nonlocal hung
        right = prompt.answer.strip()
        if not right:
            return None
        given = given_answer(completion.text[:MAX_CHARS])
        if given is None or not given.strip() or len(given) > 1000:
            return 0.0
        if same_answer(given, right):
            return 1.0
        if (given, right) not in known:
            if hung >= MAX_HUNG:
                notes[f"math: not tried after {MAX_HUNG} that took too long"] += 1
                return None
            before = notes.total()
            known[given, right] = ask("math", [given, right], params.seconds, notes)
            hung += notes.total() > before
        return known[given, right]

    return [one(c, p) for c, p in zip(completions, prompts, strict=True)]


def json_schema(
    completions: Sequence[Completion], prompts: Sequence[Prompt], params: SchemaParams, notes: Notes
) -> list[float | None]:
    """Is it JSON that keeps the schema? 1; 0.5 for JSON that breaks it; 0 for no JSON."""
    return [
        ask("schema", [_json_in(c.text[:MAX_CHARS]), params.json_schema], params.seconds, notes)
        for c in completions
    ]


def _json_in(text: str) -> str:
    given = given_answer(text)
    if given is not None:
        return given
    start = text.find("```json")
    if start < 0:
        return text
    end = text.find("```", start + 7)
    return text[start + 7 : end if end >= 0 else len(text)]


def ask(do: str, arguments: list[Any], seconds: float, notes: Notes) -> float | None:
    """A score from the killable process, or None with the reason in the notes."""
    try:
        answer = grader_process().ask(
            {"do": do, "arguments": arguments, "seconds": seconds}, seconds + KILL_AFTER
        )
    except ChildFailed as error:
        notes[f"{do}: {error}"] += 1
        return None
    if "null" in answer:
        notes[f"{do}: {answer['null']}"] += 1
    return answer.get("score")


@lru_cache(maxsize=1)
def grader_process() -> Child:
    """The one process of all graders that could hang. Its environment has no secrets in it."""
    root = str(Path(__file__).parents[2])
    return Child(
        ["-m", "grpo_core.rubric.sandbox.worker"],
        {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": root, "LANG": "C.UTF-8"},
        root,
    )


ANSWER_CHECKS: dict[str, Check] = {
    "exact": Check(exact, ExactParams, "The answer is the right text, character by character."),
    "numeric": Check(
        numeric,
        NumericParams,
        "The answer is the right number within a tolerance; 1,234, $5, 50 %, 3/4 and 1e-4 are read.",
    ),
    "math": batched(
        math,
        MathParams,
        "The answer is the same mathematics as the right one: fractions, LaTeX, intervals, sets (math-verify).",
    ),
    "choice": Check(choice, ChoiceParams, "The chosen letter, A to J, is the right one."),
    "json_schema": batched(
        json_schema,
        SchemaParams,
        "JSON that keeps a schema: 1; JSON that breaks it: 0.5; no JSON: 0.",
    ),
}
