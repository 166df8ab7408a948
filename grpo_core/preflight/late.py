"""PreflightService for a server that answers before torch is imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from grpo_core.analysis.learner_import import importing_learner
from grpo_core.config import RunConfig
from grpo_core.preflight.estimate import Estimate, from_store
from grpo_core.records.imports import Imports
from grpo_core.runs.reward_models import RewardModels
from grpo_core.store import Store

if TYPE_CHECKING:
    from grpo_core.preflight.service import PreflightService


class LateService:
    """Passes requests on to the service that `load` makes. Until then most requests wait."""

    def __init__(
        self,
        store: Store,
        make: Callable[[], PreflightService],
        *,
        lease_seconds: int | None = None,
        may_push: bool = True,
        reward_models: RewardModels | None = None,
        imports: Imports | None = None,
    ):
        """lease_seconds, may_push: as in ServiceOptions; they are known at once."""
        self.reward_models = reward_models or RewardModels(store)
        self.imports = imports or Imports(store)
        self.lease_seconds, self.may_push = lease_seconds, may_push
        self._store, self._make = store, make
        self._made: Future[PreflightService] = Future()

    def load(self) -> None:
        """Make the service, once. Waiting requests get what making it raises."""
        if self._made.done():
            return
        try:
            with importing_learner():
                service = self._make()
            self._made.set_result(service)
        except BaseException as problem:
            self._made.set_exception(problem)
            raise

    def estimate(self, config: RunConfig) -> Estimate | None:
        """As the service's. The page asks for it while it is built."""
        if self._made.done():
            return self._made.result().estimate(config)
        return from_store(self._store, config)

    def release_models(self) -> None:
        """Leave the GPU to a run that starts. Before `load` there are no models."""
        if self._made.done():
            self._made.result().release_models()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made.result(), name)
