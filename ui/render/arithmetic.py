"""From rewards to advantages, with a group's own numbers. Rows -> escaped HTML; pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from grpo_core.config.options import ADVANTAGES
from grpo_core.rubric.verdict import DISAGREES
from grpo_core.store import GroupRow, RolloutRow
from grpo_core.types import GroupKind
from ui.render import provenance
from ui.render.recorded_config import (
    Config,
    algorithm_of,
    criteria_of,
    estimator_of,
    wider_grouping,
)
from ui.render.siblings import MANY, Cause, cause_of, merge_equal, positions
from ui.render.text import digits_apart, esc, format_number, is_number, plain, signed
from ui.render.verdicts import verdict_line


@dataclass(frozen=True, slots=True)
class Worked:
    """A formula to fill in, and the same to compute: of r, mean, std and the siblings' mean."""

    text: str
    compute: Callable[[float, float, float, float], float]


# The estimators for which a group's rewards suffice.
WORKED: dict[str, Worked] = {
    "group_std": Worked(
        "({r} − {mean})/({std} + 1e-4) = {a}", lambda r, mean, std, _: (r - mean) / (std + 1e-4)
    ),
    "group_mean": Worked("{r} − {mean} = {a}", lambda r, mean, *_: r - mean),
    "leave_one_out": Worked("{r} − {siblings} = {a}", lambda r, _, __, siblings: r - siblings),
}


def arithmetic(group: GroupRow, chosen: RolloutRow | None, config: Config) -> str:
    """A line with rewards, mean, std and the formula of one completion, and the verdict.

    chosen: the completion whose advantage the formula computes; None: of no completion.
    """
    digits = reward_digits(group)
    mean = format_number(group.reward_mean, digits + 1)
    std = format_number(group.reward_std, digits + 1)
    return (
        f'<div class="sum">{_rewards(group, digits)}'
        f'<span title="mean of the rewards">mean <code>{mean}</code></span>'
        f'<span title="standard deviation of the rewards">std <code>{std}</code></span>'
        f'<span class="formula-inline" aria-live="polite">{one_formula(group, chosen, config)}'
        f"</span></div>{verdict_line(group, config)}"
    )


def _rewards(group: GroupRow, digits: int) -> str:
    """All rewards, best first; of a large group only how many differ."""
    rewards = sorted((r.reward for r in group.rollouts if is_number(r.reward)), reverse=True)
    if len(group.rollouts) > MANY:
        return f"<span><b>{len(group.rollouts)}</b> rewards, {len(set(rewards))} different</span>"
    texts = [reward_text(r, digits) for r in rewards]
    texts += ["null"] * (len(group.rollouts) - len(rewards))
    return f"<span>rewards <code>{' '.join(texts)}</code></span>"


def one_formula(group: GroupRow, rollout: RolloutRow | None, config: Config) -> str:
    """The formula with one completion's numbers, and what earned or cost it most."""
    if rollout is None:
        return f"<code>{esc(_formula(group, [], config))}</code>"
    formula = f"<code>{esc(_formula(group, [rollout], config))}</code>"
    if not is_number(rollout.reward):
        why = provenance.absent(config, "reward") or "could not be scored"
        formula += f" <span>{why}</span>"
    cause = cause_of(group, rollout, config)
    return f'<b class="of">#{rollout.position + 1}</b> {formula}{_cause(cause)}'


def _cause(cause: Cause | None) -> str:
    """The criterion with the largest effect: accuracy cost most: (0 − 0.625) × 1 = −0.625."""
    if cause is None:
        return ""
    verb = "earned" if cause.effect > 0 else "cost"
    score = "null" if cause.score is None else plain(round(cause.score, 3))
    mean = plain(round(cause.mean, 3))
    sum_ = f"({score} − {mean}) × {plain(cause.weight)} = {signed(cause.effect, 3)}"
    return (
        f' <span class="cause" title="score − mean score, times weight">'
        f"<b>{esc(cause.name)}</b> {verb} most: <code>{sum_}</code></span>"
    )


def why_table(
    group: GroupRow,
    rollouts: Sequence[RolloutRow],
    config: Config,
    gradient: Mapping[int, float] | None = None,
) -> str:
    """Scores, reward and advantage of each completion; equal completions share a row.

    gradient: rollout id -> its share of the step's gradient weight, 0 where it is masked.
    """
    criteria = criteria_of(config)
    if not criteria:
        names = rollouts[0].scores if rollouts else ()
        criteria = [{"name": name, "weight": None} for name in names]
    head = "".join(
        f'<th scope="col">{esc(c["name"])}{times_weight(c.get("weight"))}</th>' for c in criteria
    )
    if gradient is not None:
        gradient_head = '<th scope="col" title="share of the step’s gradient weight">gradient</th>'
    else:
        gradient_head = ""
    body = "".join(
        _why_row(equal, [c["name"] for c in criteria], gradient, (reward_digits(group), config))
        for equal in merge_equal(rollouts, by_text=False)
    )
    is_evaluation = group.kind == GroupKind.EVALUATION
    title = "Scores" if is_evaluation else "Why these advantages"
    totals = "" if is_evaluation else _totals(group, rollouts, config, gradient)
    return (
        f"{verdict_line(group, config)}<h2>{title}</h2>"
        '<div class="scroll" tabindex="0" role="region" '
        'aria-label="Scores, reward and advantage of every completion">'
        '<table class="why"><thead><tr><th scope="col"><span class="sr">completion</span></th>'
        f'{head}<th scope="col">reward</th><th scope="col">A</th>{gradient_head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{totals}"
    )


def _why_row(
    equal: Sequence[RolloutRow],
    criteria: Sequence[str],
    gradient: Mapping[int, float] | None,
    drawn: tuple[int, Config],
) -> str:
    """drawn: decimals of rewards, and the run's configuration."""
    first, (digits, config) = equal[0], drawn
    made = esc(provenance.title_of(config, "advantage", first.advantage))
    unknown = provenance.absent(config, "reward")  # then there are no scores either
    scores = "".join(
        f"<td>{unknown or score_text(first.scores.get(name))}</td>" for name in criteria
    )
    share = ""
    if gradient is not None:
        together = ' <i class="times">together</i>' if len(equal) > 1 else ""
        share = f"<td>{_share(sum(gradient.get(r.id, 0.0) for r in equal))}{together}</td>"
    return (
        f'<tr><th scope="row">{positions(equal)}</th>{scores}'
        f"<td>{unknown or reward_text(first.reward, digits)}</td>"
        f'<td class="{side_of(first.advantage)}" title="{made}"><b>{signed(first.advantage, 3)}'
        "</b></td>"
        f"{share}</tr>"
    )


def _totals(
    group: GroupRow,
    rollouts: Sequence[RolloutRow],
    config: Config,
    gradient: Mapping[int, float] | None,
) -> str:
    """The line under the table: formula, mean, std, sum of A, and what concerns the gradient."""
    digits = reward_digits(group)
    known = [r.advantage for r in rollouts if is_number(r.advantage)]
    parts = [
        f"<code>{esc(_formula(group, rollouts, config))}</code>",
        f"<span>mean <b>{format_number(group.reward_mean, digits + 1)}</b></span>",
        f"<span>std <b>{format_number(group.reward_std, digits + 1)}</b></span>",
        f"<span>sum of A <b>{signed(sum(known) if known else None)}</b></span>",
    ]
    if gradient is not None:
        share = _share(sum(gradient.get(r.id, 0.0) for r in rollouts))
        parts.append(f"<span>share of this step’s gradient <b>{share}</b></span>")
    if algorithm_of(config).get("mask_truncated"):
        cut = sum(r.finish_reason == "length" for r in rollouts)
        if cut:
            parts.append(f"<span><b>{cut}</b> masked, cut at the limit</span>")
    return f'<p class="calc">{"".join(parts)}</p>'


def _formula(group: GroupRow, rollouts: Sequence[RolloutRow], config: Config) -> str:
    """The estimator's formula, with the numbers of the first scored of `rollouts` where possible.

    A = (r − mean)/(std + 1e-4) = (1.60 − 0.850)/(0.598 + 1e-4) = +1.25

    Of a group that disagrees it takes the numbers of the completion that differs most.
    """
    name = estimator_of(config)
    if name not in ADVANTAGES:
        return ""
    algorithm = algorithm_of(config)
    filled = re.sub(
        r"\{(\w+)\}", lambda field: str(algorithm.get(field[1], "?")), ADVANTAGES[name].formula
    )
    formula = f"A = {filled}"
    if suffix := _formula_suffix(config):
        return formula + suffix
    scored = [r.reward for r in group.rollouts if is_number(r.reward)]
    known = [
        (r.reward, r.advantage) for r in rollouts if is_number(r.reward) and is_number(r.advantage)
    ]
    if name not in WORKED or len(scored) < 2 or not known:
        return formula
    (reward, recorded), worked = known[0], WORKED[name]
    advantage, but = recorded, ""
    if group.verdict == DISAGREES:
        mean, std = statistics.fmean(scored), statistics.stdev(scored)

        def recompute(r: float) -> float:
            return worked.compute(r, mean, std, _siblings_mean(r, scored))

        reward, recorded = max(known, key=lambda numbers: abs(recompute(numbers[0]) - numbers[1]))
        advantage = recompute(reward)
        if signed(advantage) != signed(recorded):
            but = f", but {signed(recorded)} was recorded"
    digits = reward_digits(group)
    numbers = worked.text.format(
        r=format_number(reward, digits),
        mean=format_number(group.reward_mean, digits + 1),
        std=format_number(group.reward_std, digits + 1),
        siblings=format_number(_siblings_mean(reward, scored), digits + 1),
        a=signed(advantage),
    )
    return f"{formula} = {numbers}{but}"


def _siblings_mean(reward: float, scored: Sequence[float]) -> float:
    """Mean reward of the others of a group of at least two."""
    return (sum(scored) - reward) / (len(scored) - 1)


def _formula_suffix(config: Config) -> str:
    """What else changes rewards or advantages: a wider grouping, gate, scale or clip."""
    rubric = config.get("rubric") or {}
    fields = {"gate": "gate", "scale": "scale", "clip_low": "clip", "clip_high": "clip"}
    shaping = [word for name, word in fields.items() if rubric.get(name) not in (None, False)]
    grouping = wider_grouping(config)
    suffix = f", {grouping}" if grouping else ""
    if shaping:
        suffix += f", r after {' and '.join(dict.fromkeys(shaping))}"
    return suffix


def _share(value: float) -> str:
    return "0" if value == 0 else f"{100 * value:.1f} %"


def reward_digits(group: GroupRow) -> int:
    """Decimals at which the group's different rewards look different."""
    return digits_apart([r.reward for r in group.rollouts])


def reward_text(reward: float | None, digits: int) -> str:
    return format_number(reward, digits) if is_number(reward) else "null"


def score_text(value: float | None) -> str:
    return plain(round(value, 3)) if is_number(value) else '<i class="null">could not be scored</i>'


def times_weight(weight: float | None) -> str:
    return f'<i class="times">×{plain(float(weight))}</i>' if is_number(weight) else ""


def side_of(advantage: float | None) -> str:
    """The CSS class for an advantage's sign; what rounds to 0 is "zero"."""
    if not is_number(advantage) or abs(advantage) < 5e-7:
        return "zero"
    return "up" if advantage > 0 else "down"
