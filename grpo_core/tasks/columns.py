"""From a row of somebody's file to a prompt: which column is which, chat messages, templates, and the answer in an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.errors import FieldProblem, InvalidConfig

PROMPT_NAMES = (
    "prompt",
    "question",
    "problem",
    "messages",
    "conversations",
    "instruction",
    "query",
    "input",
    "text",
)
ANSWER_NAMES = (
    "answer",
    "final_answer",
    "ground_truth",
    "reward_model.ground_truth",
    "solution",
    "target",
    "label",
    "output",
    "response",
    "completion",
    "gold",
)
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_HOLE = re.compile(r"\{([^{}]{1,100})\}")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds the prompt and which the answer ("" = none)."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What one row asks: earlier messages of the chat, the text of the last user turn, the answer, and the other columns."""

    before: tuple[dict[str, str], ...]
    text: str
    answer: str
    meta: dict[str, Any]


def choose_columns(row: Mapping[str, Any], prompt: str, answer: str) -> Columns:
    """The named columns, or a guess by the names that datasets use. Raises InvalidConfig naming the columns that exist."""
    known = ", ".join(list(row)[:20])
    for field, name in (("task.prompt_column", prompt), ("task.answer_column", answer)):
        if name and value_at(row, name) is _MISSING:
            raise InvalidConfig(
                [FieldProblem(field, name, "there is no such column", f"Columns: {known}.")]
            )
    lower = {name.lower(): name for name in row}

    def guess(names: Sequence[str], taken: str = "") -> str:
        return next(
            (
                lower.get(n, n)
                for n in names
                if (n in lower or value_at(row, n) is not _MISSING) and lower.get(n, n) != taken
            ),
            "",
        )

    prompt = prompt or guess(PROMPT_NAMES)
    if not prompt:
        raise InvalidConfig(
            [
                FieldProblem(
                    "task.prompt_column",
                    "",
                    "no column has a name that prompts usually have",
                    f"Name one of: {known}.",
                )
            ]
        )
    return Columns(prompt, answer or guess(ANSWER_NAMES, prompt))


_MISSING = object()


def value_at(row: Mapping[str, Any], name: str) -> Any:
    """A column, or with dots a value inside one: reward_model.ground_truth."""
    value: Any = row
    if name in row:
        return row[name]
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def asked(
    row: Mapping[str, Any], columns: Columns, template: str, system: str, as_it_is: bool = False
) -> Asked | None:
    """One row as a prompt; None when it asks nothing. An assistant turn at the end of the chat is the answer, not part of the question.

    as_it_is: leave answers untouched; else the final answer is taken out of GSM8K's and MATH's worked solutions.
    """
    value, answer = (
        value_at(row, columns.prompt),
        value_at(row, columns.answer) if columns.answer else None,
    )
    messages = _messages(value)
    if messages and messages[-1]["role"] == "assistant":
        last = messages.pop()["content"]
        answer = last if answer in (None, _MISSING, "") else answer
    text = messages.pop()["content"] if messages else plain(value) if not _messages(value) else ""
    if not text.strip():
        return None
    before = ([{"role": "system", "content": system}] if system else []) + messages
    answer_text = "" if answer in (None, _MISSING) else plain(answer)
    meta = {k: v for k, v in row.items() if k not in (columns.prompt, columns.answer)}
    return Asked(
        tuple(before),
        fill(template, text, row),
        answer_text.strip() if as_it_is else final_answer(answer_text),
        meta,
    )


def _messages(value: Any) -> list[dict[str, str]]:
    """[{"role", "content"}] or ShareGPT's [{"from", "value"}], also as JSON text; [] when it is no chat."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    if not isinstance(value, list) or not value or not all(isinstance(m, Mapping) for m in value):
        return []
    out = []
    for m in value:
        role, content = m.get("role", m.get("from")), m.get("content", m.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            return []
        out.append({"role": _ROLES.get(role, role), "content": content})
    return out


def plain(value: Any) -> str:
    """A cell as text. Numbers as a person writes them: 5.0 from a spreadsheet is 5."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return (
        json.dumps(value, ensure_ascii=False, default=str)
        if isinstance(value, (dict, list))
        else ""
        if value is None
        else str(value)
    )


def fill(template: str, text: str, row: Mapping[str, Any]) -> str:
    """{prompt} and {column} replaced by their values, once; braces that name no column stay. No format codes, no attribute access."""

    def put(match: re.Match[str]) -> str:
        if match[1] == "prompt":
            return text
        value = value_at(row, match[1])
        return match[0] if value is _MISSING else plain(value)

    return _HOLE.sub(put, template)


def final_answer(text: str) -> str:
    r"""The answer proper of a worked solution: what follows the last `####` (GSM8K), the last \boxed{…} (MATH), else the text itself."""
    if "####" in text:
        return text.rpartition("####")[2].strip()
    found = last_boxed(text)
    return text.strip() if found is None else found


def last_boxed(text: str) -> str | None:
    r"""Content of the last \boxed{…} or \fbox{…} whose braces close; "\boxed 5" is 5. None when there is none. Linear time."""
    at = max(text.rfind(r"\boxed"), text.rfind(r"\fbox"))
    if at < 0:
        return None
    rest = text[at:].removeprefix(r"\boxed").removeprefix(r"\fbox").lstrip()
    if not rest.startswith("{"):
        return rest.split()[0].rstrip("$.") if rest.split() else None
    depth = 0
    for i, char in enumerate(rest):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return rest[1:i].strip()
    return None
