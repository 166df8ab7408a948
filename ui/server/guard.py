"""ASGI middleware that checks Host and Origin of every request; Gradio itself checks neither.

Without it any website that a person visits could read runs and start training on their machine,
through cross-site requests or DNS rebinding.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import os
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

from gradio.context import LocalContext
from starlette.types import ASGIApp, Receive, Scope, Send

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Refuses unknown hosts with 400, changing requests from other origins with 403.

    With `auth`, tools (MCP) need the user and the password as HTTP Basic authorization, else 401.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Iterable[str] = (),
        suffixes: Iterable[str] = (),
        auth: tuple[str, str] | None = None,
    ):
        self.app = app
        self._authorization = None
        if auth is not None:
            self._authorization = b"Basic " + base64.b64encode(":".join(auth).encode())
        self.hosts = frozenset(h.lower() for h in hosts)
        self.suffixes = tuple(s.lower() for s in suffixes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await _refuse(send, *refusal)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and text of the refusal; None where the request is allowed."""
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        host = headers.get("host", "")
        if not self.allows(host):
            return 400, "This server has another host name. Open the address that it printed."
        changes = scope.get("method", "GET") not in SAFE_METHODS
        if changes and not same_origin(headers.get("origin"), headers.get("sec-fetch-site"), host):
            return 403, "Requests from other websites are refused."
        is_tool = "mcp" in scope["path"].lower().split("/")
        if is_tool and not self.knows(headers.get("authorization", "")):
            return 401, "Tools need the server's user and password as HTTP Basic authorization."
        return None

    def knows(self, authorization: str) -> bool:
        """Whether there is no password, or this is the right one.

        Gradio's login guards pages and endpoints, but not the tools (MCP).
        """
        return self._authorization is None or hmac.compare_digest(
            authorization.encode("latin-1", "replace"), self._authorization
        )

    def allows(self, host: str) -> bool:
        """Whether the Host is an IP address or a known name.

        An IP address is safe: DNS cannot rebind it to another machine.
        """
        name = (urlsplit(f"//{host}").hostname or "").lower()
        try:
            ipaddress.ip_address(name)
            return True
        except ValueError:
            return name in self.hosts or any(name.endswith(s) for s in self.suffixes)


def same_origin(origin: str | None, fetch_site: str | None, host: str) -> bool:
    """Whether a request comes from this server's own pages, or from a program.

    Programs send neither header. Browsers send Origin with every changing request.
    """
    if fetch_site in ("cross-site", "same-site"):
        return False
    return origin is None or urlsplit(origin).netloc.lower() == host.lower()


async def _refuse(send: Send, status: int, text: str) -> None:
    body = text.encode()
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


def own_hosts(host: str) -> set[str]:
    """The names by which this server may be addressed."""
    names = {"localhost", host}
    # Open to the whole network: allow this machine's own names.
    if host in ("0.0.0.0", "::", ""):
        names |= {socket.gethostname(), socket.getfqdn()}
    if space := os.environ.get("SPACE_HOST"):
        names |= set(space.split(","))
    return {n.lower() for n in names if n}


def visitor() -> str | None:
    """Who sent the request: the login name, else the address. None outside a request."""
    request = LocalContext.request.get(None)
    if request is None:
        return None
    name = getattr(request, "username", None)
    if name:
        return f"name {name}"
    return f"address {request.client.host}" if request.client else "address unknown"
