"""Messages of other trainers: prompts split at their template's tokens, completions into turns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.records.formats.rows import loaded, text
from grpo_core.types import Turn, TurnRole

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "model": "assistant", "ai": "assistant",
    "tool": "tool", "environment": "tool", "ipython": "tool", "function": "tool",
}  # fmt: skip
# How a template writes one message: (beginning of the text, a message, the beginning of an answer).
TEMPLATES = tuple(
    (re.compile(begin), re.compile(message, re.DOTALL), re.compile(end))
    for begin, message, end in (
        (  # ChatML: Qwen, SmolLM and others
            r"",
            r"<\|im_start\|>(\w{1,20})\n((?:(?!<\|im_(?:start|end)\|>).)*)<\|im_end\|>\n?",
            r"(?:<\|im_start\|>assistant\n(?:<think>\n*(?:</think>\n*)?)?)?",
        ),
        (  # Llama 3
            r"(?:<\|begin_of_text\|>)?",
            r"<\|start_header_id\|>(\w{1,20})<\|end_header_id\|>\n\n"
            r"((?:(?!<\|(?:start_header_id|eot_id)\|>).)*)<\|eot_id\|>",
            r"(?:<\|start_header_id\|>assistant<\|end_header_id\|>\n\n)?",
        ),
        (  # Gemma
            r"(?:<bos>)?",
            r"<start_of_turn>(\w{1,20})\n((?:(?!<(?:start|end)_of_turn>).)*)<end_of_turn>\n?",
            r"(?:<start_of_turn>model\n)?",
        ),
    )
)
# ChatML whose tokens were left out when it was decoded: sure only with one question in it.
_BARE = re.compile(r"(?:system\n(?P<system>.*?)\n)?user\n(?P<user>.*)\nassistant\n", re.DOTALL)
_BARE_ROLE = re.compile(r"(?:^|\n)(?:system|user|assistant|tool)\n")

Asked = tuple[str, list[dict[str, str]]]  # the prompt, and the messages before it


def asked(value: Any) -> Asked:
    """A prompt as its last message and those before it.

    value: messages, or the text that the model read. Text whose template is not told surely stays
    as it is.
    """
    chat = messages(value) if isinstance(value, list) else templated(text(value))
    if not chat:
        return text(value), []
    *before, last = chat
    return said(last), [{"role": role(m), "content": said(m)} for m in before]


def templated(prompt: str) -> list[dict[str, str]]:
    """The messages in a text that a chat template made; [] if that is not sure."""
    for begin, message, end in TEMPLATES:
        at, chat = begin.match(prompt), list[dict[str, str]]()
        place = at.end() if at else 0
        while found := message.match(prompt, place):
            if found[1] not in ROLES:
                break
            chat.append({"role": ROLES[found[1]], "content": found[2]})
            place = found.end()
        if chat and end.fullmatch(prompt, place):
            return chat
    bare = _BARE.fullmatch(prompt)
    if bare is None or len(_BARE_ROLE.findall(prompt)) != 2 + (bare["system"] is not None):
        return []
    chat = [{"role": "user", "content": bare["user"]}]
    if bare["system"] is not None:
        chat.insert(0, {"role": "system", "content": bare["system"]})
    return chat


def messages(value: Any) -> list[dict[str, Any]]:
    """The messages in a list of objects with roles; [] for anything else."""
    chat = value if isinstance(value, list) else []
    is_chat = all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in chat)
    return chat if is_chat else []


def role(message: Mapping[str, Any]) -> str:
    return ROLES.get(str(message.get("role")).lower(), "user")


def said(message: Mapping[str, Any]) -> str:
    """What a message says, with its reasoning before it and its tool calls after it."""
    reasoning = message.get("reasoning_content")
    parts = [f"<think>\n{reasoning}\n</think>"] if isinstance(reasoning, str) and reasoning else []
    if content := _content(message.get("content")):
        parts.append(content)
    for call in _calls(message):
        shown = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
        parts.append(f"<tool_call>\n{shown}\n</tool_call>")
    return "\n".join(parts)


def _content(content: Any) -> str:
    if not isinstance(content, list):
        return text(content)
    parts = (
        part.get("text", f"[{part.get('type', 'part')}]") if isinstance(part, dict) else text(part)
        for part in content
    )
    return "\n".join(map(text, parts))


@dataclass(frozen=True, slots=True)
class _Call:
    id: str
    name: str
    arguments: Any

    @property
    def written(self) -> str:
        return text(self.arguments)


def _calls(message: Mapping[str, Any]) -> list[_Call]:
    """The tool calls of a message, of OpenAI's form or flat, and as JSON text."""
    found, calls = message.get("tool_calls"), list[_Call]()
    for call in found if isinstance(found, list) else []:
        call = loaded(call)
        if not isinstance(call, dict):
            continue
        function = call.get("function")
        function = function if isinstance(function, dict) else call
        arguments = loaded(function.get("arguments"))
        calls.append(_Call(text(call.get("id")), text(function.get("name")), arguments))
    return calls


@dataclass(frozen=True, slots=True)
class Answered:
    """A completion in messages. turns: none if it is one message of the policy."""

    text: str
    turns: tuple[Turn, ...] = ()


def answered(chat: Sequence[Mapping[str, Any]], spans: Sequence[tuple[int, int]] = ()) -> Answered:
    """Messages after the prompt as one completion.

    spans: first token and number of tokens of each message, where they are known.
    """
    calls, turns = list[_Call](), list[Turn]()
    for i, message in enumerate(chat):
        first, count = spans[i] if spans else (0, 0)
        what = said(message)
        if role(message) == "assistant":
            calls = _calls(message)
            turns.append(Turn(TurnRole.ACTION, what, first, count))
            continue
        call = _answered_call(message, calls)
        calls = [c for c in calls if c is not call]
        name = text(message.get("name")) or (call.name if call else "")
        written = call.written if call else ""
        turns.append(Turn(TurnRole.OBSERVATION, what, first, count, name, written))
    whole = "\n".join(turn.text for turn in turns)
    return Answered(whole, tuple(turns) if len(turns) > 1 else ())


def completed(value: Any) -> Answered:
    """A completion. value: its messages, or its text."""
    chat = messages(value)
    return answered(chat) if chat else Answered(text(value))


def _answered_call(message: Mapping[str, Any], calls: Sequence[_Call]) -> _Call | None:
    """The call that a tool's message answers: by its id, else the first that is open."""
    if role(message) != "tool":
        return None
    wanted = message.get("tool_call_id")
    by_id = next((c for c in calls if wanted and c.id == wanted), None)
    return by_id or (calls[0] if calls else None)


def answer_starts(chats: Sequence[Sequence[Mapping[str, Any]]]) -> int:
    """Where the completions of a group begin in its conversations: the last answer to a question
    before which all are alike."""
    first = chats[0]
    starts = [
        i
        for i, message in enumerate(first)
        if role(message) == "assistant" and (i == 0 or role(first[i - 1]) in ("user", "system"))
    ]
    shared = [i for i in starts if all(chat[:i] == first[:i] for chat in chats)]
    return max(shared, default=0 if starts else len(first))
