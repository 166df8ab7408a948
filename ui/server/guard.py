"""ASGI middleware that checks Host, Origin and path of every request; Gradio itself does not.

Without it any website that a person visits could read runs and start training on their machine,
through cross-site requests or DNS rebinding.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from ui.server.login import MAX_SECONDS, Login, TooManyGuesses
from ui.server.visitor import address

MAX_PATH, MAX_NAME = 2000, 255  # of an address, and of each of its parts
SINGLE = (b"host", b"origin", b"content-length", b"content-type", b"authorization")
_PORT = r"(:(6553[0-5]|655[0-2]\d|65[0-4]\d\d|6[0-4]\d{3}|[1-5]?\d{1,4}))?"
_NAME = r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[\w.-]{1,253})"
_HOST = re.compile(_NAME + _PORT, re.ASCII)
_ORIGIN = re.compile(rf"null|[A-Za-z][A-Za-z0-9+.-]*://{_NAME}{_PORT}", re.ASCII)
_RANGE = re.compile(rb"bytes=(\d{1,18}-\d{0,18}|-\d{1,18})")
# What the page and its API need. Gradio also has routes that fetch any address, call methods of
# components, list traces, edit the program or show a login's token: none of them is reached.
_GET = r"""
  / | /config/? | /login_check/? | /logout | /theme\.css | /favicon\.ico | /robots\.txt
  | /manifest\.json | /pwa_icon(/[^/]*)? | /(static|assets|svelte)/.*
  | /gradio_api/( info/? | openapi\.json | startup-events | theme\.css | (user|app_id|login_check)/?
    | queue/data | upload_progress | heartbeat/[^/]* | call/[^/]*/[^/]* | mcp(/.*)?
    | file=(?!\w\w+:|//).* )
"""
_POST = r"""
  /studio/(show|ingest) | /login/?
  | /gradio_api/( (run|api|call)/[^/]*/? | queue/join | upload | cancel | reset/? | mcp(/.*)? )
"""
ROUTES = {
    method: re.compile(routes, re.VERBOSE | re.DOTALL)
    for method, routes in {
        "GET": _GET,
        "HEAD": _GET,
        "POST": _POST,
        "DELETE": "/gradio_api/mcp(/.*)?",
        "OPTIONS": f"{_GET} | {_POST}",
    }.items()
}
MALFORMED = 400, "A header of this request is malformed."
ELSEWHERE = 403, "Requests from other websites are refused."


class Refusal(Exception):
    """Why a request is not answered."""

    def __init__(self, status: int, text: str, after: int = 0):
        """after: seconds until another try may succeed; 0 = not stated."""
        super().__init__(text)
        self.status, self.text, self.after = status, text, after


class Guard:
    """Refuses unknown hosts and malformed headers with 400, other origins with 403.

    What neither the page nor its API needs is answered with 404.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Iterable[str] = (),
        suffixes: Iterable[str] = (),
        login: Login | None = None,
    ):
        """login: who may use tools (MCP), which Gradio's login does not guard; None = everybody."""
        self.app = app
        self._login = login
        self.hosts = frozenset(h.lower() for h in hosts)
        self.suffixes = tuple(s.lower() for s in suffixes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no page of ours opens a WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            headers = read_headers(scope)
            self._check_sender(scope, headers)
            await self._check_tools(scope, headers)
            _check_route(scope)
        except Refusal as refusal:
            await refuse(send, refusal)
        else:
            scope["headers"] = [h for h in scope["headers"] if not _is_left_out(*h)]
            await self.app(scope, receive, send)

    def _check_sender(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Raises Refusal."""
        host = headers.get("host", "")
        if not self.allows(host):
            text = "This server has another host name. Open the address that it printed."
            raise Refusal(400, text)
        if not same_origin(headers, scope["method"], host):
            raise Refusal(*ELSEWHERE)

    async def _check_tools(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Raises Refusal for tools without the password."""
        if self._login is None or "mcp" not in scope["path"].lower().split("/"):
            return
        authorization = headers.get("authorization", "")
        try:
            allowed = await self._login.allows(authorization, address(scope))
        except TooManyGuesses:
            text = "Too many wrong passwords came from here."
            raise Refusal(429, text, int(MAX_SECONDS)) from None
        if not allowed:
            text = "Tools need the server's user and password as HTTP Basic authorization."
            raise Refusal(401, text)

    def allows(self, host: str) -> bool:
        """Whether the Host is an IP address or a known name.

        An IP address is safe: DNS cannot rebind it to another machine.
        """
        match = _HOST.fullmatch(host)
        name = match["name"].strip("[]").lower() if match else ""
        try:
            ipaddress.ip_address(name)
            return True
        except ValueError:
            return name in self.hosts or any(name.endswith(s) for s in self.suffixes)


def _check_route(scope: Scope) -> None:
    """Raises Refusal for what neither the page nor its API needs."""
    if scope["method"] not in ROUTES:
        raise Refusal(405, "Use GET or POST.")
    path = scope["path"]
    is_name = all(len(part.encode()) <= MAX_NAME for part in path.split("/"))
    if not (is_name and len(path) <= MAX_PATH and ROUTES[scope["method"]].fullmatch(path)):
        raise Refusal(404, "There is nothing at this address.")


def read_headers(scope: Scope) -> dict[str, str]:
    """Headers by name in lower case. Raises Refusal where one is malformed or ambiguous."""
    names = [name for name, _ in scope["headers"]]
    if any(names.count(name) > 1 for name in SINGLE):
        raise Refusal(*MALFORMED)
    headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
    host, origin = headers.get("host", ""), headers.get("origin", "null")
    if not (_HOST.fullmatch(host) or not host) or not _ORIGIN.fullmatch(origin):
        raise Refusal(*MALFORMED)
    forwarded = headers.get("x-forwarded-host", "").split(",")
    if not all(_HOST.fullmatch(host.strip()) or not host for host in forwarded):
        raise Refusal(*MALFORMED)
    if "\x00" in scope["path"]:
        raise Refusal(*MALFORMED)
    return headers


def _is_left_out(name: bytes, value: bytes) -> bool:
    """Whether Gradio would fail on a header, or believe from it that it is another server.

    A server may ignore Range; Gradio fails on more than one.
    """
    return name == b"x-gradio-server" or (name == b"range" and not _RANGE.fullmatch(value))


def same_origin(headers: Mapping[str, str], method: str, host: str) -> bool:
    """Whether a request comes from this server's own pages, from a program, or is a link.

    Programs send neither header. Browsers send Origin with every request of a script that another
    site may read, and with every changing request; a link or a frame is a navigation.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        return False
    if site not in ("cross-site", "same-site"):
        return True
    return method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"


async def refuse(send: Send, refusal: Refusal) -> None:
    """Answer with the refusal."""
    kind = b"text/plain; charset=utf-8"
    await respond(send, refusal.status, refusal.text.encode(), kind, refusal.after)


async def respond(send: Send, status: int, body: bytes, kind: bytes, after: int) -> None:
    """Send a whole answer. kind: its content type. after: as in Refusal."""
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if after:
        headers.append((b"retry-after", str(after).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
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
