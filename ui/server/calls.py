"""Reads the JSON of a request before Gradio does, so that Gradio opens only what was judged."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import orjson
from starlette.types import Scope

from ui.server.guard import Refusal, read_headers

SHOW = "/studio/show"  # our own route, see refresh.py
CALLS = ("/gradio_api/run/", "/gradio_api/api/", "/gradio_api/call/", "/gradio_api/queue/join")
# The fields of Gradio's requests that the page and the clients send.
FIELDS = {
    "data": list,
    "fn_index": int,
    "session_hash": str,
    "event_id": str,
    "event_data": object,
    "trigger_id": int,
}
MAX_NAME = 200  # characters of a session or an event


def read_call(scope: Scope, body: bytes) -> dict[str, Any]:
    """The JSON of a request, checked. Raises Refusal."""
    path = scope["path"]
    if path != SHOW:  # our own route takes JSON under any content type
        kind = read_headers(scope).get("content-type", "application/json")
        if kind.partition(";")[0].strip().lower() != "application/json":
            raise Refusal(415, "Send JSON: Content-Type application/json.")
    try:
        content = orjson.loads(body)
    except ValueError:
        raise Refusal(400, "The body is not JSON in UTF-8 with finite numbers.") from None
    if not isinstance(content, dict):
        raise Refusal(400, "The body is not a JSON object.")
    if path.startswith(CALLS):
        content = _fields(content)
        _check_function(scope, content)
    try:
        orjson.dumps(content)
    except TypeError:
        raise Refusal(400, "The JSON is nested too deeply.") from None
    return content


def _fields(content: dict[str, Any]) -> dict[str, Any]:
    """The known fields of a call. Raises Refusal where one has another type."""
    known = {name: content[name] for name in FIELDS if content.get(name) is not None}
    for name, value in known.items():
        if not isinstance(value, FIELDS[name]) or isinstance(value, bool):
            raise Refusal(400, f"{name} has the wrong type.")
        if isinstance(value, str) and len(value) > MAX_NAME:
            raise Refusal(400, f"{name} is longer than {MAX_NAME} characters.")
    if "data" not in known:
        raise Refusal(400, "data is missing: the list of values.")
    return known


def function_of(scope: Scope, content: dict[str, Any]) -> Any:
    """The function of the page that a call names, by number or by name; None if there is none."""
    functions, path = scope["app"].get_blocks().fns, scope["path"]
    if "fn_index" in content and "/call/" not in path:
        return functions.get(content["fn_index"])
    name = path.rstrip("/").rpartition("/")[2]
    return next((fn for fn in functions.values() if fn.api_name == name), None)


def _check_function(scope: Scope, content: dict[str, Any]) -> None:
    """Raises Refusal for a function that is not there, or for another number of values."""
    function = function_of(scope, content)
    if function is None or function.fn is None:
        raise Refusal(404, "There is no such endpoint.")
    given, wanted = len(content["data"]), len(function.inputs)
    if given != wanted:
        raise Refusal(400, f"data has {given} values; this endpoint takes {wanted}.")


def slow(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, marked as one that may take long: a visitor runs few of these at once."""

    @wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        return function(*values, **named)

    call.__dict__["is_slow"] = True
    return call


def function_is_slow(scope: Scope, content: dict[str, Any]) -> bool:
    """Whether a call runs a function that is marked as slow."""
    return scope["path"].startswith(CALLS) and is_slow(function_of(scope, content).fn)


def is_slow(function: Any) -> bool:
    return getattr(function, "is_slow", False)
