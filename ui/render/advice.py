"""What the advisor says of a run, at most three notices at a time. Rows -> escaped HTML; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpo_core.analysis.advisor import SHOWN
from grpo_core.types import Notice
from ui.render.text import count, esc, plain

TITLES = {
    "flat_reward": "Nothing to learn from",
    "dead_groups": "Tied groups",
    "truncation": "Cut short",
    "end_token": "Never told to stop",
    "kl_burst": "KL burst",
    "non_finite": "Not a number",
    "entropy_collapse": "Nothing new is tried",
    "length_drift": "Length drifts",
    "mute_criterion": "A criterion without a say",
    "hacking": "The reward is not the goal",
    "phantom": "Phantom advantages",
    "lr_too_low": "Learning rate too low",
    "lr_too_high": "Learning rate too high",
    "noise": "Only noise",
}
SEVERITIES = {"error": "bad", "warning": "warn", "info": "plain"}


def advice(notices: Sequence[Notice], places: Mapping[int, tuple[int, int]]) -> str:
    """places: group id -> (step, position), of the groups that can be opened. Empty without a notice: none is better than a wrong one."""
    if not notices:
        return ""
    more = (
        f'<p class="note">and {esc(count(len(notices) - SHOWN, "smaller notice"))}, shown when these are dismissed.</p>'
        if len(notices) > SHOWN
        else ""
    )
    return f'<section class="advice" aria-label="Advisor">{"".join(_notice(n, places.get(n.group_id or 0)) for n in notices[:SHOWN])}{more}</section>'


def _notice(notice: Notice, at: tuple[int, int] | None) -> str:
    title = TITLES.get(notice.code, notice.code)
    evidence = " · ".join(
        f"{esc(name)} <b>{esc(plain(value) if isinstance(value, (int, float)) else value)}</b>"
        for name, value in notice.evidence.items()
    )
    show = (
        f'<button type="button" data-do="show" data-at="{at[0]}/{at[1]}">Show a group</button>'
        if at
        else ""
    )
    return (
        f'<article class="notice {SEVERITIES.get(notice.severity, "plain")}"><div><b>{esc(title)}</b> <span>{esc(notice.message)}</span>'
        f'<p><em>Try</em> {esc(notice.advice)}</p><p class="note">{evidence}</p></div>'
        f'<div class="tools">{show}<button type="button" data-do="dismiss" data-code="{esc(notice.code)}" aria-label="Dismiss: {esc(title)}">Dismiss</button></div></article>'
    )
