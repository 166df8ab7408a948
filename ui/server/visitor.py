"""Who sends a request: one address stands for one visitor, when the server's time is shared."""

from __future__ import annotations

import ipaddress
import os
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from gradio.context import LocalContext
from starlette.requests import Request
from starlette.types import Scope

UNKNOWN = "unknown"
# A visitor usually owns a whole network of this length, and can send from any address in it.
IPV6_PREFIX = 64


@dataclass(slots=True)
class RequestState:
    """One request, for the functions that answer it.

    status: of an error that the caller made. Gradio's routes would answer with 500.
    """

    address: str
    status: int | None = None


request_state: ContextVar[RequestState | None] = ContextVar("request_state", default=None)


def address(scope: Scope) -> str:
    """The sender's address; of IPv6 its network.

    A Space is reached through proxies of Hugging Face only. They append the address of whoever
    sent a request to X-Forwarded-For. Everything to the left of it may be invented.
    """
    client = scope.get("client")
    host = client[0] if client else UNKNOWN
    if os.environ.get("SPACE_ID"):
        lines = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        hops = b",".join(lines).decode("latin-1").split(",")
        public = (hop.strip() for hop in reversed(hops) if _is_public(hop.strip()))
        host = next(public, host)
    return _network(host)


def _is_public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def _network(host: str) -> str:
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(parsed, ipaddress.IPv4Address):
        return host
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), IPV6_PREFIX), strict=False))


def visitor() -> str | None:
    """Who sent the request: the login name, else the address. None outside a request."""
    request = LocalContext.request.get(None)
    if request is None:
        return None
    if name := getattr(request, "username", None):
        return f"name {name}"
    # Not `request_state`: a queued call runs in a task that was started for another request.
    sent = request.request
    return f"address {address(sent.scope) if sent is not None else UNKNOWN}"


def signed_in(scope: Scope) -> bool:
    """Whether the server has no login, or Gradio's login accepts the request's cookies."""
    app: Any = scope.get("app")
    if getattr(app, "auth", None) is None:
        return True
    cookies = Request(scope).cookies
    return any(
        app.tokens.get(cookies.get(f"access-token-{kind}{app.cookie_id}")) is not None
        for kind in ("", "unsecure-")
    )
