r"""Checks that compare an answer with the right answer, or with a schema.

The answer is read from <answer>…</answer>, from \boxed{…}, or after ####.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field, field_validator

from grpo_core.child_process import KILL_AFTER, Child, ChildFailed, free_one, module_child
from grpo_core.rubric.check import MAX_CHARS, Check, Notes, Params, batched, read_scores
from grpo_core.rubric.letters import answered_letter, key_letter, stated_letter
from grpo_core.tasks import extract_answer, given_answer
from grpo_core.tasks.answers import same_answer
from grpo_core.tasks.markup import strip_markup
from grpo_core.tasks.numbers import last_number, parse_quantity
from grpo_core.types import Completion, Prompt

MAX_FORMULA = 1_000  # characters of a mathematical answer
MAX_SUBSCHEMAS = 2_000  # objects, true and false: a schema is checked in 0.4 ms for each
MAX_HUNG = 4  # comparisons that may exceed their time before the rest of the step is skipped
_FENCED = re.compile(r"```([\w+-]*)[ \t]*\n(.*?)(?:```|\Z)", re.S)


class ExactParams(Params):
    """`where` to look for the answer; `ignore_case` treats upper and lower case as equal."""

    where: Literal["answer", "whole text"] = "answer"
    ignore_case: bool = False


class NumericParams(Params):
    """The tolerance is `absolute` + `relative`·|right|.

    `last_number`: without an answer tag, use the last number of the text.
    """

    absolute: float = Field(0.0, ge=0)
    relative: float = Field(1e-6, ge=0, le=1)
    last_number: bool = False


class MathParams(Params):
    """`seconds`: time limit of one comparison."""

    seconds: float = Field(2.0, gt=0, le=30)


class ChoiceParams(Params):
    """None."""


class SchemaParams(Params):
    """A JSON Schema (draft 2020-12) for the answer: in <answer>, in a ```json block, or the text.

    A $ref is never fetched. `seconds`: time limit of one validation.
    """

    # The name "schema" is taken by pydantic.
    json_schema: dict[str, Any] = Field(default_factory=lambda: {"type": "object"})
    seconds: float = Field(1.0, gt=0, le=30)

    @field_validator("json_schema")
    @classmethod
    def _is_a_schema(cls, schema: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import SchemaError

        text = json.dumps(schema)
        if len(text) > 100_000:
            raise ValueError("the schema has more than 100,000 characters")
        if sum(map(text.count, ("{", "true", "false"))) > MAX_SUBSCHEMAS:
            raise ValueError(f"the schema has more than {MAX_SUBSCHEMAS:,} parts")
        try:
            _check_schema(text)
        except (SchemaError, RecursionError) as error:
            raise ValueError(
                f"this is not a JSON Schema: {str(error).splitlines()[0][:200]}"
            ) from None
        return schema


@lru_cache(maxsize=64)
def _check_schema(text: str) -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(json.loads(text))


def exact(completion: Completion, prompt: Prompt, params: ExactParams) -> float | None:
    """Is the answer the right text, apart from markup and white space? None without such a text."""
    if not prompt.answer.strip():
        return None
    text = completion.text[:MAX_CHARS]
    given = text if params.where == "whole text" else given_answer(text)
    if given is None:
        return 0.0
    fold: Callable[[str], str] = str.casefold if params.ignore_case else str
    return float(fold(strip_markup(given)) == fold(strip_markup(prompt.answer)))


def numeric(completion: Completion, prompt: Prompt, params: NumericParams) -> float | None:
    """Is |given - right| <= absolute + relative·|right|? None if the right answer is no number.

    A unit counts only where both have one: 5 km is 5, but not 5 m.
    """
    key = parse_quantity(prompt.answer)
    if key is None:
        return None
    right, unit = key
    text = completion.text[:MAX_CHARS]
    given = given_answer(text)
    if given is None and params.last_number:
        number = last_number(text)
        found = None if number is None else (number, "")
    else:
        found = None if given is None else parse_quantity(given)
    if found is None or (unit and found[1] and unit != found[1]):
        return 0.0
    tolerance = Fraction(params.absolute) + Fraction(params.relative) * abs(right)
    return float(abs(found[0] - right) <= tolerance)


def choice(completion: Completion, prompt: Prompt, params: ChoiceParams) -> float | None:
    """Is the chosen letter right? Two letters, such as "B or C", are no choice.

    The letter is read from the answer, else from the last "answer is X", else from a text or a last
    line that is only a letter. None if the right answer has no letter.
    """
    right = key_letter(prompt.answer)
    if right is None:
        return None
    text = completion.text[:MAX_CHARS]
    given = given_answer(text)
    return float((stated_letter(text) if given is None else answered_letter(given)) == right)


def math(
    completions: Sequence[Completion], prompts: Sequence[Prompt], params: MathParams, notes: Notes
) -> list[float | None]:
    """Is the answer mathematically equal to the right answer?

    Equal numbers and texts are recognised here; the rest is compared in the worker process.
    Siblings often give the same answer, so each pair is compared once. After MAX_HUNG comparisons
    that exceed their time, the rest of the step is not scored.
    """
    known: dict[tuple[str, str], float | None] = {}
    hung = 0

    def one(completion: Completion, prompt: Prompt) -> float | None:
        nonlocal hung
        right = prompt.answer.strip()
        if not right:
            return None
        given = given_answer(completion.text[:MAX_CHARS])
        if given is None or not given.strip() or len(given) > MAX_FORMULA:
            return 0.0
        if same_answer(given, right):
            return 1.0
        if (given, right) not in known:
            if hung >= MAX_HUNG:
                notes[f"math: not tried after {MAX_HUNG} that took too long"] += 1
                return None
            started = time.monotonic()
            known[given, right] = _in_worker("math", [given, right], params.seconds, notes)
            hung += time.monotonic() - started >= params.seconds
        return known[given, right]

    return [one(c, p) for c, p in zip(completions, prompts, strict=True)]


def json_schema(
    completions: Sequence[Completion], prompts: Sequence[Prompt], params: SchemaParams, notes: Notes
) -> list[float | None]:
    """1 for JSON that is valid under the schema, 0.5 for other JSON, 0 for no JSON."""

    def one(completion: Completion) -> float | None:
        arguments = [_json_in(completion.text[:MAX_CHARS]), params.json_schema]
        return _in_worker("schema", arguments, params.seconds, notes)

    return [one(c) for c in completions]


def _json_in(text: str) -> list[str]:
    """Where the JSON of a text may be; the first that is JSON counts."""
    tagged = extract_answer(text)
    blocks = [body for name, body in _FENCED.findall(text) if name.lower() in ("", "json")]
    if tagged is not None:
        return [tagged, strip_markup(tagged)]
    if blocks:
        return blocks[-1:]
    return [text, strip_markup(text), strip_markup(given_answer(text) or "")]


def _in_worker(do: str, arguments: list[Any], seconds: float, notes: Notes) -> float | None:
    """A score from the worker process, or None with the reason in the notes."""
    message = {"do": do, "arguments": arguments, "seconds": seconds}

    def read(answer: Any) -> tuple[float | None, str]:
        if "null" in answer:
            return None, f"{answer['null']}"
        return read_scores([answer["value"]], 1)[0], ""

    try:
        score, reason = free_one(graders()).request(message, seconds + KILL_AFTER, read)
    except ChildFailed as error:
        score, reason = None, f"{error}"
    if reason:
        notes[f"{do}: {reason}"] += 1
    return score


@lru_cache(maxsize=1)
def graders() -> list[Child]:
    """Processes for all graders that can hang: one for a run, the others for visitors."""
    return [module_child("grpo_core.rubric.sandbox.worker") for _ in range(4)]


ANSWER_CHECKS: dict[str, Check] = {
    "exact": Check(
        exact,
        ExactParams,
        "The answer is exactly the right text, apart from Markdown and LaTeX around it.",
    ),
    "numeric": Check(
        numeric,
        NumericParams,
        "The answer is the right number within a tolerance. Reads 1,234, $5, 50 %, 3/4 and 1e-4.",
    ),
    "math": batched(
        math,
        MathParams,
        "The answer equals the right answer mathematically: fractions, LaTeX, intervals, sets, "
        "equations, matrices; null if it cannot be read as a whole.",
    ),
    "choice": Check(choice, ChoiceParams, "The chosen letter, A to J, is the right one."),
    "json_schema": batched(
        json_schema,
        SchemaParams,
        "JSON that is valid under a schema: 1; other JSON: 0.5; no JSON: 0.",
    ),
}
