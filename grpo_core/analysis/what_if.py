"""Stored groups under other settings: rewards and advantages as they would have been, by the trainer's own functions. Nothing is sampled.

The completions stay those of the policy that the run's own settings made; a real run with other settings would have sampled others.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from grpo_core.config import RunConfig, flatten, nest, parse
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.rubric import Rubric, RunningStd, resolve_rubric, total
from grpo_core.store import Store
from grpo_core.types import Prompt

TOLERANCE = 1e-6  # how far a stored number may lie from its recomputation: float64 against what JSON and SQLite keep of it
FIELDS = (
    "rubric.gate",
    "rubric.scale",
    "rubric.clip_low",
    "rubric.clip_high",
    "algorithm.advantage",
    "algorithm.grouping",
)


class Changed(NamedTuple):
    """One rollout, as stored and as it would have been. None: could not be scored. A tuple, because a run has a hundred thousand."""

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
        """Whether it would have been pushed the other way."""
        return self.advantage * self.advantage_then < 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the other settings change. Shares are of groups; a group is tied when none of its advantages differs from 0."""

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
    """A run's configuration with other weights and fields, e.g. settings(run.config, {"format": 0}, **{"rubric.gate": True}).

    Raises InvalidConfig for what makes no sense, and for a critic's advantages, which no rows can give again.
    """
    flat = flatten(parse(config)) | fields
    flat["rubric.criteria"] = [
        {**c, "weight": (weights or {}).get(c["name"], c["weight"])}
        for c in flat["rubric.criteria"]
    ]
    if flat["algorithm.advantage"] == "value":
        raise InvalidConfig(
            [
                FieldProblem(
                    "algorithm.advantage",
                    "value",
                    "a critic's advantages depend on the critic of that moment, which is gone",
                    "Choose another advantage to see what it would have said.",
                )
            ]
        )
    return parse(nest(flat))


def what_if(store: Store, run_id: str, config: RunConfig, group_id: int | None = None) -> Answer:
    """All stored groups of a run, or one, under `config`. A running scale needs the rewards of every step before; the rest one step at a time."""
    at = store.group_ref_of(group_id) if group_id is not None else None
    first = at[0] if at and not config.rubric.scale else 0
    with _no_sweeping():
        rows = store.scored(run_id, first, at[0] if at else None)
        changed = [c for c in recompute(rows, config) if group_id is None or c.group_id == group_id]
    groups = {c.group_id for c in changed}
    teach, teach_then = (
        {c.group_id for c in changed if c.advantage},
        {c.group_id for c in changed if c.advantage_then},
    )
    tied, tied_then = (
        1 - len(some) / len(groups) if groups else 0.0 for some in (teach, teach_then)
    )
    return Answer(changed, len(groups), tied, tied_then)


@dataclass(frozen=True, slots=True)
class Pull:
    """What another KL coefficient would have done to a group's loss, at the log-probabilities that were recorded. `loss`es are the group's part of the step's."""

    coef: float
    coef_then: float
    loss: float
    loss_then: float
    turned: int  # tokens whose gradient would have had the other sign
    num_tokens: int
    share: float  # Σ|gradient of KL| over Σ|gradient of the rest|, then
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
        num_tokens += len(now.term)
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
def _no_sweeping() -> Iterator[None]:
    """Without the garbage collector for a second: it would walk the hundred thousand tuples that are being made, again and again, a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def recompute(rows: Sequence[tuple[Any, ...]], config: RunConfig) -> Iterator[Changed]:
    """rows: as store.scored gives them, whole steps."""
    from grpo_core.training.scoring import (
        advantages_of,
        sibling_keys,
    )  # torch takes seconds to load: only who asks waits for it

    rubric, spread = _weights_alone(config), RunningStd()
    weights, known, plain = (
        rubric.weights,
        {},
        {},
    )  # few different scores are given in a run: each is read and added up once
    for step, of_step in groupby(rows, key=itemgetter(0)):
        siblings = list(of_step)
        for row in siblings:
            if row[7] not in known:
                known[row[7]] = json.loads(row[7])
                plain[row[7]] = total(known[row[7]], weights)
        prompts, sizes = _prompts(siblings, config.task.name)
        keys = sibling_keys(prompts, sizes, config)
        given = [row[8] if row[10] else None for row in siblings]
        advantages, _, spread = advantages_of(
            [known[row[7]] for row in siblings], given, keys, rubric, config, spread
        )
        for row, own, advantage in zip(siblings, given, advantages.tolist(), strict=True):
            # The stored reward is Σ w·s before gate, scale and clip, which decide what is compared and not what was achieved.
            yield Changed(
                row[5],
                row[1],
                step,
                row[2],
                row[6],
                row[8],
                row[9] or 0.0,
                plain[row[7]] if own is None else own,
                advantage,
            )


def _weights_alone(config: RunConfig) -> Rubric:
    """The rubric without its checks: scores are stored, so nothing is scored again, and a check that is not there any more is not missed."""
    return Rubric(tuple((c, None, None) for c in resolve_rubric(config.rubric).criteria))


def _prompts(rows: Sequence[tuple[Any, ...]], task: str) -> tuple[list[Prompt], list[int]]:
    prompts, sizes = [], []
    for _, group in groupby(rows, key=itemgetter(1)):
        siblings = list(group)
        prompts.append(Prompt(siblings[0][3], siblings[0][4], "", task))
        sizes.append(len(siblings))
    return prompts, sizes
