"""How the page is filled from the store: one small request past Gradio's own, which builds every output component anew for each answer, skipped ones too.

On two cores that took 65 ms a poll, of which 3 were ours (docs/runs.md): ten open tabs kept a server busy. Changes that a person makes go
through Gradio's events as ever; what is shown afterwards, and once a second, is asked for here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
import orjson
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

PATH = "/studio/show"
MAX_BYTES = 2_000_000  # of a question: the values of the inputs
SKIP = gr.skip()

Show = Callable[..., Sequence[Any]]


class Shows:
    """The functions that fill the page, by name. Each takes the values of its inputs as the browser sent them and returns one value an output, or SKIP."""

    def __init__(self) -> None:
        self._shows: dict[str, tuple[Show, int]] = {}  # with the number of values that it takes

    def js(
        self, name: str, show: Show, inputs: Sequence[Any], kind: str = "", first: str = ""
    ) -> str:
        """The `js` of an event without `fn` that fills its outputs by `show`. kind "poll": left out while nobody looks, or the one before, or that of
        kind "first", is not answered.

        first: a JavaScript expression whose value comes before those of the inputs.
        """
        assert self._shows.setdefault(name, (show, len(inputs) + bool(first)))[0] == show, (
            f"two functions are called {name}"
        )
        return f"(...given) => studioShow({name!r}, [{first + ', ' if first else ''}...given], {kind!r})"

    def route(self) -> Route:
        """For the server's list. Answers [[place of an output, its new value], …]."""
        return Route(PATH, self._answer, methods=["POST"])

    async def _answer(self, request: Request) -> Response:
        if not signed_in(request):
            return PlainTextResponse("Sign in first.", 401)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_BYTES:
                return PlainTextResponse(f"A question may have {MAX_BYTES:,} bytes.", 413)
        try:
            asked = orjson.loads(body)
            (show, takes), given = self._shows[asked["name"]], asked["given"]
            if not isinstance(given, list) or len(given) != takes:
                raise ValueError
        except (ValueError, TypeError, KeyError):
            return PlainTextResponse(
                'Write {"name": one of this page\'s views, "given": [values]}.', 400
            )
        return Response(await run_in_threadpool(answer, show, given), media_type="application/json")


def answer(show: Show, given: Sequence[Any]) -> bytes:
    """What is new, as JSON. What is no finite number is null, as everywhere in the store."""
    return orjson.dumps(
        [[place, value] for place, value in enumerate(show(*given)) if value != SKIP], default=str
    )


def signed_in(request: Request) -> bool:
    """Whether Gradio's login, if the server has one, knows whoever asks; by its own cookies (gradio.routes.App)."""
    app = request.app
    if getattr(app, "auth", None) is None:
        return True
    return any(
        app.tokens.get(request.cookies.get(f"access-token-{kind}{app.cookie_id}")) is not None
        for kind in ("", "unsecure-")
    )
