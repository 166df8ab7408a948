"""Ray Train's word that workers are lost, for the mailbox."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError
from ray.train import UserCallback


class TellLosses(UserCallback):
    """Lives in the process of Ray Train's controller."""

    def __init__(self, mailbox: Any):
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Say who was lost, and why: a death is the cause of its siblings' errors."""
        dead = {r: e for r, e in worker_exceptions.items() if isinstance(e, RayActorError)}
        told = dead or worker_exceptions
        who = ", ".join(str(rank + 1) for rank in sorted(told))
        why = "; ".join(dict.fromkeys(_reason(e) for e in told.values()))
        self._mailbox.lost.remote(f"Worker {who} was lost: {why}.")


def _reason(problem: Exception) -> str:
    """One line, without Ray's advice and addresses."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    if isinstance(problem, RayActorError):
        told = [line for line in lines if "exit" in line.lower() or "node" in line.lower()]
        return f"{(told or lines or ['its process died'])[-1]:.200}".rstrip(".")
    return f"{(lines or [type(problem).__name__])[0]:.200}".rstrip(".")
