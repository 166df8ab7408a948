"""Whether a reward of the group in view can be set now: only before the update that uses it."""

from __future__ import annotations

from grpo_core.store import RunRow
from grpo_core.types import Phase, RunStatus
from ui.server.group_ref import GroupRef
from ui.server.views import Views


def refusal(views: Views, run: RunRow | None, ref: GroupRef | None) -> str:
    """Why the run would refuse a new reward, and what to do; empty if it would take it."""
    if run is None:
        return "Choose a run first."
    if run.source is not None:
        return "This run was not trained here: its rewards are final."
    if not run.status.is_live:
        return f"This run is {run.status}: its rewards are final."
    if not _waits_before_update(views, run):
        return (
            "A reward can be set while the run waits before an update. "
            "Set a breakpoint, e.g. step = 40."
        )
    if ref is None or ref[0] != run.step:
        return f"The run waits in step {run.step:,}: show a group of that step."
    return ""


def _waits_before_update(views: Views, run: RunRow) -> bool:
    """Between the advantages and the update of a step; rows are enough to tell."""
    return (
        run.status is RunStatus.PAUSED
        and run.phase is Phase.SCORING
        and run.step == views.store.last_step_with_groups(run.id)
        and run.step != run.steps_done
    )
