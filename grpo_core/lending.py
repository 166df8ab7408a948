"""The model that answers questions beside a run: at most one in memory, lent to one question at a time, let go of before a run begins."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from grpo_core.config import ModelConfig
from grpo_core.errors import StudioError
from grpo_core.policy import Policy, load_policy

PATIENCE_SECONDS = 60.0


class Lending:
    """Keeps the last model that was asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: Any = None
        self._policy: Policy | None = None

    @contextmanager
    def use(self, config: ModelConfig, seed: int = 0, of: Any = None, change: Callable[[Policy], None] | None = None) -> Iterator[Policy]:
        """The model of that configuration; `of` names another state of it, which `change` brings about after loading."""
        if not self._lock.acquire(timeout=PATIENCE_SECONDS):
            raise StudioError("The model is busy with another question. Ask again in a minute.")
        try:
            key = (config, seed, of)
            if self._policy is None or self._key != key:
                self._policy = self._key = None  # before the next one is loaded: two may not fit
                policy = load_policy(config, seed)
                if change is not None:
                    change(policy)
                self._policy, self._key = policy, key
            yield self._policy
        finally:
            self._lock.release()
