"""The models that answer questions beside a run: one in memory, two where they are small; lent to one question at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from grpo_core.config import ModelConfig
from grpo_core.errors import StudioError
from grpo_core.models import Policy, load_policy

PATIENCE_SECONDS = 60.0
SMALL = 100_000_000  # parameters up to which before and after stay in memory together


class ModelCache:
    """Keeps the last models that were asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Any, Policy] = OrderedDict()

    @contextmanager
    def use(
        self,
        config: ModelConfig,
        seed: int = 0,
        of: Any = None,
        change: Callable[[Policy], None] | None = None,
    ) -> Iterator[Policy]:
        """The model of that configuration; `of` names another state of it, which `change` brings about after loading."""
        with self._locked():
            key = (config, seed, of)
            if key not in self._kept:
                small = all(p.num_parameters <= SMALL for p in self._kept.values())
                while len(self._kept) > (
                    1 if small else 0
                ):  # before the next one is loaded: two large ones may not fit
                    self._kept.popitem(last=False)
                policy = load_policy(config, seed)
                if change is not None:
                    change(policy)
                self._kept[key] = policy
            self._kept.move_to_end(key)
            yield self._kept[key]

    def forget(self) -> None:
        """Give the memory back: something else needs it."""
        with self._locked():
            self._kept.clear()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=PATIENCE_SECONDS):
            raise StudioError("The model is busy with another question. Ask again in a minute.")
        try:
            yield
        finally:
            self._lock.release()
