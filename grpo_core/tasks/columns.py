"""From a row of a file to a prompt: columns, chat messages, templates, and final answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.tasks.cells import MISSING, BadCell, cell_text, kind_of, plain, single_text, value_at
from grpo_core.tasks.chat import Message, read_chat

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
ENVIRONMENT = "environment"  # the column that says what the policy acts in for its row
NO_ENVIRONMENT = "none"  # names that there is none, even where the task has one
NO_INPUT = ("", "<noinput>")  # what Alpaca writes where an instruction has no input
_LISTED = re.compile(r"""\s*\[\s*(?:"([^"\\]*)"|'([^'\\]*)')\s*\]\s*""")
_PLACEHOLDER = re.compile(r"\{([^{}]{1,100})\}")

Row = Mapping[str, Any]
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns with the prompt and the answer ("" = none).

    input: the column that Alpaca's format adds to its instructions.
    """

    prompt: str
    answer: str
    input: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """How rows become prompts.

    verbatim: keep the answer's text; else take the final answer out of a worked solution.
    names: all known columns; one that a row lacks leaves nothing in the template.
    """

    template: str = "{prompt}"
    verbatim: bool = False
    names: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class RowPrompt:
    """The prompt in one row."""

    before: tuple[dict[str, str], ...]  # the row's own earlier messages
    text: str  # the last user turn
    answer: str
    meta: dict[str, Any]  # the other columns
    is_chat: bool  # the row holds messages, not a plain text


# ---- columns -------------------------------------------------------------------------------------


def choose_columns(rows: Sequence[Row], prompt: str, answer: str) -> Columns:
    """The named columns; for a name that is empty, the usual name that most rows have.

    rows: the first of a source. Raises InvalidConfig, which lists the columns that exist.
    """
    prompt = _named_column(rows, "task.prompt_column", prompt)
    answer = _named_column(rows, "task.answer_column", answer)
    prompt = prompt or _guess_column(rows, PROMPT_NAMES)
    if not prompt:
        problem = "no column has a name that prompts usually have"
        known = _known(rows)
        hint = f"Name one of: {known}." if known else "Its rows are empty."
        raise InvalidConfig([FieldProblem("task.prompt_column", "", problem, hint)])
    answer = answer or _guess_column(rows, ANSWER_NAMES, taken=prompt)
    return Columns(prompt, answer, _input_column(rows, prompt, answer))


def with_later_columns(columns: Columns, row: Row) -> Columns:
    """The columns after a row that has names no earlier row had: it may bring the first answer."""
    answer = columns.answer or _guess_column([row], ANSWER_NAMES, taken=columns.prompt)
    extra = columns.input or _input_column([row], columns.prompt, answer)
    return replace(columns, answer=answer, input=extra)


def _known(rows: Sequence[Row]) -> str:
    return ", ".join(list(dict.fromkeys(name for row in rows for name in row))[:20])


def _named_column(rows: Sequence[Row], field: str, name: str) -> str:
    for column in (name, name.strip()):
        if not column or any(value_at(row, column) is not MISSING for row in rows):
            return column
    problem = FieldProblem(field, name, "there is no such column", f"Columns: {_known(rows)}.")
    raise InvalidConfig([problem])


def _guess_column(rows: Sequence[Row], names: Sequence[str], taken: str = "") -> str:
    spelled: dict[str, str] = {}  # in lower case -> as the source writes it
    for column in (column for row in rows for column in row):
        spelled.setdefault(column.strip().lower(), column)
        if column in names:
            spelled[column] = column
    found = Counter({column: 0 for name in names if (column := spelled.get(name, name)) != taken})
    for column in found:
        found[column] = sum(value_at(row, column) is not MISSING for row in rows)
    best, count = found.most_common(1)[0]  # of equals the first
    return best if count else ""


def _input_column(rows: Sequence[Row], prompt: str, answer: str) -> str:
    """Alpaca's format asks with two columns: instruction, and input where there is one."""
    if prompt.strip().lower() != "instruction":
        return ""
    names = (name for row in rows for name in row if name.strip().lower() == "input")
    return next((name for name in names if name != answer), "")


# ---- one row -------------------------------------------------------------------------------------


def row_to_prompt(row: Row, columns: Columns, reading: Reading) -> RowPrompt | None:
    """One row as a prompt; None if it has none.

    An assistant turn at the end of a chat is the answer, not part of the prompt.
    Raises BadCell, naming the column, for a cell that is neither text nor a chat.
    """
    chat, is_chat = _read(row, columns.prompt, _prompt_messages)
    is_answered = bool(chat) and chat[-1].role == "assistant"
    last = chat.pop().text or "" if is_answered else ""
    if all(m.role == "system" for m in chat):
        return None
    try:
        text, before = _question(chat.pop()), _earlier(chat)
    except BadCell as error:
        raise BadCell(f"column {columns.prompt!r}: {error}") from None
    if not text.strip():
        return None
    if columns.input and f"{{{columns.input}}}" not in reading.template:
        extra = _read(row, columns.input, single_text)
        text += "" if extra.strip().lower() in NO_INPUT else f"\n\n{extra}"
    answer = _read(row, columns.answer, _answer_text) if columns.answer else ""
    answer = answer if answer.strip() else last
    return RowPrompt(
        tuple(before),
        fill_template(reading.template, text, row, reading.names),
        answer.strip() if reading.verbatim else final_answer(answer),
        {k: v for k, v in row.items() if k not in (columns.prompt, columns.answer)},
        is_chat,
    )


def row_environment(row: Row) -> str:
    """What a row's column `environment` names, as text; "" for nothing."""
    value = row.get(ENVIRONMENT)
    return value.strip() if isinstance(value, str) else "" if value is None else repr(value)[:100]


def _read(row: Row, column: str, read: Callable[[Any], _Value]) -> _Value:
    try:
        return read(plain(value_at(row, column)))
    except BadCell as error:
        raise BadCell(f"column {column!r}: {error}") from None


def _prompt_messages(value: Any) -> tuple[list[Message], bool]:
    """The messages in a cell, and whether it holds a chat; text is one message of the user."""
    # In a Parquet file, an object whose values are all null is no object.
    is_null = isinstance(value, dict) and all(v is None for v in value.values())
    if value is None or value is MISSING or value == [] or is_null:
        return [], False
    if (chat := read_chat(value)) is not None:
        return chat, True
    if isinstance(value, (list, dict)):
        raise BadCell(f"it holds {kind_of(value)}")
    return [Message("user", cell_text(value), False)], False


def _answer_text(value: Any) -> str:
    """The answer in a cell; "" for none. One message of a chat is its text."""
    if isinstance(value, (str, list, dict)) and (chat := read_chat(value)) is not None:
        if len(chat) != 1:
            raise BadCell(f"it holds a chat of {len(chat)} messages")
        return chat[0].text or ""
    return single_text(value)


def _question(message: Message) -> str:
    if message.role != "user":
        raise BadCell(f"its chat ends with a message of the role {message.role!r}")
    return message.text or ""


def _earlier(chat: Sequence[Message]) -> list[dict[str, str]]:
    for number, message in enumerate(chat, 1):
        if message.calls_tool:
            raise BadCell(f"message {number} of its chat calls a tool, which no prompt can show")
        if message.text is None and message.role != "system":
            raise BadCell(f"message {number} of its chat has no content")
    return [{"role": m.role, "content": m.text} for m in chat if m.text is not None]


def fill_template(template: str, text: str, row: Row, names: Collection[str] = ()) -> str:
    """Replace {prompt} by `text` and {column} by the row's value, once.

    A column of `names` that the row lacks leaves nothing; braces that name no column stay. Format
    codes and attribute access have no effect. Raises BadCell.
    """

    if template == "{prompt}":
        return text

    def value_of(match: re.Match[str]) -> str:
        if match[1] == "prompt":
            return text
        if value_at(row, match[1]) is not MISSING:
            return _read(row, match[1], cell_text)
        column = match[1].partition(".")[0]
        is_lacking = row.get(column) is None or isinstance(row[column], Mapping)
        return "" if column in names and is_lacking else match[0]

    return _PLACEHOLDER.sub(value_of, template)


def final_answer(text: str) -> str:
    r"""The final answer of a worked solution.

    The text after the last #### (GSM8K), else the last \boxed{…} (MATH), else the one text of a
    list that was written as text, ["48"], else the whole text.
    """
    if listed := _LISTED.fullmatch(text):
        text = listed[1] or listed[2] or ""
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
