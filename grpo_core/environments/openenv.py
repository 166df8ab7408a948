"""Servers of OpenEnv as environments: openenv:URL, named by the operator with --environments.

openenv:URL,VARIABLE for a server that asks for a token: it is in the environment variable alone, so
it is in no configuration, store or export.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from grpo_core.child_process import KILL_AFTER, Child, ChildFailed, module_child
from grpo_core.environments.environment import Environment
from grpo_core.environments.openenv_child import TOKEN
from grpo_core.errors import StudioError

PREFIX = "openenv:"
HELPER = "grpo_core.environments.openenv_child"
INSTALL = 'Install it: pip install "websockets>=15,<18".'
ASK_SECONDS = 20.0
MAX_TOOLS = 100


def server(name: str) -> Environment:
    """The environment of a server, asked for its tools. name: openenv:URL or openenv:URL,VARIABLE.

    Raises StudioError where there is no such server.
    """
    url, _, variable = name.removeprefix(PREFIX).partition(",")
    if not _is_address(url):
        raise StudioError(
            f"--environments {name!r} is no address of a server. "
            "Write it as openenv:http://127.0.0.1:8000."
        )
    if "," in name and (problem := _token_problem(url, variable)):
        raise StudioError(f"--environments {name!r}: {problem}")
    if find_spec("websockets") is None:
        raise StudioError(
            f"--environments {name!r}: the package websockets is not installed. {INSTALL}"
        )
    child = worker(url, variable)
    question = {"do": "describe", "arguments": [], "seconds": ASK_SECONDS}

    def read(answer: Any) -> list[dict[str, Any]] | str:
        return str(answer["null"]) if "null" in answer else [_tool(t) for t in answer["value"]]

    try:
        tools = child.request(question, ASK_SECONDS + KILL_AFTER, read)
    except ChildFailed as error:
        tools = str(error)
    finally:
        child.close()
    if isinstance(tools, str) or not 0 < len(tools) <= MAX_TOOLS:
        why = tools if isinstance(tools, str) else f"it has {len(tools)} tools"
        hint = "Start the server, or correct the URL."
        if "HTTP 401" in why or "HTTP 403" in why:
            hint = "Name the environment variable with its token: openenv:URL,VARIABLE."
        raise StudioError(f"--environments {name!r} cannot be used: {why}. {hint}")
    return Environment(
        PREFIX + url,
        url,
        tuple(tools),
        has_reward=True,
        helper=HELPER,
        token_variable=variable,
    )


def worker(url: str, variable: str) -> Child:
    """A process for sessions of a server. variable: the one with its token, or ""."""
    token = os.environ.get(variable, "") if variable else ""
    return module_child(HELPER, url, secrets={TOKEN: token} if token else None)


def _token_problem(url: str, variable: str) -> str:
    """Why the token cannot be sent; "" if it can."""
    if not variable.isidentifier():
        return f"{variable!r} is no name of an environment variable. Write openenv:URL,VARIABLE."
    token = os.environ.get(variable, "")
    if not token:
        return f"the environment variable {variable} is not set. Put the server's token into it."
    if not (token.isascii() and token.isprintable()) or " " in token:
        return f"the token in {variable} has characters that cannot be sent."
    parts = urlsplit(url)
    if parts.scheme in ("http", "ws") and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        return "a token is sent to another machine over https only. Write openenv:https://…"
    return ""


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    is_web = parts.scheme in ("http", "https", "ws", "wss") and bool(parts.hostname)
    return is_web and has_port and url.isprintable() and not any(c in url for c in " ,?#@<>\"'")


def _tool(schema: dict[str, Any]) -> dict[str, Any]:
    """A tool that a server describes. Raises ValueError for a name that could carry markup."""
    name = schema["name"]
    if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
        raise ValueError("no name")
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": str(schema["description"])[:2_000],
            "parameters": dict(schema["parameters"]),
        },
    }
