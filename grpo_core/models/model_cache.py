"""Models that are used beside a run: loaded on demand, kept in memory, one caller at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

import torch

from grpo_core.config import ModelConfig
from grpo_core.errors import StudioError
from grpo_core.models import Policy, load_policy, pick_device
from grpo_core.models.device import prepare_device, release_memory

LOCK_TIMEOUT_SECONDS = 60.0
# Two models of at most so many parameters stay in memory together, e.g. before and after training.
SMALL_MODEL = 100_000_000


class ModelCache:
    """Keeps the most recently used model, or two where both are small.

    device: where a model that wants this device is used now; it may change from use to use.
    """

    def __init__(self, device: Callable[[str], torch.device] = pick_device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._policies: OrderedDict[Hashable, Policy] = OrderedDict()

    @contextmanager
    def use(
        self,
        config: ModelConfig,
        seed: int = 0,
        state_key: Hashable = None,
        after_load: Callable[[Policy], None] | None = None,
    ) -> Iterator[Policy]:
        """The model of this configuration, for this caller alone until the context ends.

        state_key: names other weights of the model, e.g. a checkpoint; `after_load` sets them.
        Raises StudioError if another caller uses a model for longer than 60 s.
        """
        with self._locked():
            device = self._device(config.device)
            prepare_device(device)  # this thread: another one may have loaded the model
            key = (config, seed, state_key, device)
            if key not in self._policies:
                self._make_room()
                policy = load_policy(config, seed, device)
                if after_load is not None:
                    after_load(policy)
                self._policies[key] = policy
            self._policies.move_to_end(key)
            yield self._policies[key]

    def clear(self) -> None:
        """Drop all models, so that their memory is free for something else."""
        with self._locked():
            self._policies.clear()
            release_memory()

    def _make_room(self) -> None:
        """Drop models before the next one is loaded: two large ones may not fit together."""
        small = all(p.num_parameters <= SMALL_MODEL for p in self._policies.values())
        while len(self._policies) > (1 if small else 0):
            self._policies.popitem(last=False)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=LOCK_TIMEOUT_SECONDS):
            raise StudioError("The model is busy with another request. Try again in a minute.")
        try:
            yield
        finally:
            self._lock.release()
