"""The advisor's notices about a run, at most three at a time. Rows -> escaped HTML; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpo_core.analysis.advisor import SHOWN
from grpo_core.types import LOST, WAITING, Notice
from ui.render.text import count, esc, plain

TITLES = {
    "flat_reward": "Nothing to learn from",
    "dead_groups": "Tied groups",
    "truncation": "Cut short",
    "end_token": "End token does not stop generation",
    "kl_burst": "KL spike",
    "non_finite": "Not a number",
    "entropy_collapse": "Entropy collapse",
    "length_drift": "Length drifts",
    "mute_criterion": "Criterion with almost no effect",
    "hacking": "Reward hacking",
    "over_optimisation": "Reward model over-optimised",
    "phantom": "Phantom advantages",
    "lr_too_low": "Learning rate too low",
    "lr_too_high": "Learning rate too high",
    "noise": "Only noise",
    "tool_errors": "Tool calls fail",
    "tool_unused": "No tool is called",
    "disagreement": "Advantages do not follow from the rewards",
    WAITING: "Waits for devices",
    LOST: "Workers were lost",
}
SEVERITIES = {"error": "bad", "warning": "warn", "info": "plain"}


def advice(notices: Sequence[Notice], group_refs: Mapping[int, tuple[int, int]]) -> str:
    """The first SHOWN notices, each with its evidence, advice and buttons; empty without notices.

    group_refs: group id -> (step, position), for the groups that can be opened.
    """
    if not notices:
        return ""
    shown = "".join(_notice(n, group_refs.get(n.group_id or 0)) for n in notices[:SHOWN])
    more = ""
    if len(notices) > 1:
        # One notice leaves room for the cards on the first screen; live.css hides the others.
        others = count(min(len(notices), SHOWN) - 1, "more notice")
        more = (
            '<button type="button" class="more-notices" data-toggle="notices" '
            f'aria-pressed="false">{others}</button>'
        )
    if len(notices) > SHOWN:
        others = esc(count(len(notices) - SHOWN, "smaller notice"))
        more += f'<p class="note">and {others}, shown when these are dismissed.</p>'
    return f'<section class="advice" aria-label="Advisor">{shown}{more}</section>'


def _notice(notice: Notice, group_ref: tuple[int, int] | None) -> str:
    title = esc(TITLES.get(notice.code, notice.code))
    tone = SEVERITIES.get(notice.severity, "plain")
    evidence = " · ".join(
        f"{esc(name)} <b>{esc(plain(value) if isinstance(value, (int, float)) else value)}</b>"
        for name, value in notice.evidence.items()
    )
    show = ""
    if group_ref:
        at = f"{group_ref[0]}/{group_ref[1]}"
        show = f'<button type="button" data-do="show" data-at="{at}">Show a group</button>'
    dismiss = (
        f'<button type="button" data-do="dismiss" data-code="{esc(notice.code)}" '
        f'aria-label="Dismiss: {title}">Dismiss</button>'
    )
    tried = f"<em>Try</em> {esc(notice.advice)} " if notice.advice else ""
    note = f'<span class="note">{evidence}</span>' if evidence else ""
    below = f"<p>{tried}{note}</p>" if tried or note else ""
    return (
        f'<article class="notice {tone}"><div><b>{title}</b> <span>{esc(notice.message)}</span>'
        f"{below}</div>"
        f'<div class="tools">{show}{dismiss}</div></article>'
    )
