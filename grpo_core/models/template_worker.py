"""A helper process that renders chat templates: programs of whoever made the model.

It runs as a script, because `-m` would import grpo_core.models, and torch with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from grpo_core.child_process import MAX_ANSWER_BYTES, ONE_THREAD, serve

MAX_MEMORY = 512 << 20  # bytes of address space; rendering an ordinary chat needs 190 MiB
MAX_JSON_BYTES = MAX_ANSWER_BYTES - 1024  # of a text; the rest of the answer is around it
MAX_ADDED_CHARS = 1 << 20  # by which a chat with a template may be longer than twice the chat


def render(
    template: str,
    messages: list[dict[str, Any]],
    add_generation_prompt: bool,
    names: Mapping[str, Any],
    tools: list[Any] | None = None,
) -> dict[str, Any]:
    """{"text": the chat}, {"refused": the template's own words}, {"too_long": characters}, or
    {"null": why there is no text}.

    names: the variables of the template besides the messages, such as bos_token.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        [text], _ = render_jinja_template(
            conversations=[messages],
            tools=tools,
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            **names,
        )
    except TemplateError as error:
        if type(error) is not TemplateError:  # the class of raise_exception, and of nothing else
            raise
        return {"refused": str(error)[:200]}
    num_chars = len(json.dumps([messages, tools]))
    if len(text) > 2 * num_chars + MAX_ADDED_CHARS:
        return {"null": f"it makes {len(text):,} characters of a chat of {num_chars:,}"}
    # JSON writes a character as at most twelve bytes.
    if 12 * len(text) > MAX_JSON_BYTES and len(json.dumps(text)) > MAX_JSON_BYTES:
        return {"too_long": len(text)}
    return {"text": text}


def parse(template: dict[str, Any], prefix: str, text: str, tools: list[Any]) -> dict[str, Any]:
    """An answer after a prompt as a message with role, content and tool_calls."""
    from transformers.utils.chat_parsing import parse_response

    return parse_response(text, template, prefix=prefix, tools=tools)


def warm_up() -> None:
    """Import what rendering needs, with one thread: the buffers of each count as memory."""
    os.environ.update(ONE_THREAD)
    import transformers.utils.chat_template_utils  # noqa: F401


if __name__ == "__main__":
    serve({"render": render, "parse": parse}, MAX_MEMORY, warm_up)
