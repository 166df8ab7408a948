"""Completions of one group beside one another: equal ones, causes, differences, rewards. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.store import GroupRow, RolloutRow
from ui.render.differences import marked
from ui.render.recorded_config import Config, criteria_of
from ui.render.text import count, digits_apart, esc, format_number, is_number
from ui.render.turns import texts_of

MAX_WORDS = 300  # compared of each completion; the rest of a longer text has no marks
GROUP_WORDS = 6_000  # compared in a whole group, so that a large one is drawn in time
MAX_BINS = 10
MANY = 16  # a larger group begins with a histogram of its rewards


def merge_equal(rollouts: Sequence[RolloutRow], by_text: bool = True) -> list[list[RolloutRow]]:
    """Lists of completions with equal scores, reward and advantage; order is kept.

    by_text: their text, its end and their tool calls must be equal too.
    """
    equal: dict[Any, list[RolloutRow]] = {}
    for r in rollouts:
        key: tuple[Any, ...] = (tuple(sorted(r.scores.items())), r.reward, r.advantage)
        if by_text:
            key += (r.text, r.finish_reason, r.num_tokens, r.edited)
            key += tuple((t.tool, t.arguments, t.text, t.error) for t in r.turns)
        equal.setdefault(key, []).append(r)
    return list(equal.values())


def positions(rollouts: Sequence[RolloutRow]) -> str:
    """#1, #4–#6: three or more neighbours as a range."""
    spans: list[list[int]] = []
    for n in sorted(r.position + 1 for r in rollouts):
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    texts = []
    for first, last in spans:
        if first == last:
            texts.append(f"#{first}")
        else:
            texts.append(f"#{first}, #{last}" if last == first + 1 else f"#{first}–#{last}")
    return ", ".join(texts)


# ---- what made the difference ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cause:
    """The criterion that moved a completion's reward furthest from the group's mean.

        effect = weight · (score − mean score of the siblings)

    A score of None counts as 0, as it does in the reward.
    """

    name: str
    score: float | None
    mean: float
    weight: float
    effect: float


def cause_of(group: GroupRow, rollout: RolloutRow, config: Config) -> Cause | None:
    """What earned or cost the completion most, as its advantage says; None if nothing did."""
    scored = [r for r in group.rollouts if is_number(r.reward)]
    if not (is_number(rollout.advantage) and is_number(rollout.reward)) or len(scored) < 2:
        return None
    side = (rollout.advantage > 5e-7) - (rollout.advantage < -5e-7)
    best: Cause | None = None
    for criterion in criteria_of(config):
        name, weight = str(criterion["name"]), criterion.get("weight")
        if name not in rollout.scores or not is_number(weight):
            continue
        mean = sum(r.scores.get(name) or 0.0 for r in scored) / len(scored)
        score = rollout.scores[name]
        cause = Cause(name, score, mean, weight, weight * ((score or 0.0) - mean))
        if cause.effect * side > 1e-9 and (not best or cause.effect * side > best.effect * side):
            best = cause
    return best


# ---- differences from the best sibling -------------------------------------------------------


def marked_texts(rollouts: Sequence[RolloutRow], best: RolloutRow) -> list[list[str]]:
    """The texts of each one's turns as HTML.

    Words that the best sibling lacks or has elsewhere are marked.
    """
    limit, wanted = min(MAX_WORDS, GROUP_WORDS // max(1, len(rollouts))), texts_of(best)
    return [
        [esc(text) for text in texts]
        if (texts := texts_of(r)) == wanted
        else marked(texts, wanted, limit)[0]
        for r in rollouts
    ]


# ---- a large group ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Bin:
    label: str
    says: str  # the reward, or the range of rewards
    num: int
    middle: float


def histogram(group: GroupRow) -> str:
    """How many completions have which reward, lowest first, as bars with numbers."""
    rewards = sorted(r.reward for r in group.rollouts if is_number(r.reward))
    if not rewards:
        return ""
    bins = _bins(rewards)
    most = max(b.num for b in bins)
    mean = sum(rewards) / len(rewards)
    bars = "".join(
        f'<span class="{"up" if b.middle > mean else "down"}" title="{b.num} with reward {b.says}">'
        f'<b>{b.num}</b><i style="--part:{b.num / most:.3f}"></i><em>{b.label}</em></span>'
        for b in bins
    )
    unscored = len(group.rollouts) - len(rewards)
    more = f'<p class="note">{unscored} could not be scored.</p>' if unscored else ""
    spoken = ", ".join(f"{b.num} with reward {b.says}" for b in bins)
    label = f"Rewards of {count(len(rewards), 'completion')}: {spoken}"
    return f'<div class="histogram" role="img" aria-label="{label}">{bars}</div>{more}'


def _bins(rewards: Sequence[float]) -> list[_Bin]:
    """One for each different reward; if there are many, ranges of equal width.

    The label of a range is its lower end.
    """
    distinct = sorted(set(rewards))
    digits = digits_apart(distinct)
    if len(distinct) <= MAX_BINS:
        texts = [format_number(r, digits) for r in distinct]
        return [
            _Bin(text, text, rewards.count(r), r) for text, r in zip(texts, distinct, strict=True)
        ]
    low, width = distinct[0], (distinct[-1] - distinct[0]) / MAX_BINS
    counts = [0] * MAX_BINS
    for r in rewards:
        counts[min(MAX_BINS - 1, int((r - low) / width))] += 1
    edges = [format_number(low + i * width) for i in range(MAX_BINS + 1)]
    return [
        _Bin(edges[i], f"{edges[i]} to {edges[i + 1]}", n, low + (i + 0.5) * width)
        for i, n in enumerate(counts)
    ]
