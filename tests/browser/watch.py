"""What a page must not do, and browser contexts that watch for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

PATIENCE = 60_000  # ms that a page waits for a state: a busy machine may take long


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


@contextmanager
def watched(browser) -> Iterator:
    """A new browser context. Its end fails if one of its pages did what it must not do."""
    watch = Watch()
    context = browser.new_context(viewport={"width": 1440, "height": 1000}, accept_downloads=True)
    context.set_default_timeout(PATIENCE)
    context.on("page", watch.follow)
    yield context
    context.close()
    assert watch.problems == []
