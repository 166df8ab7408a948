"""Tool calls in what a policy wrote, in the formats of model families; pure functions.

A call that cannot be read is a call with an error: the policy reads it as its observation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_core.child_process import finite_number, one_line

MAX_WRITTEN = 2_000  # characters of a call that are kept where it does not parse


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call. arguments: by name; written: the call as text, which is recorded."""

    tool: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    written: str = ""
    error: str = ""  # why it cannot be made


@dataclass(frozen=True, slots=True)
class Parsed:
    """What the policy wrote without its calls, and the calls in order."""

    said: str
    calls: tuple[ToolCall, ...] = ()


Schemas = Mapping[str, Mapping[str, Any]]  # tool -> name, description, parameters
Parse = Callable[[str, Schemas], Parsed]


def bundled_calls(text: str, schemas: Schemas) -> Parsed:
    """<tool>34*57</tool>: the text is the one argument of the only tool, or a JSON object.

    Sampling ends with the first </tool>, so there is at most one call, at the end.
    """
    body, closing, _ = text.rpartition("</tool>")
    if not closing:
        return Parsed(text)
    said, opening, inner = body.rpartition("<tool>")
    if not opening:
        return Parsed("", (_unread(body, "a call is written <tool>…</tool>"),))
    if len(schemas) == 1 and not inner.lstrip().startswith("{"):
        [(name, schema)] = schemas.items()
        parameters = schema.get("parameters", {}).get("properties", {})
        if len(parameters) == 1:
            [(parameter, kind)] = parameters.items()
            return Parsed(said, (_of_text(name, parameter, inner, kind.get("type")),))
    return Parsed(said, (_of_json(inner, schemas, ("arguments",)),))


def hermes_calls(text: str, schemas: Schemas) -> Parsed:
    """<tool_call>{"name": …, "arguments": {…}}</tool_call>, any number of them. Hermes and Qwen."""
    said, calls = [], []
    while True:
        before, opening, rest = text.partition("<tool_call>")
        said.append(before)
        if not opening:
            return Parsed("".join(said).strip() if calls else text, tuple(calls))
        inner, closing, text = rest.partition("</tool_call>")
        if closing:
            calls.append(_of_json(inner, schemas, ("arguments",)))
        else:
            calls.append(_unread(inner, "there is no </tool_call>"))


def llama_calls(text: str, schemas: Schemas) -> Parsed:
    """{"name": …, "parameters": {…}} as the whole answer. Llama 3.1 and later."""
    inner = text.strip().removeprefix("<|python_tag|>").strip()
    if not inner.startswith("{") or '"name"' not in inner:
        return Parsed(text)
    return Parsed("", (_of_json(inner, schemas, ("parameters", "arguments")),))


def calls_of_message(message: Mapping[str, Any], schemas: Schemas) -> Parsed:
    """The calls of a message as a tokenizer's response template parses it."""
    calls = []
    for call in message.get("tool_calls") or []:
        function = call.get("function", call) if isinstance(call, Mapping) else {}
        calls.append(_checked(function, ("arguments",), json.dumps(function), schemas))
    said = message.get("content")
    return Parsed(said if isinstance(said, str) else "", tuple(calls))


def arguments_as_text(call: ToolCall) -> str:
    """What is recorded: the arguments as JSON, or the call as it was written."""
    text = call.written if call.error else json.dumps(call.arguments, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()  # JSON can state half a surrogate pair


def _of_text(tool: str, parameter: str, text: str, kind: Any) -> ToolCall:
    """A call with one argument, converted to the type of its parameter."""
    if kind in ("integer", "number", "boolean"):
        try:
            value = _json(text)
        except (ValueError, RecursionError):
            return ToolCall(tool, {}, text[:MAX_WRITTEN], f"{parameter} is not a JSON {kind}")
    else:
        value = text
    return ToolCall(tool, {parameter: value}, text[:MAX_WRITTEN])


def _of_json(text: str, schemas: Schemas, names: Sequence[str]) -> ToolCall:
    try:
        data = _json(text.strip())
    except (ValueError, RecursionError) as error:
        return _unread(text, f"it is not JSON ({error})")
    return _checked(data, names, text, schemas)


def _checked(data: Any, names: Sequence[str], text: str, schemas: Schemas) -> ToolCall:
    """The call that an object states. names: where its arguments may stand."""
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        return _unread(text, "it names no tool")
    tool = one_line(data["name"], 100)
    if tool not in schemas:
        known = ", ".join(schemas)
        return ToolCall(
            tool, {}, text[:MAX_WRITTEN], f"there is no tool {tool!r}. There are: {known}"
        )
    arguments = next((data[name] for name in names if name in data), {})
    if isinstance(arguments, str):  # some templates write them as text
        try:
            arguments = _json(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not isinstance(arguments, Mapping):
        return ToolCall(tool, {}, text[:MAX_WRITTEN], "its arguments are not a JSON object")
    missing = [
        name
        for name in schemas[tool].get("parameters", {}).get("required", [])
        if name not in arguments
    ]
    if missing:
        return ToolCall(tool, {}, text[:MAX_WRITTEN], f"it lacks {', '.join(missing)}")
    return ToolCall(tool, dict(arguments), text[:MAX_WRITTEN])


def _json(text: str) -> Any:
    """Raises ValueError or RecursionError; a number that is not finite is no JSON."""
    return json.loads(text, parse_constant=finite_number, parse_float=finite_number)


def _unread(text: str, why: str) -> ToolCall:
    return ToolCall("", {}, text[:MAX_WRITTEN], f"the call cannot be read: {why}")
