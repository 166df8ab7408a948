"""From a row of a file to a prompt: columns, chat messages, templates, and final answers."""

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
_PLACEHOLDER = re.compile(r"\{([^{}]{1,100})\}")
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns with the prompt and the answer ("" = none)."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class RowPrompt:
    """The prompt in one row."""

    before: tuple[dict[str, str], ...]  # earlier messages of the chat
    text: str  # the last user turn
    answer: str
    meta: dict[str, Any]  # the other columns
    is_chat: bool  # the row holds messages, not a plain text


def choose_columns(row: Mapping[str, Any], prompt: str, answer: str) -> Columns:
    """The named columns; for a name that is empty, the first usual name that the row has.

    Raises InvalidConfig, which lists the columns that exist.
    """
    known = ", ".join(list(row)[:20])
    for field, name in (("task.prompt_column", prompt), ("task.answer_column", answer)):
        if name and value_at(row, name) is _MISSING:
            problem = FieldProblem(field, name, "there is no such column", f"Columns: {known}.")
            raise InvalidConfig([problem])
    prompt = prompt or _guess_column(row, PROMPT_NAMES)
    if not prompt:
        problem = FieldProblem(
            "task.prompt_column",
            "",
            "no column has a name that prompts usually have",
            f"Name one of: {known}.",
        )
        raise InvalidConfig([problem])
    return Columns(prompt, answer or _guess_column(row, ANSWER_NAMES, taken=prompt))


def _guess_column(row: Mapping[str, Any], names: Sequence[str], taken: str = "") -> str:
    by_lower_case = {name.lower(): name for name in row}
    for name in names:
        column = by_lower_case.get(name, name)
        if column != taken and value_at(row, column) is not _MISSING:
            return column
    return ""


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


def row_to_prompt(
    row: Mapping[str, Any], columns: Columns, template: str, system: str, verbatim: bool = False
) -> RowPrompt | None:
    """One row as a prompt; None if the prompt is empty.

    An assistant turn at the end of a chat is the answer, not part of the prompt.
    verbatim: keep the answer's text; else take the final answer out of a worked solution.
    """
    value = value_at(row, columns.prompt)
    answer = value_at(row, columns.answer) if columns.answer else _MISSING
    messages = _messages(value)
    is_chat = bool(messages)
    if messages and messages[-1]["role"] == "assistant":
        last = messages.pop()["content"]
        answer = last if answer in (None, _MISSING, "") else answer
    if messages:
        text = messages.pop()["content"]
    else:
        text = "" if is_chat else cell_text(value)
    if not text.strip():
        return None
    before = ([{"role": "system", "content": system}] if system else []) + messages
    answer_text = cell_text(answer)
    return RowPrompt(
        tuple(before),
        fill_template(template, text, row),
        answer_text.strip() if verbatim else final_answer(answer_text),
        {k: v for k, v in row.items() if k not in (columns.prompt, columns.answer)},
        is_chat,
    )


def _messages(value: Any) -> list[dict[str, str]]:
    """Chat messages as [{"role", "content"}]; [] if the value is no chat.

    Also reads ShareGPT's [{"from", "value"}], and either one as JSON text.
    """
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    if not isinstance(value, list) or not value or not all(isinstance(m, Mapping) for m in value):
        return []
    messages = []
    for m in value:
        role, content = m.get("role", m.get("from")), m.get("content", m.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            return []
        messages.append({"role": _ROLES.get(role, role), "content": content})
    return messages


def cell_text(value: Any) -> str:
    """A cell as text; "" for a missing one. A whole number from a spreadsheet is "5", not "5.0"."""
    if value is None or value is _MISSING:
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def fill_template(template: str, text: str, row: Mapping[str, Any]) -> str:
    """Replace {prompt} by `text` and {column} by the row's value, once.

    Braces that name no column stay. Format codes and attribute access have no effect.
    """

    def value_of(match: re.Match[str]) -> str:
        if match[1] == "prompt":
            return text
        value = value_at(row, match[1])
        return match[0] if value is _MISSING else cell_text(value)

    return _PLACEHOLDER.sub(value_of, template)


def final_answer(text: str) -> str:
    r"""The final answer of a worked solution.

    The text after the last #### (GSM8K), else the last \boxed{…} (MATH), else the whole text.
    """
    if "####" in text:
        return text.rpartition("####")[2].strip()
    boxed = last_boxed(text)
    return text.strip() if boxed is None else boxed


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{…} or \fbox{…}; None if there is none, or it never closes.

    "\boxed 5" gives "5". Takes linear time.
    """
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
