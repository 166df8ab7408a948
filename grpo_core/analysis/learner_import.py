"""One thread at a time imports the learner. The page is served before torch is imported."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")
_importing = threading.RLock()


@contextmanager
def importing_learner() -> Iterator[None]:
    """Hold this while torch and transformers are imported; others wait until they are whole.

    transformers imports its parts on first use. If two threads do that at once, one may see a part
    that is not complete, and fails with an ImportError.
    """
    with _importing:
        yield


def needs_learner(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """For a function that imports torch or the learner when it is called: it waits its turn."""

    @wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with importing_learner():
            import grpo_core.training.scoring  # noqa: F401  brings the learner and torch
        return function(*args, **kwargs)

    return wrapper
