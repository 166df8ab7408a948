"""What a step's update did to the completions of a group. Rows -> escaped HTML; pure."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_core.analysis.update_effect import Effect
from grpo_core.store import RolloutRow
from ui.render.arithmetic import side_of
from ui.render.text import format_number, is_number, short, signed

MAX_ROWS = 64


def effect_table(
    rollouts: Sequence[RolloutRow], effects: Sequence[Effect | None], chosen: int
) -> str:
    """Each completion's log-probability before and after the update; empty if none is known.

    chosen: the position of the completion whose tokens are shown.
    """
    pairs = [(r, e) for r, e in zip(rollouts, effects, strict=True) if e is not None]
    if not pairs:
        return ""
    rows = "".join(_row(r, e, r.position == chosen) for r, e in pairs)
    head = "".join(
        f'<th scope="col">{title}</th>'
        for title in ("A", "log p before", "after", "change", "times as likely")
    )
    return (
        f'<p class="effects-say">{as_asked(pairs)}</p>'
        '<div class="scroll" tabindex="0" role="region" '
        'aria-label="Log-probability of each completion before and after the update">'
        '<table class="why effects"><thead><tr><th scope="col"><span class="sr">completion</span>'
        f"</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(rollout: RolloutRow, effect: Effect, is_chosen: bool) -> str:
    here = ' aria-current="true"' if is_chosen else ""
    change = signed(effect.change, 3)
    return (
        f'<tr{here}><th scope="row">#{rollout.position + 1}</th>'
        f'<td class="{side_of(rollout.advantage)}"><b>{signed(rollout.advantage)}</b></td>'
        f"<td>{format_number(effect.before, 3)}</td><td>{format_number(effect.after, 3)}</td>"
        f'<td class="{side_of(effect.change)}"><b>{change}</b></td>'
        f"<td>× {short(effect.times)}</td></tr>"
    )


def as_asked(pairs: Sequence[tuple[RolloutRow, Effect]]) -> str:
    """How many completions the update moved the way that their advantages say."""
    scored = [(r.advantage, e.change) for r, e in pairs if is_number(r.advantage)]
    up = [change for advantage, change in scored if advantage > 0]
    down = [change for advantage, change in scored if advantage < 0]
    if not up and not down:
        return "These completions have no advantage; other groups of the step moved them."
    parts = [
        f"{sum(c > 0 for c in up)} of {len(up)} with A &gt; 0 became likelier",
        f"{sum(c < 0 for c in down)} of {len(down)} with A &lt; 0 became less likely",
    ]
    return f"{', '.join(parts)}. All groups of the step share the weights."
