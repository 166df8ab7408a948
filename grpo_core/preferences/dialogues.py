"""From the cells of one row to a prompt and two answers: text, chat messages, or HH dialogues."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.tasks.cells import BadCell, kind_of
from grpo_core.tasks.chat import Message, read_chat
from grpo_core.types import Prompt, last_message

MAX_CHARS = 400_000  # of one text
_TURN = re.compile(r"\n\n(Human|Assistant): ?")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Texts:
    """A prompt as GroupRow holds it, its earlier messages, and the two answers."""

    prompt: str
    before: tuple[dict[str, str], ...]
    chosen: str
    rejected: str


def bad_cell(column: str, problem: str, value: Any = None) -> BadCell:
    shown = "" if value is None else f" ({value!r:.40})"
    return BadCell(f"column {column!r:.80}: {problem}{shown}")


def read_texts(cells: Mapping[str, Any], names: Sequence[str]) -> Texts:
    """The texts in the cells prompt, chosen, rejected and before; None: no such column.

    names: of these columns in the file, for messages. Raises BadCell with a column's name.
    """
    prompt_name, chosen_name, rejected_name, before_name = names
    alone = cells["prompt"] in (None, "")  # else an answer that looks like a dialogue is its text
    chosen = _answer(cells["chosen"], chosen_name, alone)
    rejected = _answer(cells["rejected"], rejected_name, alone)
    if chosen[:-1] and rejected[:-1] and chosen[:-1] != rejected[:-1]:
        raise bad_cell(rejected_name, f"its conversation is not that of {chosen_name!r:.60}")
    asked = list(chosen[:-1] or rejected[:-1])
    asked = asked or _asked(cells["prompt"], cells["before"], prompt_name, before_name)
    if not asked or asked[-1]["role"] != "user":
        raise bad_cell(prompt_name, "it is missing, or ends with no message of a user")
    before, answers = tuple(asked[:-1]), [c[-1]["content"] for c in (chosen, rejected)]
    if answers[0] == answers[1]:
        raise bad_cell(rejected_name, f"it equals {chosen_name!r:.60}")
    prompt = Prompt("", asked[-1]["content"], "", "", {"before": before}).conversation
    return Texts(prompt, before, *answers)


def _answer(value: Any, name: str, is_dialogue: bool) -> list[dict[str, str]]:
    """The messages in chosen or rejected; the last one is the answer."""
    if value is None or value == []:
        raise bad_cell(name, "it is missing or empty")
    if isinstance(value, str):
        if is_dialogue and value.startswith("\n\nHuman:"):
            return _hh_dialogue(value, name)
        return [{"role": "assistant", "content": _fitting(value, name)}]
    messages = _messages(value, name)
    if messages[-1]["role"] != "assistant":
        raise bad_cell(name, "it does not end with a message of the assistant")
    return messages


def _hh_dialogue(value: str, name: str) -> list[dict[str, str]]:
    """The turns of HH-RLHF: "\\n\\nHuman: …\\n\\nAssistant: …"."""
    _, *parts = _TURN.split(_fitting(value, name))
    turns = [
        {"role": _HH_ROLES[role], "content": said}
        for role, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1]["role"] != "assistant":
        raise bad_cell(name, "it does not end with a turn of the assistant")
    return turns


def _asked(prompt: Any, before: Any, name: str, before_name: str) -> list[dict[str, str]]:
    """The messages of the prompt's own column; `before` is written by our export only."""
    if prompt is None or prompt == "":
        return []
    if not isinstance(prompt, str):
        return _messages(prompt, name)
    earlier = _messages(before, before_name) if before else []
    text = last_message(_fitting(prompt, name), earlier)
    return [*earlier, {"role": "user", "content": text}]


def _messages(value: Any, name: str) -> list[dict[str, str]]:
    try:
        chat = read_chat(value)
    except BadCell as error:
        raise bad_cell(name, str(error)) from None
    if not chat:
        raise bad_cell(name, f"it holds {kind_of(value)}, neither text nor a chat")
    return [_message(m, name) for m in chat]


def _message(message: Message, name: str) -> dict[str, str]:
    if message.text is None or message.calls_tool:
        raise bad_cell(name, "a message of its chat has no text, or calls a tool")
    return {"role": message.role, "content": _fitting(message.text, name)}


def _fitting(text: str, name: str) -> str:
    if len(text) > MAX_CHARS:
        raise bad_cell(name, f"it has more than {MAX_CHARS:,} characters")
    return text
