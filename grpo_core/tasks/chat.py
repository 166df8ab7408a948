"""Chats in cells: messages of OpenAI's or ShareGPT's form, with text or parts as content."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo_core.tasks.cells import BadCell, cell_text, kind_of

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
}
TEXT_PARTS = (None, "text", "input_text", "output_text")
# A list of messages that Python printed, as pandas writes it into a CSV file.
_PRINTED = re.compile(r"\s*\[?\s*\{[^{}]{0,200}'(?:role|from)'\s*:\s*'(\w+)'")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat. text: None if it has no content."""

    role: str  # system, user, assistant or tool
    text: str | None
    calls_tool: bool


def read_chat(value: Any) -> list[Message] | None:
    """The messages in a cell of JSON types; None if it is no chat.

    Reads a list of {"role", "content"} or {"from", "value"}, one such message, {"messages": a
    list}, a user's content as a list of parts, and each of them as JSON text. Raises BadCell for a
    chat with images, unknown roles or tool calls that the model would not see.
    """
    if isinstance(value, str):
        return _from_text(value)
    value = _unwrapped(value)
    if not isinstance(value, list) or not all(isinstance(m, Mapping) for m in value):
        return None
    if value and all(_is_part(m) for m in value):
        return [Message("user", _content(value, 1), False)]
    if not any(_role(m) is not None for m in value):
        return None
    return [_message(m, number) for number, m in enumerate(value, 1)]


def _from_text(text: str) -> list[Message] | None:
    """A chat as JSON text. Text that only looks like one to a person stays text."""
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        printed = _PRINTED.match(text)
        if printed and printed[1].lower() in ROLES:
            raise BadCell("it holds a chat as Python prints it, which is not JSON") from None
        return None
    value = _unwrapped(value)
    if not isinstance(value, list) or not value or not all(isinstance(m, dict) for m in value):
        return None
    is_chat = all(
        str(_role(m)).strip().lower() in ROLES and (m.keys() & {"content", "value", "tool_calls"})
        for m in value
    )
    has_text = any(m.get("type") in TEXT_PARTS[1:] and "text" in m for m in value)
    is_parts = has_text and all(_is_part(m) for m in value)
    return read_chat(value) if is_chat or is_parts else None


def _unwrapped(value: Any) -> Any:
    """The list in {"messages": a list}, any other object as a list of one, or the value itself."""
    if not isinstance(value, Mapping):
        return value
    inner = value.get("messages", value.get("conversations"))
    return inner if isinstance(inner, list) and inner else [value]


def _role(message: Mapping[str, Any]) -> Any:
    """The role of a message of either form; None for none.

    A Parquet file with messages of both forms has null under the name that a message does not use.
    """
    role = message.get("role")
    return message.get("from") if role is None else role


def _is_part(message: Mapping[str, Any]) -> bool:
    """Whether an object is a part of a message's content: {"type": "text", "text": …}."""
    return _role(message) is None and isinstance(message.get("type"), str) and len(message) > 1


def _message(message: Mapping[str, Any], number: int) -> Message:
    role = _role(message)
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise BadCell(f"message {number} of its chat has the role {role!r:.60}")
    content = message.get("content")
    content = message.get("value") if content is None else content
    calls = bool(message.get("tool_calls") or message.get("function_call"))
    if not calls and not message.keys() & {"content", "value"}:
        raise BadCell(f"message {number} of its chat has no content")
    return Message(known, _content(content, number), calls)


def _content(content: Any, number: int) -> str | None:
    """The text of a message. Parts are joined as they are, by a line break between two words."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, (bool, int, float)):
        return cell_text(content)
    parts = [content] if isinstance(content, Mapping) else content
    texts = [_part_text(part, number) for part in parts if part is not None]
    joined = ""
    for text in filter(None, texts):
        apart = not joined or joined[-1].isspace() or text[0].isspace()
        joined += text if apart else f"\n{text}"
    return joined


def _part_text(part: Any, number: int) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise BadCell(f"message {number} of its chat holds {kind_of(part)}")
    kind, text = part.get("type"), part.get("text")
    text = part.get("content") if text is None else text
    more = kind is None and sum(v is not None for v in part.values()) > 1  # such as an image
    if kind not in TEXT_PARTS or not isinstance(text, str) or more:
        what = f"a part of type {kind!r:.60}" if kind is not None else kind_of(part)
        raise BadCell(f"message {number} of its chat holds {what}, which is not text")
    return text
