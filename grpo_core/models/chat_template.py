"""Chats as text. Whoever made the model wrote its chat template; a helper process runs it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from grpo_core.child_process import (
    KILL_AFTER,
    MAX_ANSWER_BYTES,
    Child,
    ChildFailed,
    script_child,
)
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError

Message = dict[str, Any]  # role and content
Tools = Sequence[Mapping[str, Any]]  # each as JSON Schema, see transformers' get_json_schema

SECONDS = 5.0  # for one chat; an ordinary one takes milliseconds
_MODEL_HINT = "Choose another model, or correct its chat template."
_TOO_LONG = "a prompt has {} characters in the chat template, too many to render. Shorten it."
log = logging.getLogger("grpo_studio")


class ChatRefused(StudioError):
    """The template called raise_exception. The text is the template's own, in one line."""


class ChatTooLong(StudioError):
    """The chat has more text than any model reads."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    add_generation_prompt: bool,
    tools: Tools = (),
) -> str:
    """The chat as the tokenizer's template writes it: the text of `apply_chat_template`.

    Raises ChatRefused, ChatTooLong, or InvalidConfig on `model.name` for a template with a fault:
    one that needs too much time, memory or text, or that the sandbox forbids.
    """
    if sum(len(str(m.get("content"))) for m in messages) > MAX_ANSWER_BYTES:
        raise ChatTooLong(_TOO_LONG.format(f"more than {MAX_ANSWER_BYTES:,}"))
    template = _template(tokenizer, tools)
    # As apply_chat_template does: what is None is left out.
    given = [{k: v for k, v in m.items() if v is not None} for m in messages]
    names = tokenizer.special_tokens_map
    arguments = [template, given, add_generation_prompt, names, [*tools] or None]
    question = {"do": "render", "arguments": arguments, "seconds": SECONDS}
    try:
        kind, value = _template_process().request(question, SECONDS + KILL_AFTER, _read)
    except ChildFailed as error:
        raise _template_fault(tokenizer, str(error)) from None
    if kind == "refused":
        raise ChatRefused(" ".join(value.split()).rstrip("."))
    if kind == "too_long":
        raise ChatTooLong(_TOO_LONG.format(f"{value:,}"))
    if kind == "null":
        raise _template_fault(tokenizer, value)
    return value


def _template(tokenizer: PreTrainedTokenizerBase, tools: Tools = ()) -> str:
    """The template for chats with these tools. Raises InvalidConfig if there are only others."""
    try:
        return tokenizer.get_chat_template(tools=[dict(tool) for tool in tools] or None)
    except ValueError as error:
        raise _template_fault(tokenizer, " ".join(str(error).split())[:300]) from None


def takes_tools(tokenizer: PreTrainedTokenizerBase, tools: Tools) -> bool:
    """Whether the template tells the model about its tools; most older ones do not."""
    name = tools[0]["function"]["name"]
    chat = [{"role": "user", "content": "?"}]
    try:
        return name in render(tokenizer, chat, True, tools)
    except ChatRefused:
        return False


def parsed_response(
    tokenizer: PreTrainedTokenizerBase, prefix: str, text: str, tools: Tools
) -> dict[str, Any]:
    """An answer as a message, by the tokenizer's own response template; {} if it does not parse.

    Whoever made the model wrote that template too, so the same helper process parses.
    """
    arguments = [getattr(tokenizer, "response_template", None), prefix, text, [*tools]]
    question = {"do": "parse", "arguments": arguments, "seconds": SECONDS}

    def read(answer: Any) -> dict[str, Any]:
        value = answer.get("value")
        return value if isinstance(value, dict) else {}

    try:
        return _template_process().request(question, SECONDS + KILL_AFTER, read)
    except ChildFailed:
        return {}


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text, without the begin and end tokens that the tokenizer may add."""
    text = text.encode("utf-8", "replace").decode()  # tokenizers refuse half a surrogate pair
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _read(answer: Any) -> tuple[str, Any]:
    """What an answer of the helper says: its kind and the value.

    ("text", the chat), ("refused", the template's words), ("too_long", characters), or ("null",
    why there is no text).
    """
    [(kind, value)] = answer["value"].items() if "value" in answer else answer.items()
    kinds = {"null": str, "text": str, "refused": str, "too_long": int}
    if not isinstance(value, kinds[kind]):
        raise ValueError(kind)
    return kind, value


def _template_fault(tokenizer: PreTrainedTokenizerBase, why: str) -> InvalidConfig:
    problem = f"its chat template cannot be rendered: {why.rstrip('.')}"
    return InvalidConfig([FieldProblem("model.name", tokenizer.name_or_path, problem, _MODEL_HINT)])


@lru_cache(maxsize=1)
def _template_process() -> Child:
    """The one helper of this process. It starts with the first chat that is rendered."""
    return script_child(Path(__file__).with_name("template_worker.py"))


# ---- system messages ----------------------------------------------------------------------------


def accepted(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[Message]:
    """The chat, with its system message before the first user message if the template needs that.

    Gemma's first template refuses a system message, and some templates drop it unseen. Gemma's own
    later templates put it before the first user message, with an empty line between.
    """
    roles = [m.get("role") for m in messages]
    first = next((i for i, role in enumerate(roles) if role != "system"), 0)
    if not first or roles[first] != "user" or _takes_system(tokenizer):
        return messages
    user = messages[first]
    contents = [str(m["content"]).strip() for m in messages[:first]]
    merged = "\n\n".join([*contents, str(user["content"])])
    return [{**user, "content": merged}, *messages[first + 1 :]]


_system_roles: dict[str, bool] = {}  # template -> whether it writes a system message


def _takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    template = _template(tokenizer)
    if template not in _system_roles:
        marker = "grpo asks for this"
        chat = [{"role": "system", "content": marker}, {"role": "user", "content": "?"}]
        try:
            takes = marker in render(tokenizer, chat, True)
        except StudioError:
            takes = False
        _system_roles[template] = takes
        if not takes:
            log.warning(
                "The chat template of %s has no system role. "
                "Each system message is put before the first user message.",
                tokenizer.name_or_path,
            )
    return _system_roles[template]


# ---- what the prompt began for the policy -------------------------------------------------------

_LAST_TAG = re.compile(
    r"(?P<header>[|｜]>[A-Za-z]{0,20}\s*)?"  # of the turn, such as <|im_start|>assistant
    r"(?P<block>(?:<(?P<tag>[A-Za-z][\w:.-]{0,40})>"
    r"|(?P<mark><[|｜][A-Za-z_▁ ]{1,40}[|｜]>|\[[A-Z_]{1,40}\]|◁[A-Za-z_ ]{1,40}▷))"
    r"(?P<rest>[^<>\[\]◁▷]*))\Z"
)
# Whatever stands before it, a tag with one of these stems opens a block.
_BLOCK_STEMS = ("think", "thought", "reason", "answer", "solution", "scratchpad", "reflect")
# Other tags open one too, but not these: they begin a turn or a sequence, or have no end.
_NO_BLOCK = {
    "assistant", "user", "system", "human", "ai", "bot", "chatbot", "model", "gpt", "agent",
    "tool", "turn", "role", "header", "message", "reserved", "unused", "extra", "special", "s",
    "bos", "eos", "sot", "sep", "cls", "pad", "unk", "mask", "im", "inst", "fim", "pre", "suf",
    "mid", "br", "hr", "img", "input",
}  # fmt: skip


def opened_block(prompt: str) -> str:
    """The block that a prompt leaves open at its end, from its tag on; "" if there is none.

    Templates of reasoning models end in <think>, and plain prompts may as well. The policy
    continues inside the block, and what it writes makes sense only with the tag before it. Text may
    follow the tag only where a turn's header stands before it: elsewhere the prompt may talk about
    the tag.
    """
    match = _LAST_TAG.search(prompt)
    if match is None or (match["rest"].strip() and not match["header"]):
        return ""
    words = re.findall("[a-z]+", (match["tag"] or match["mark"]).lower())
    if not words or words[0] == "end":
        return ""
    if any(word.startswith(_BLOCK_STEMS) for word in words):
        return match["block"]
    # Marks such as <|assistant|> and [INST] begin turns. In vector<int> there is no tag.
    before = prompt[: match.start("block")][-1:]
    if match["mark"] or before.isalnum() or words in (["start"], ["begin"]):
        return ""
    return "" if _NO_BLOCK & set(words) else match["block"]
