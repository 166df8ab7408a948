"""One stored group, walked from its prompt to its update: every number of the way.

The numbers are the stored ones and what the trainer's own functions make of them. With a `Change`
the same functions compute what would have followed; the completions stay as sampled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from grpo_core.analysis.token_loss import (
    LossContext,
    TokenTerms,
    kl_measures,
    loss_context,
    token_terms,
)
from grpo_core.analysis.update_effect import Effect, update_effects
from grpo_core.analysis.what_if import TOLERANCE, Compared, compare_stored, with_changes
from grpo_core.config import RunConfig
from grpo_core.config.options import GROUPINGS
from grpo_core.store import GroupRow, RolloutRow, RunRow, Store

CLIP_RANGE = ("algorithm.clip_eps_low", "algorithm.clip_eps_high")
FOREIGN_TOLERANCE = 1e-3  # others store float32, and add another ε to the standard deviation
COMPARING = ("algorithm.advantage", "algorithm.grouping")  # fields that change advantages


@dataclass(frozen=True, slots=True)
class Change:
    """What a person changes of a stored group. Empty: the group as it was."""

    rewards: Mapping[int, float] = field(default_factory=dict)  # position -> another reward
    weights: Mapping[str, float] = field(default_factory=dict)  # criterion -> another weight
    fields: Mapping[str, Any] = field(default_factory=dict)  # "algorithm.kl_coef" -> its value
    size: int | None = None  # only the first so many completions of every group

    @property
    def compares_anew(self) -> bool:
        """Whether advantages follow from it, and not only the loss."""
        changed = self.rewards or self.weights or self.size is not None
        return bool(changed) or any(name in self.fields for name in COMPARING)


@dataclass(frozen=True, slots=True)
class WalkRow:
    """One completion on the way. None: not known."""

    rollout: RolloutRow
    reward: float | None  # Σ w·s, or as given by a person
    compared: float | None  # the reward after gate, scale and clip
    # A = difference / (spread + eps). None: a critic gave A, or (spread) nothing divides.
    difference: float | None
    spread: float | None
    eps: float
    advantage: float
    terms: TokenTerms | None  # of the last update on the batch
    pieces: Sequence[bytes]  # of the tokens
    kl: Mapping[str, float]  # estimator -> its mean over the tokens
    effect: Effect | None

    @property
    def baseline(self) -> float | None:
        """What the reward is compared with."""
        if self.compared is None or self.difference is None:
            return None
        return self.compared - self.difference

    @property
    def num_clipped(self) -> int:
        return sum(self.terms.clipped) if self.terms else 0

    @property
    def ratios(self) -> list[float]:
        """The ratios of the tokens that the policy wrote; empty if not known."""
        return [w for w in self.terms.ratio if not math.isnan(w)] if self.terms else []

    @property
    def ratio_span(self) -> tuple[float, float] | None:
        """The smallest and the largest of its ratios."""
        return (min(known), max(known)) if (known := self.ratios) else None

    @property
    def policy_loss(self) -> float | None:
        """What the objective adds to the loss of the step."""
        return math.fsum(self.terms.policy) if self.terms else None

    @property
    def kl_loss(self) -> float | None:
        """What KL adds to the loss of the step, with its coefficient."""
        return math.fsum(self.terms.kl_term) if self.terms else None

    @property
    def loss(self) -> float | None:
        """What the completion adds to the loss of the step, an entropy bonus included."""
        return math.fsum(self.terms.term) if self.terms else None


@dataclass(frozen=True, slots=True)
class Grouped:
    """How the group's first completion would be compared under a grouping."""

    num_compared: int  # completions that are compared with each other, itself included
    advantages: Sequence[float]  # of the group's completions


@dataclass(frozen=True, slots=True)
class Walk:
    """A group with all numbers of its way, and what they depend on of its step."""

    group: GroupRow
    config: RunConfig  # with the changes
    rows: tuple[WalkRow, ...]
    num_groups: int  # of the step
    num_tied: int  # of those in which every advantage is 0
    num_compared: int  # completions that those of this group are compared with
    num_rows: int  # of the step
    num_tokens: int  # of the step, that train
    kl_coef: float
    metrics: Mapping[str, Any]  # of the step, as recorded
    mismatch: float  # the largest |stored - recomputed| advantage; 0 with a change that compares
    tolerance: float  # a smaller one is rounding

    @property
    def by_critic(self) -> bool:
        return self.config.algorithm.advantage == "value"

    @property
    def measured(self) -> list[WalkRow]:
        """The completions whose log-probabilities were recorded."""
        return [row for row in self.rows if row.terms]

    def total(self, name: str) -> float | None:
        """The sum of a loss over the measured completions, e.g. "policy_loss"."""
        return math.fsum(getattr(row, name) for row in self.measured) if self.measured else None


@dataclass(frozen=True, slots=True)
class _Step:
    """The group's step under a change."""

    config: RunConfig
    compared: Compared
    advantages: Sequence[float]  # of all its completions
    indices: Sequence[int]  # of the group's completions among them

    @property
    def num_compared(self) -> int:
        """Completions that the group's own are compared with, themselves included."""
        keys = self.compared.keys
        return sum(key == keys[self.indices[0]] for key in keys)


class Walker:
    """Reads a group and its tokens once, for any number of changes."""

    def __init__(self, store: Store, run: RunRow, group: GroupRow):
        """group: of a training step."""
        self.store, self.run, self.group = store, run, group
        self.tokens = {r.id: store.token_row(r.id) for r in group.rollouts}
        effects = update_effects(store, group.rollouts)
        self.effects = {r.id: e for r, e in zip(group.rollouts, effects, strict=True)}
        self.metrics = next(iter(store.steps_between(run.id, group.step, group.step)), {})
        # A person may have set these while the run went on.
        self.own_fields = {
            i.field: i.value
            for i in store.interventions(run.id)
            if i.kind == "setting" and i.step <= group.step and i.field in CLIP_RANGE
        }

    def walk(self, change: Change | None = None) -> Walk:
        """The group's numbers under a change. Raises InvalidConfig for settings that cannot be."""
        change = change or Change()
        step = self._step(change)
        context = loss_context(
            self.store, self.run.id, self.group.step, step.config, group_size=change.size
        )
        if "algorithm.kl_coef" in change.fields or not self.metrics:
            context = replace(context, kl_coef=step.config.algorithm.kl_coef)
        of_step = step.compared.rows
        informative = {row.group_id for row, a in zip(of_step, step.advantages, strict=True) if a}
        num_groups = len({row.group_id for row in of_step})
        return Walk(
            group=self.group,
            config=step.config,
            rows=tuple(
                self._row(rollout, index, step, context)
                for index, rollout in zip(step.indices, self.group.rollouts, strict=False)
            ),
            num_groups=num_groups,
            num_tied=num_groups - len(informative),
            num_compared=step.num_compared,
            num_rows=context.num_rows,
            num_tokens=context.num_tokens,
            kl_coef=context.kl_coef,
            metrics=self.metrics,
            mismatch=_mismatch(step, change),
            tolerance=TOLERANCE if self.run.source is None else FOREIGN_TOLERANCE,
        )

    def groupings(self, change: Change | None = None) -> dict[str, Grouped]:
        """The group under each grouping, the rest as in the change."""
        change = change or Change()
        found = {}
        for name in GROUPINGS:
            fields = {**change.fields, "algorithm.grouping": name}
            step = self._step(replace(change, fields=fields))
            found[name] = Grouped(step.num_compared, [step.advantages[i] for i in step.indices])
        return found

    def _step(self, change: Change) -> _Step:
        config = with_changes(self.run.config, change.weights, {**self.own_fields, **change.fields})
        # A scale is a running standard deviation, so it needs all steps before.
        first = 0 if config.rubric.scale else self.group.step
        rows = self.store.scored(self.run.id, first, self.group.step)
        if change.size is not None:
            rows = [row for row in rows if row.position < change.size]
        given = {
            r.id: change.rewards[r.position]
            for r in self.group.rollouts
            if r.position in change.rewards
        }
        *_, compared = compare_stored(rows, config, given)
        if change.compares_anew and config.algorithm.advantage != "value":
            advantages = compared.comparison.advantages.tolist()
        else:
            advantages = [row.advantage or 0.0 for row in compared.rows]
        indices = [i for i, row in enumerate(compared.rows) if row.group_id == self.group.id]
        return _Step(config, compared, advantages, indices)

    def _row(self, rollout: RolloutRow, index: int, step: _Step, context: LossContext) -> WalkRow:
        """index: of the completion among those of the step."""
        comparison, advantage = step.compared.comparison, step.advantages[index]
        parts, shaped = comparison.parts, float(comparison.rewards[index])
        known = not math.isnan(shaped)
        by_critic = step.config.algorithm.advantage == "value"
        tokens, terms = self.tokens[rollout.id], None
        if tokens is not None:
            terms = token_terms(tokens, advantage, rollout.finish_reason, context)
        return WalkRow(
            rollout=rollout,
            reward=step.compared.rewards[index],
            compared=shaped if known else None,
            difference=float(parts.difference[index]) if known and not by_critic else None,
            spread=None if parts.spread is None else float(parts.spread[index]),
            eps=parts.eps,
            advantage=advantage,
            terms=terms,
            pieces=tokens.pieces if tokens else (),
            kl=kl_measures(tokens) if tokens else {},
            effect=self.effects[rollout.id],
        )


def _mismatch(step: _Step, change: Change) -> float:
    """The largest difference of the group's stored advantages to the recomputed ones."""
    if change.compares_anew or step.config.algorithm.advantage == "value":
        return 0.0
    own = step.compared.comparison.advantages.tolist()
    return max(abs(step.advantages[i] - own[i]) for i in step.indices)
