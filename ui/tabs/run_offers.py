"""What the Runs tab offers for the selected runs, and why it would refuse the rest."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_core.config import fields_by_name, parse
from grpo_core.errors import InvalidConfig
from grpo_core.store import RunRow
from grpo_core.types import RunStatus
from ui.render import provenance
from ui.render.run_bar import Action, Bar
from ui.server.views import Views
from ui.tabs.exports import EXPORTS, NEEDS_CHECKPOINT, NEEDS_SETTINGS, REPORT

ONE = "Select one run."
WHY_NO_RESUME = {
    RunStatus.FINISHED: "This run has done all its steps. Branch from its last one to go on.",
    RunStatus.QUEUED: "This run waits in the queue and starts by itself.",
    RunStatus.LOADING: "This run is going on already.",
    RunStatus.RUNNING: "This run is going on already.",
}


def offers(views: Views, chosen: Sequence[RunRow], num_hidden: int, may_push: bool) -> Bar:
    """The bar over the table: every action, with the reason why it would be refused."""
    one = chosen[0] if len(chosen) == 1 else None
    many = "" if one else ONE
    unsaved = _why_unsaved(views, one) if one else ONE
    unreadable = _why_unreadable(one) if one else ONE
    recipe = _foreign_recipe(one) or unreadable if one else ONE
    exports = [
        Action(
            "export",
            name,
            unsaved if name in NEEDS_CHECKPOINT else recipe if name in NEEDS_SETTINGS else many,
            name,
        )
        for name in EXPORTS
        if name != REPORT
    ]
    here = "" if may_push else "This server does not push to the Hub. Export the model instead."
    return Bar(
        [views.label(run) for run in chosen],
        num_hidden,
        actions=[
            Action("open", "Open", many),
            Action("resume", "Resume", _why_no_resume(one) if one else ONE),
            Action("branch", "Branch from step…", unsaved),
            Action("copy", "Copy settings", unreadable),
            Action("compare", "Compare", "" if len(chosen) > 1 else "Select two or more runs."),
            Action("export", REPORT, many, REPORT),
        ],
        exports=exports,
        more=[
            Action("push", "Push to Hub", many or here or unsaved),
            Action("delete", "Delete", _why_kept(views, chosen)),
        ],
    )


def _why_no_resume(run: RunRow) -> str:
    return provenance.why_not_here(run) or WHY_NO_RESUME.get(run.status, "")


def _foreign_recipe(run: RunRow) -> str:
    """Why another trainer's run is not written as a command or a script; empty for our own."""
    if run.source is None:
        return ""
    return "The prompts and the reward functions of this run are not here."


def _why_unsaved(views: Views, run: RunRow) -> str:
    if run.source is not None:
        return provenance.why_not_here(run)
    if views.store.checkpoints(run.id):
        return ""
    if run.example:
        return "This is the recorded example. Its trained weights are not shipped."
    title = fields_by_name()["train.checkpoint_every"].title
    return f"No step of this run is saved. Set “{title}” in a new run."


def _why_unreadable(run: RunRow) -> str:
    try:
        parse(run.config)
    except InvalidConfig:
        return "Another version of GRPO Studio made this run; this one cannot read its settings."
    return ""


def _why_kept(views: Views, chosen: Sequence[RunRow]) -> str:
    live = next((run for run in chosen if run.status.is_live), None)
    return f"“{views.label(live)}” is {live.status}. Stop it first." if live else ""
