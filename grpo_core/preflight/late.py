"""PreflightService for a server that answers before torch is imported, which takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo_core.preflight.service import PreflightService


class LateService:
    """Passes every request on to the service that `load` makes; until then a request waits."""

    def __init__(
        self,
        make: Callable[[], PreflightService],
        *,
        lease_seconds: int | None = None,
        may_push: bool = True,
    ):
        """The options, known at once, are those of ServiceOptions."""
        self.lease_seconds, self.may_push = lease_seconds, may_push
        self._make = make
        self._made: Future[PreflightService] = Future()

    def load(self) -> None:
        """Make the service. Waiting requests get what making it raises."""
        try:
            self._made.set_result(self._make())
        except BaseException as problem:
            self._made.set_exception(problem)
            raise

    def release_models(self) -> None:
        """Leave the GPU to a run that starts. Before `load` there are no models."""
        if self._made.done():
            self._made.result().release_models()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._made.result(), name)
