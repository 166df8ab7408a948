"""Coroutines in tests. Playwright's fixtures leave an event loop running in the main thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns or raises in a thread without an event loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


def run_async(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return in_thread(asyncio.run, coroutine)
