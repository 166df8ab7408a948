"""The process that holds sessions of an OpenEnv server: a connection for each instance.

It calls one address, which the operator named, follows no redirects and reads bounded messages.
Nothing that it reads is run. What the server sends are texts and numbers, or an error. The token of
a server that asks for one is in this process's environment alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from grpo_core.child_process import NoValue, end_with_parent, finite_number, one_line, serve

MAX_MEMORY = 2 << 30
MAX_MESSAGE_BYTES = 1 << 20
MAX_TEXT_CHARS = 20_000  # of an observation
CONNECT_SECONDS = 10.0
MESSAGE_SECONDS = 600.0  # the time limit of a call ends it before
NO_ROOM = "the server has no room for so many sessions at once"
TOKEN = "GRPO_OPENENV_TOKEN"
STEP = "step"  # the one tool of a server whose actions are no tool calls


class Session:
    """One connection, which is one instance on the server."""

    def __init__(self, url: str, token: str = "") -> None:
        """Raises NoValue where the server does not answer."""
        from websockets.exceptions import (  # pyright: ignore[reportMissingImports]
            WebSocketException,
        )
        from websockets.sync.client import connect  # pyright: ignore[reportMissingImports]

        parts = urlsplit(url)
        is_safe = parts.scheme in ("https", "wss")
        where = f"{'wss' if is_safe else 'ws'}://{parts.netloc}{parts.path.rstrip('/')}/ws"
        address = str(parts.hostname), parts.port or (443 if is_safe else 80)
        self._errors = (OSError, WebSocketException, EOFError)
        try:
            # With a socket of its own it follows no redirect to another machine.
            sock = socket.create_connection(address, CONNECT_SECONDS)
            self._connection = connect(
                where,
                sock=sock,
                open_timeout=CONNECT_SECONDS,
                close_timeout=1,
                ping_interval=None,
                max_size=MAX_MESSAGE_BYTES,
                proxy=None,
                additional_headers=_headers(token),
            )
        except (*self._errors, ValueError) as error:
            raise NoValue(f"the server does not answer ({_reason(error)})") from None
        self.is_over = False
        self.reward = 0.0
        self._token = token

    def ask(self, kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """The data of the answer to a message. Raises NoValue for an error."""
        try:
            with contextlib.suppress(*self._errors):  # a full server says so, then hangs up
                self._connection.send(json.dumps({"type": kind, "data": data}))
            answer = json.loads(
                self._without_token(self._connection.recv(MESSAGE_SECONDS)),
                parse_constant=finite_number,
                parse_float=finite_number,
            )
            found = answer["data"]
            if answer["type"] == "error":
                raise NoValue(_refusal(found))
            if not isinstance(found, dict):
                raise TypeError
        except self._errors as error:
            raise NoValue(f"the connection to the server broke ({_reason(error)})") from None
        except (ValueError, LookupError, TypeError, RecursionError):
            raise NoValue("the server wrote something that is not an answer") from None
        return found

    def observe(self, kind: str, data: Mapping[str, Any]) -> str:
        """The text of the observation that a message brings; its reward is added to the sum."""
        found = self.ask(kind, data)
        self.is_over = bool(found.get("done"))
        reward = found.get("reward")
        if isinstance(reward, int | float) and math.isfinite(reward):
            self.reward += reward
        observation = found.get("observation")
        text = _text(observation if isinstance(observation, dict) else {})
        if self.is_over and kind == STEP:
            text = f"{text}\nThe episode is over.".strip()
        return text

    def _without_token(self, message: str | bytes) -> str:
        """A server that repeats its token must not bring it into the record."""
        text = message if isinstance(message, str) else message.decode()
        return text.replace(self._token, "(token)") if self._token else text

    def close(self) -> None:
        self._connection.close()


class Worker:
    """The sessions of this process, by a number."""

    def __init__(self, url: str, token: str = "") -> None:
        self._url, self._token = url, token
        self._sessions: dict[int, Session] = {}

    def describe(self) -> list[dict[str, Any]]:
        """The server's tools: those that it lists, else one, `step`, with its actions' fields."""
        import httpx

        session = Session(self._url, self._token)
        try:
            asked = {"jsonrpc": "2.0", "method": "tools/list", "params": {}, "id": 1}
            result = session.ask("mcp", asked).get("result")
            listed = result.get("tools") if isinstance(result, dict) else None
        except NoValue:  # a server of an earlier version
            listed = None
        finally:
            session.close()
        if listed:
            return [
                _schema(
                    t["name"],
                    t.get("description"),
                    t.get("input_schema") or t.get("inputSchema", {}),
                )
                for t in listed
            ]
        parts = urlsplit(self._url)
        scheme = parts.scheme.replace("ws", "http")
        where = f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}/schema"
        try:
            with httpx.Client(trust_env=False, timeout=CONNECT_SECONDS) as client:
                found = client.get(where, headers=_headers(self._token))
                action = found.raise_for_status().json()["action"]
            return [_schema(STEP, action.get("description"), action)]
        except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError):
            raise NoValue("the server does not say which actions it takes") from None

    def forget(self) -> None:
        """End all sessions."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    def reset(self, number: int, makes: str, row: dict[str, Any], seed: int) -> str | None:
        """Begin a session; the text of its first observation. makes: the server's name, unused."""
        if (old := self._sessions.pop(number, None)) is not None:
            old.close()
        session = Session(self._url, self._token)
        columns = {name: value for name, value in row.items() if name != "prompt"}
        text = session.observe("reset", {**columns, "seed": seed % 2**31})
        self._sessions[number] = session
        return text or None

    def call(self, number: int, tool: str, arguments: dict[str, Any], seed: int) -> str:
        """What a step answers. seed: unused, the server has drawn its own in reset."""
        if (session := self._sessions.get(number)) is None:
            raise NoValue("its session did not start")
        if session.is_over:
            raise NoValue("the episode is over")
        if tool == STEP:
            return session.observe(STEP, arguments)
        return session.observe(
            STEP, {"type": "call_tool", "tool_name": tool, "arguments": arguments}
        )

    def reward(self, number: int, seed: int) -> float:
        """The sum of the rewards of an instance's steps."""
        if (session := self._sessions.get(number)) is None:
            raise NoValue("its session did not start")
        return session.reward


def _headers(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _schema(name: str, description: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's schema without what the server needs for itself."""
    properties = {k: v for k, v in parameters.get("properties", {}).items() if k != "metadata"}
    kept = {k: parameters[k] for k in ("required", "$defs") if k in parameters}
    return {
        "name": name,
        "description": str(description or "Act in the environment."),
        "parameters": {"type": "object", "properties": properties, **kept},
    }


def _text(observation: Mapping[str, Any]) -> str:
    """An observation as a policy reads it: its one text, or JSON. Raises NoValue for an error."""
    left = {k: v for k, v in observation.items() if k not in ("done", "reward", "metadata")}
    if "tool_name" in left:  # of a tool call
        if error := left.get("error"):
            raise NoValue(
                one_line(str(error.get("message") if isinstance(error, dict) else error), 300)
            )
        left = {"result": _result(left.get("result"))}
    left = {k: v for k, v in left.items() if v not in (None, "")}
    values = [*left.values()]
    text = values[0] if len(values) == 1 and isinstance(values[0], str) else ""
    if left and not text:
        text = json.dumps(left, ensure_ascii=False)
    if len(text) > MAX_TEXT_CHARS:
        raise NoValue(f"its observation has {len(text):,} characters; {MAX_TEXT_CHARS:,} are read")
    return text.encode("utf-8", "replace").decode()


def _result(result: Any) -> Any:
    """What a tool returned, without the envelope of the protocol."""
    if isinstance(result, dict) and isinstance(result.get("content"), list):
        texts = [c["text"] for c in result["content"] if isinstance(c, dict) and "text" in c]
        if result.get("is_error") or result.get("isError"):
            raise NoValue(one_line("\n".join(map(str, texts)), 300) or "the tool failed")
        if texts:
            return "\n".join(map(str, texts))
    if isinstance(result, dict) and "data" in result:
        result = result["data"]
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)


def _refusal(data: Any) -> str:
    code = data.get("code") if isinstance(data, dict) else None
    if code == "CAPACITY_REACHED":
        return f"{NO_ROOM}: it takes {data.get('max_sessions')}. Let it take more"
    message = data.get("message") if isinstance(data, dict) else data
    return f"the server: {one_line(str(message), 300)}"


def _reason(error: BaseException) -> str:
    return one_line(str(error), 150) or type(error).__name__


if __name__ == "__main__":
    end_with_parent()  # a session that waits for the server must not outlive a killed run
    worker = Worker(sys.argv[1], os.environ.get(TOKEN, ""))
    serve(
        {
            "describe": worker.describe,
            "forget": worker.forget,
            "reset": worker.reset,
            "call": worker.call,
            "reward": worker.reward,
        },
        MAX_MEMORY,
    )
