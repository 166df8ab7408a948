"""What a page must not do."""

from __future__ import annotations

from urllib.parse import urlsplit


class Watch:
    """What must not happen on a page: a dialog, an error, a request to another machine."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def follow(self, page) -> None:
        page.on("dialog", lambda d: (self.problems.append(f"dialog: {d.message}"), d.dismiss()))
        page.on("pageerror", lambda e: self.problems.append(f"error: {e}"))
        page.on("request", lambda r: self._request(r.url))

    def _request(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in (
            "127.0.0.1",
            "localhost",
        ):
            self.problems.append(f"request to {url}")
