"""Fills the page from the store, with one small request that does not go through Gradio.

Gradio builds every output component anew for each answer, also the skipped ones. On two cores
that took 65 ms a poll, of which 3 ms were ours (docs/measurements.md), so ten open tabs kept a
server busy. What a person changes still goes through Gradio's events. What the page shows, after a
change and once a second, is requested here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from grpo_core.errors import StoreError
from ui.components.html_panel import QUIET
from ui.server.calls import SHOW, is_slow

SKIP = gr.skip()

Fill = Callable[..., Sequence[Any]]


class Refresh:
    """The functions that fill the page, by name.

    Each takes the values of its inputs as the browser sent them. It returns one value for each
    output, or SKIP to leave an output as it is.
    """

    def __init__(self) -> None:
        self._fills: dict[str, tuple[Fill, int]] = {}  # the function and how many values it takes
        self._slow: set[str] = set()

    def js(
        self, name: str, fill: Fill, inputs: Sequence[Any], kind: str = "", first: str = ""
    ) -> str:
        """The `js` of an event that has no `fn` and fills its outputs with `fill`.

        kind: "poll" is not sent while the page is hidden or a "poll" or "first" request is open.
        "change" is not sent for what a "first" answer has changed: it showed that already.
        first: a JavaScript expression; its value is sent before those of the inputs.
        """
        if is_slow(fill):
            self._slow.add(name)
        known, _ = self._fills.setdefault(name, (fill, len(inputs) + bool(first)))
        assert known == fill, f"two functions are called {name}"
        values = f"[{first}, ...given]" if first else "[...given]"
        return f"(...given) => studioRefresh({name!r}, {values}, {kind!r})"

    def events(
        self, name: str, fill: Fill, inputs: Sequence[Any], outputs: Sequence[Any]
    ) -> RefreshEvents:
        """What lets events fill `outputs`. The arguments are those of `js`."""
        js, change_js = (self.js(name, fill, inputs, kind) for kind in ("", "change"))
        return RefreshEvents(inputs, outputs, js, change_js)

    def is_slow(self, name: Any) -> bool:
        """Whether the function of this name may take long."""
        return isinstance(name, str) and name in self._slow

    def route(self) -> Route:
        """The route for the server's list. It answers [[index of an output, its new value], …]."""
        return Route(SHOW, self._answer, methods=["POST"])

    async def _answer(self, request: Request) -> Response:
        try:
            question = orjson.loads(await request.body())
            fill, num_values = self._fills[question["name"]]
            given = question["given"]
            if not isinstance(given, list) or len(given) != num_values:
                raise ValueError
        except (ValueError, TypeError, KeyError):
            return PlainTextResponse(
                'Write {"name": one of this page\'s views, "given": [values]}.', 400
            )
        try:
            body = await run_in_threadpool(answer, fill, given)
        except StoreError as error:  # the file is damaged or gone: the page shows this line
            return PlainTextResponse(str(error), 503)
        return Response(body, media_type="application/json")


def apart(event: Any) -> Any:
    """The same event for a handler that waits for the server, so that no other waits for it.

    Gradio runs the handlers of one event in turn and waits for each. It does not wait for what
    follows a handler, so this one does nothing and the work follows.
    """
    return event(None, None, None, js="() => {}", **QUIET).then


@dataclass(frozen=True, slots=True)
class RefreshEvents:
    """Lets events fill one list of outputs from the store."""

    inputs: Sequence[Any]
    outputs: Sequence[Any]
    js: str
    change_js: str

    def on(self, event: Any, **options: Any) -> None:
        """Fill the outputs when the event happens. options: for the event, on top of QUIET."""
        event(None, self.inputs, self.outputs, js=self.js, **(QUIET | options))

    def on_change(self, event: Any) -> None:
        """Fill the outputs when a component's value changes, unless an arrival has changed it."""
        apart(event)(None, self.inputs, self.outputs, js=self.change_js, **QUIET)

    def after(self, event: Any) -> None:
        """Fill the outputs when the event has been handled."""
        event.then(None, self.inputs, self.outputs, js=self.js, **QUIET)


def answer(fill: Fill, given: Sequence[Any]) -> bytes:
    """The new values as JSON. A number that is not finite becomes null, as in the store."""
    new = [[index, value] for index, value in enumerate(fill(*given)) if value != SKIP]
    return orjson.dumps(new, default=str)
