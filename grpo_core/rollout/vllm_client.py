"""HTTP to a vLLM server: many requests at once, which the caller can stop waiting for."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import httpx

# The key is only in the environment, so it is in no store, export or log.
KEY_VARIABLE = "GRPO_ROLLOUT_KEY"
SHORT_SECONDS = 30.0  # time limit of a request that generates nothing
LOAD_SECONDS = 600.0  # of one that reads weights
MAX_REPLY_BYTES = 1 << 20  # of a reply without tokens
TOKEN_BYTES = 1000  # of a reply, for each token that it may hold
LOOK_SECONDS = 0.1  # between two looks whether the run is to stop

Json = Mapping[str, Any]


class ServerAway(Exception):
    """No reply came: the server cannot be reached, has gone, or took too long."""


class Refused(Exception):
    """The server answered with an error. is_unknown: it has no such address at all."""

    def __init__(self, status: int, text: str, is_unknown: bool = False) -> None:
        self.status, self.is_unknown = status, is_unknown
        super().__init__(text)


class Client:
    """Requests to one server. They run in a thread of their own, because a notebook's has a loop.

    url: without /v1. check_interrupt: called while `result` waits; what it raises ends the request.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="vLLM client", daemon=True
        )
        self._thread.start()
        # Compressed, a reply could be a thousand times as long as what the size limit sees.
        headers = {"Accept-Encoding": "identity"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        # A connection that was kept may be that of a server which has been restarted meanwhile.
        self._http = httpx.AsyncClient(
            timeout=None, follow_redirects=False, trust_env=False, headers=headers, limits=limits
        )

    def close(self) -> None:
        """End all requests, and the thread."""
        self._start(self._close()).result(timeout=SHORT_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=SHORT_SECONDS)
        self._loop.close()

    async def _close(self) -> None:
        others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._http.aclose()

    def _start(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def post(
        self, path: str, body: Json, seconds: float = SHORT_SECONDS, num_tokens: int = 0
    ) -> Future[Any]:
        """The JSON of the reply; None where it is none. Raises ServerAway and Refused.

        num_tokens: how many the reply may hold; a longer one is not read.
        """
        most = MAX_REPLY_BYTES + TOKEN_BYTES * num_tokens
        return self._start(self._ask("POST", path, body, seconds, most))

    def get(self, path: str) -> Future[Any]:
        """`post`, without a body."""
        return self._start(self._ask("GET", path, None, SHORT_SECONDS, MAX_REPLY_BYTES))

    async def _ask(
        self, method: str, path: str, body: Json | None, seconds: float, most: int
    ) -> Any:
        reply = bytearray()
        try:
            async with (
                asyncio.timeout(seconds),
                self._http.stream(method, self.url + path, json=body) as answer,
            ):
                async for block in answer.aiter_raw():
                    reply += block
                    if len(reply) > most:
                        raise Refused(answer.status_code, "its reply is too long")
        except TimeoutError:
            raise ServerAway(f"did not answer within {seconds:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise ServerAway(f"cannot be reached ({type(error).__name__})") from None
        try:
            data = json.loads(reply)
        except (ValueError, RecursionError):
            data = None
        if answer.status_code in (502, 503, 504):  # a proxy before it, or an engine that starts
            raise ServerAway(f"answered {answer.status_code}")
        if answer.status_code != 200:
            raise Refused(answer.status_code, _message(data), data == {"detail": "Not Found"})
        return data


def _message(data: Any) -> str:
    """What the server says about an error, on one line."""
    said = data.get("error") if isinstance(data, dict) else None
    said = said.get("message") if isinstance(said, dict) else said
    text = said if isinstance(said, str) else "no reason given"
    return "".join(c if c.isprintable() else " " for c in text)[:500]


def first_done(requests: set[Future[Any]], check_interrupt: Callable[[], None]) -> set[Future[Any]]:
    """Those of the requests that are done, once one is. What check_interrupt raises ends all."""
    try:
        while not (done := wait(requests, LOOK_SECONDS, FIRST_COMPLETED).done):
            check_interrupt()
        return done
    except BaseException:
        for request in requests:
            request.cancel()
        raise


def result(request: Future[Any], check_interrupt: Callable[[], None]) -> Any:
    """The reply to a request, which what check_interrupt raises ends."""
    first_done({request}, check_interrupt)
    return request.result()
