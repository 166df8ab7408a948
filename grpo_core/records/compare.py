"""Recorded and recomputed advantages: which estimator a run has, and which groups disagree."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from grpo_core.analysis.learner_import import needs_learner
from grpo_core.config import RunConfig, with_changes
from grpo_core.rubric import RunningStd, resolve_rubric
from grpo_core.rubric.check import Check, Params
from grpo_core.rubric.rubric import Rubric
from grpo_core.rubric.verdict import DISAGREES
from grpo_core.types import TIE_TOLERANCE, Group, Rollout, Turn, TurnRole

if TYPE_CHECKING:
    from grpo_core.training.scoring import PromptRollouts

# In the order in which they are tried: the usual ones first.
CANDIDATES = ("group_std", "group_mean", "leave_one_out", "batch_std", "rank", "per_criterion")
NOT_RECOMPUTABLE = "value"  # a critic gives it
# Divided by the spread of a whole step: of a part of it they are known but for one factor.
STEP_WIDE = ("batch_std", "per_criterion")
# A recorded advantage may differ by this from the recomputed one: absolute, relative, and for the
# 1e-6 that some add to the standard deviation where we add 1e-4. float32 rounds less.
ABSOLUTE, RELATIVE, EPS = 1e-4, 1e-3, 1e-4


def agrees(recorded: float, recomputed: float, std: float, size: float) -> bool:
    """Whether two advantages mean the same. std, size: of the group's rewards, and the largest."""
    loose = ABSOLUTE + RELATIVE * abs(recorded) + 2e-6 * size / (std + EPS)
    return abs(recorded - recomputed) <= loose + abs(recomputed) * EPS / max(std, EPS)


def disagreeing(groups: Sequence[Group], recomputed: Sequence[float]) -> list[bool]:
    """Of each group, whether a recorded advantage differs from the one in `recomputed`."""
    found, values = [], iter(recomputed)
    for group in groups:
        rewards = [abs(r.reward) for r in group.rollouts if r.reward is not None]
        pairs = [(r.advantage, next(values)) for r in group.rollouts]
        found.append(
            not all(
                a is None or agrees(a, b, group.reward_std or 0.0, max(rewards, default=0.0))
                for a, b in pairs
            )
        )
    return found


def rubric_of(config: RunConfig) -> Rubric:
    """Names, weights and outcome of recorded criteria."""
    recorded = Check(_never_called, Params, "")
    return Rubric(tuple((c, recorded, None) for c in resolve_rubric(config.rubric).criteria))


def _never_called(*_: object) -> float:
    raise AssertionError("recorded scores are not computed again")


@dataclass(frozen=True, slots=True)
class Compared:
    """The groups of a step with their advantages: the recorded ones, or else the recomputed."""

    groups: tuple[Group, ...]
    disagrees: tuple[bool, ...]  # of each group: a recorded advantage is not the recomputed one
    num_filled: int  # advantages that were not recorded

    @property
    def marked(self) -> tuple[Group, ...]:
        """The groups; those that disagree have that verdict."""
        return tuple(
            replace(g, verdict=DISAGREES) if wrong else g
            for g, wrong in zip(self.groups, self.disagrees, strict=True)
        )


@needs_learner
def compare(pairs: Sequence[PromptRollouts], config: RunConfig, is_cut: bool = False) -> Compared:
    """Compare siblings by the run's estimator. Recorded advantages stay, others are filled.

    is_cut: these are not all groups of their step. Then one factor of STEP_WIDE advantages is not
    known: it is taken from the recorded ones, and none are filled.
    """
    from grpo_core.training.scoring import group

    rubric = rubric_of(config)
    groups = [group(prompt, rollouts, rubric) for prompt, rollouts in pairs]
    if not groups or config.algorithm.advantage == NOT_RECOMPUTABLE:
        return Compared(tuple(groups), (False,) * len(groups), 0)
    values = _recomputed(pairs, config, is_cut)
    fills = not (is_cut and config.algorithm.advantage in STEP_WIDE)
    wrong = disagreeing(groups, values)
    remaining, num_filled = iter(values), 0
    for place, g in enumerate(groups):
        own = [next(remaining) for _ in g.rollouts]
        # Without a reward there is nothing to compare: its advantage is not 0, it is not known.
        missing = [fills and r.advantage is None and r.reward is not None for r in g.rollouts]
        if any(missing):
            num_filled += sum(missing)
            pairs_of = zip(g.rollouts, own, missing, strict=True)
            rollouts = [replace(r, advantage=a) if fill else r for r, a, fill in pairs_of]
            groups[place] = replace(g, rollouts=tuple(rollouts))
    return Compared(tuple(groups), tuple(wrong), num_filled)


@needs_learner
def find_estimator(
    pairs: Sequence[PromptRollouts], config: RunConfig, is_cut: bool = False
) -> str | None:
    """The estimator that gives all recorded advantages of a step, the configured one first.

    None if no group can tell: no advantages, or tied rewards. Also if no estimator gives them.
    """
    from grpo_core.training.scoring import group

    rubric = rubric_of(config)
    telling = [
        (prompt, rollouts)
        for prompt, rollouts in pairs
        if all(r.advantage is not None for r in rollouts)
    ]
    groups = [group(prompt, rollouts, rubric) for prompt, rollouts in telling]
    if not any((g.reward_std or 0.0) > TIE_TOLERANCE for g in groups):
        return None
    for name in dict.fromkeys((config.algorithm.advantage, *CANDIDATES)):
        changed = with_changes(config, {"algorithm.advantage": name})
        if name == NOT_RECOMPUTABLE:
            continue
        if not any(disagreeing(groups, _recomputed(telling, changed, is_cut))):
            return name
    return None


def _recomputed(pairs: Sequence[PromptRollouts], config: RunConfig, is_cut: bool) -> list[float]:
    from grpo_core.training.scoring import StepScores, compare_scores, sibling_keys

    rollouts = [r for _, siblings in pairs for r in siblings]
    keys = sibling_keys([p for p, _ in pairs], [len(siblings) for _, siblings in pairs], config)
    scores = StepScores([r.scores for r in rollouts], [None] * len(rollouts), keys)
    values = compare_scores(scores, rubric_of(config), config, RunningStd()).advantages.tolist()
    if not (is_cut and config.algorithm.advantage in STEP_WIDE):
        return values
    both = zip((r.advantage for r in rollouts), values, strict=True)
    factors = [a / b for a, b in both if a is not None and abs(b) > TIE_TOLERANCE]
    factor = statistics.median(factors) if factors else 1.0
    return [factor * value for value in values]


@needs_learner
def step_metrics(groups: Sequence[Group], config: RunConfig) -> dict[str, float | int | None]:
    """What the groups of a step tell, under the names of StepMetrics."""
    from grpo_core.training.scoring import group_metrics

    if any(r.completion.turns for g in groups for r in g.rollouts):
        groups = [replace(g, rollouts=tuple(map(_in_turns, g.rollouts))) for g in groups]

    lengths = [r.completion.num_tokens for g in groups for r in g.rollouts]
    whole = [n for n in lengths if n is not None]
    numbers = group_metrics(groups, rubric_of(config)) if groups else {}
    return numbers | ({"tokens": sum(whole)} if whole and len(whole) == len(lengths) else {})


def _in_turns(rollout: Rollout) -> Rollout:
    """Sources give turns to completions of several only. Beside such, another has one."""
    if rollout.completion.turns:
        return rollout
    turn = Turn(TurnRole.ACTION, "", 0, rollout.completion.num_tokens or 0)
    return replace(rollout, completion=replace(rollout.completion, turns=(turn,)))


@needs_learner
def evaluated(pairs: Sequence[PromptRollouts]) -> tuple[Group, ...]:
    """The groups of an evaluation: no advantages, and the verdict "evaluation"."""
    from grpo_core.training.evaluation import eval_group

    return tuple(
        eval_group(prompt, tuple(replace(r, advantage=None) for r in rollouts))
        for prompt, rollouts in pairs
    )
