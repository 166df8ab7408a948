"""Who may talk to the server: ASGI middleware that checks Host and Origin, because Gradio itself answers any of them.

Without it any website that a person visits could read runs and start training on their machine (cross-site requests, DNS rebinding).
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

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Guard:
    """Refuses a Host that is not ours with 400, and a changing request from another origin with 403."""

    def __init__(
        self,
        app,
        hosts: Iterable[str] = (),
        suffixes: Iterable[str] = (),
        auth: tuple[str, str] | None = None,
    ):
        self.app = app
        self._authorization = (
            None if auth is None else b"Basic " + base64.b64encode(":".join(auth).encode())
        )
        self.hosts = frozenset(h.lower() for h in hosts)
        self.suffixes = tuple(s.lower() for s in suffixes)

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        host = headers.get("host", "")
        if not self.allows(host):
            await _refuse(
                send,
                400,
                "This host name is not one of this server's. Open the address that the server printed.",
            )
        elif scope.get("method", "GET") not in SAFE_METHODS and not same_origin(
            headers.get("origin"), headers.get("sec-fetch-site"), host
        ):
            await _refuse(send, 403, "Requests from other websites are refused.")
        elif "mcp" in scope["path"].lower().split("/") and not self.knows(
            headers.get("authorization", "")
        ):
            await _refuse(
                send, 401, "Tools want the server's user and password, as HTTP Basic authorization."
            )
        else:
            await self.app(scope, receive, send)

    def knows(self, authorization: str) -> bool:
        """Whether no password is asked for, or this is it. Gradio's login guards pages and endpoints, but not the tools beside them."""
        return self._authorization is None or hmac.compare_digest(
            authorization.encode("latin-1", "replace"), self._authorization
        )

    def allows(self, host: str) -> bool:
        """A number cannot be rebound to another machine, so every IP address is allowed; names must be known."""
        name = (urlsplit(f"//{host}").hostname or "").lower()
        try:
            ipaddress.ip_address(name)
            return True
        except ValueError:
            return name in self.hosts or any(name.endswith(s) for s in self.suffixes)


def same_origin(origin: str | None, fetch_site: str | None, host: str) -> bool:
    """Programs send neither header; browsers send Origin with every changing request."""
    if fetch_site in ("cross-site", "same-site"):
        return False
    return origin is None or urlsplit(origin).netloc.lower() == host.lower()


async def _refuse(send, status: int, text: str) -> None:
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
    """The names under which this server may be asked for."""
    names = {"localhost", host}
    if host in (
        "0.0.0.0",
        "::",
        "",
    ):  # everybody in the network may come: under this machine's own names
        names |= {socket.gethostname(), socket.getfqdn()}
    if space := os.environ.get("SPACE_HOST"):
        names |= set(space.split(","))
    return {n.lower() for n in names if n}


def visitor() -> str | None:
    """The name of who logged in, else the address that the request came from; None outside of a request."""
    request = LocalContext.request.get(None)
    if request is None:
        return None
    name = getattr(request, "username", None)
    return (
        f"name {name}"
        if name
        else f"address {request.client.host}"
        if request.client
        else "address unknown"
    )
