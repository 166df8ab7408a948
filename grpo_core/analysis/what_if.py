"""Rewards and advantages of stored groups under other settings, by the trainer's own functions.

The completions stay as sampled. A real run with other settings would have sampled others.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from grpo_core.analysis.learner_import import needs_learner
from grpo_core.config import RunConfig, flatten, nest, parse
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.rubric import Rubric, RunningStd, resolve_rubric, total
from grpo_core.rubric.check import Check, Params
from grpo_core.store import ScoredRow, Store
from grpo_core.types import Prompt

if TYPE_CHECKING:
    from grpo_core.training.scoring import Comparison

# Allowed difference between a stored number and its recomputation, since JSON and SQLite round.
TOLERANCE = 1e-6
FIELDS = (
    "rubric.gate",
    "rubric.scale",
    "rubric.clip_low",
    "rubric.clip_high",
    "algorithm.advantage",
    "algorithm.grouping",
)


class Changed(NamedTuple):
    """One rollout as stored, and (`…_then`) under the other settings. None: could not be scored.

    A tuple, because a run has a hundred thousand.
    """

    rollout_id: int
    group_id: int
    step: int
    group: int  # position of its group in the step
    position: int
    reward: float | None
    advantage: float
    reward_then: float | None
    advantage_then: float

    @property
    def flips(self) -> bool:
        """Whether the advantage changes its sign."""
        return self.advantage * self.advantage_then < 0


@dataclass(frozen=True, slots=True)
class Answer:
    """The effect of other settings.

    `tied`: share of groups in which every advantage is 0, as stored; `tied_then`: under the others.
    """

    rollouts: Sequence[Changed]
    num_groups: int
    tied: float
    tied_then: float

    @property
    def flips(self) -> int:
        return sum(r.flips for r in self.rollouts)

    @property
    def largest_change(self) -> float:
        return max((abs(r.advantage_then - r.advantage) for r in self.rollouts), default=0.0)


def settings(
    config: Mapping[str, Any], weights: Mapping[str, float] | None = None, **fields: Any
) -> RunConfig:
    """A run's configuration with other criterion weights and fields.

    Example: settings(run.config, {"format": 0}, **{"rubric.gate": True}). Raises InvalidConfig for
    invalid values, and for a critic's advantages, which stored rows cannot give.
    """
    changed = with_changes(config, weights or {}, fields)
    if changed.algorithm.advantage == "value":
        problem = "a critic's advantages depend on the critic of that step, which is not stored"
        hint = "Choose another advantage."
        raise InvalidConfig([FieldProblem("algorithm.advantage", "value", problem, hint)])
    return changed


def with_changes(
    config: Mapping[str, Any], weights: Mapping[str, float], fields: Mapping[str, Any]
) -> RunConfig:
    """The same for any advantage."""
    flat = flatten(parse(config)) | dict(fields)
    flat["rubric.criteria"] = [
        {**c, "weight": weights.get(c["name"], c["weight"])} for c in flat["rubric.criteria"]
    ]
    return parse(nest(flat))


def what_if(store: Store, run_id: str, config: RunConfig, group_id: int | None = None) -> Answer:
    """All stored groups of a run, or one group, under `config`.

    One group needs the rollouts of its step; with rubric.scale, whose scale is a running standard
    deviation, also those of all steps before.
    """
    at = store.group_ref_of(group_id) if group_id is not None else None
    first = at[0] if at and not config.rubric.scale else 0
    with _garbage_collector_off():
        rows = store.scored(run_id, first, at[0] if at else None)
        changed = [c for c in recompute(rows, config) if group_id is None or c.group_id == group_id]
    groups = {c.group_id for c in changed}
    informative = {c.group_id for c in changed if c.advantage}
    informative_then = {c.group_id for c in changed if c.advantage_then}
    return Answer(
        changed,
        len(groups),
        1 - len(informative) / len(groups) if groups else 0.0,
        1 - len(informative_then) / len(groups) if groups else 0.0,
    )


@dataclass(frozen=True, slots=True)
class Pull:
    """A group's loss under another KL coefficient (`…_then`), at the recorded log-probabilities.

    `loss` is the group's part of the loss of its step.
    """

    coef: float
    coef_then: float
    loss: float
    loss_then: float
    turned: int  # tokens whose gradient changes its sign
    num_tokens: int
    share: float  # Σ|gradient of KL| / Σ|gradient of the rest|, under the other coefficient
    measured: int  # completions with reference log-probabilities
    recorded: int  # completions with tokens
    size: int


def kl_pull(
    store: Store, run_id: str, group_id: int, config: RunConfig, coef: float
) -> Pull | None:
    """The group's loss terms under another KL coefficient. None where no tokens were recorded.

    The measured KL stays the same. A real run with another coefficient would have another policy
    from the second step on; stored rows cannot give the KL of that policy.
    """
    from grpo_core.analysis.token_loss import loss_context, token_terms

    group = store.group(group_id)
    context = loss_context(store, run_id, group.step, config)
    loss = loss_then = kl_push = push = 0.0
    turned = num_tokens = measured = recorded = 0
    for rollout in group.rollouts:
        row = store.token_row(rollout.id)
        if row is None:
            continue
        now, then, without = (
            token_terms(
                row,
                rollout.advantage or 0.0,
                rollout.finish_reason,
                replace(context, kl_coef=kl_coef),
            )
            for kl_coef in (context.kl_coef, coef, 0.0)
        )
        if not now or not then or not without:
            continue
        recorded += 1
        measured += row.ref_logprobs is not None
        num_tokens += sum(not math.isnan(p) for p in now.logprob)
        loss += sum(now.term)
        loss_then += sum(then.term)
        turned += sum(a * b < 0 for a, b in zip(now.gradient, then.gradient, strict=True))
        push += sum(map(abs, without.gradient))
        kl_push += sum(abs(a - b) for a, b in zip(then.gradient, without.gradient, strict=True))
    if not recorded:
        return None
    return Pull(
        context.kl_coef,
        coef,
        loss,
        loss_then,
        turned,
        num_tokens,
        kl_push / push if push else math.inf,
        measured,
        recorded,
        len(group.rollouts),
    )


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    """The collector would repeatedly scan the hundred thousand new tuples: a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def recompute(rows: Sequence[ScoredRow], config: RunConfig) -> Iterator[Changed]:
    """Rewards and advantages under `config` of the rollouts of whole steps."""
    for siblings, rewards, comparison, _ in compare_stored(rows, config):
        advantages = comparison.advantages.tolist()
        for row, reward, advantage in zip(siblings, rewards, advantages, strict=True):
            # The stored reward is Σ w·s before gate, scale and clip: these decide what is
            # compared, not what was achieved.
            yield Changed(
                rollout_id=row.rollout_id,
                group_id=row.group_id,
                step=row.step,
                group=row.group_position,
                position=row.position,
                reward=row.reward,
                advantage=row.advantage or 0.0,
                reward_then=reward,
                advantage_then=advantage,
            )


class Compared(NamedTuple):
    """The B rollouts of a step, as the trainer compares them."""

    rows: Sequence[ScoredRow]
    rewards: Sequence[float | None]  # Σ w·s, or the reward that a person gave
    comparison: Comparison
    keys: Sequence[int]  # equal for rollouts that are compared with each other


@needs_learner
def compare_stored(
    rows: Sequence[ScoredRow], config: RunConfig, given: Mapping[int, float] | None = None
) -> Iterator[Compared]:
    """Each step of these rollouts under `config`; with rubric.scale they start at the first step.

    given: rollout id -> a reward in place of its own.
    """
    # Imported here because torch takes seconds to load.
    from grpo_core.training.scoring import StepScores, compare_scores, sibling_keys

    rubric, reward_scale, given = _rubric_without_checks(config), RunningStd(), given or {}
    # A run has few different scores: parse and add up each once.
    scores: dict[str, Mapping[str, float | None]] = {}
    rewards: dict[str, float | None] = {}
    for _, of_step in groupby(rows, key=attrgetter("step")):
        siblings = list(of_step)
        for row in siblings:
            if row.scores not in scores:
                scores[row.scores] = json.loads(row.scores)
                rewards[row.scores] = total(scores[row.scores], rubric.weights)
        prompts, sizes = _prompts(siblings, config.task.name)
        own = [row.reward if row.edited else None for row in siblings]
        edited = [
            given.get(row.rollout_id, reward) for row, reward in zip(siblings, own, strict=True)
        ]
        keys = sibling_keys(prompts, sizes, config)
        step_scores = StepScores([scores[row.scores] for row in siblings], edited, keys)
        comparison = compare_scores(step_scores, rubric, config, reward_scale)
        reward_scale = comparison.reward_scale
        compared = [
            rewards[row.scores] if reward is None else reward
            for row, reward in zip(siblings, edited, strict=True)
        ]
        yield Compared(siblings, compared, comparison, keys)


def _rubric_without_checks(config: RunConfig) -> Rubric:
    """Names, weights and outcome of the criteria. Scores are stored, so no check runs again."""
    stored = Check(_never_called, Params, "")
    return Rubric(tuple((c, stored, None) for c in resolve_rubric(config.rubric).criteria))


def _never_called(*_: Any) -> float:
    raise AssertionError("stored scores are not computed again")


def _prompts(rows: Sequence[ScoredRow], task: str) -> tuple[list[Prompt], list[int]]:
    """The prompts of a step in order, and how many rollouts each has."""
    prompts, sizes = [], []
    for _, group in groupby(rows, key=attrgetter("group_id")):
        siblings = list(group)
        prompts.append(Prompt(siblings[0].prompt_id, siblings[0].prompt, "", task))
        sizes.append(len(siblings))
    return prompts, sizes
