"""Score rollouts, compare siblings, and summarise a step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from grpo_core.config import RunConfig
from grpo_core.learner import ADVANTAGES, GROUPINGS, advantage_parts
from grpo_core.learner.advantages import Parts
from grpo_core.rubric import (
    Notes,
    Rubric,
    RunningStd,
    RunState,
    Scored,
    SiblingScores,
    gated,
    shaped,
    tie,
    total,
    variance_shares,
    verdict,
)
from grpo_core.rubric.shaping import Scores
from grpo_core.training.async_scoring import AsyncScorer
from grpo_core.types import TIE_TOLERANCE, Group, Prompt, Rollout, TurnRole

PromptRollouts = tuple[Prompt, tuple[Rollout, ...]]  # a prompt and its G rollouts


class Progress(NamedTuple):
    """Optimiser steps done, of all steps."""

    global_step: int
    max_steps: int

    def with_ids(self, rollouts: Sequence[Rollout]) -> RunState:
        """What reward functions may ask about sampled rollouts."""
        return RunState([r.completion_ids for r in rollouts], self.global_step, self.max_steps)


def score(
    prompts: Sequence[Prompt],
    rollouts: Sequence[Rollout],
    rubric: Rubric,
    scorer: AsyncScorer,
    progress: Progress,
) -> tuple[list[PromptRollouts], dict[str, Notes]]:
    """Scores and reward of the rollouts of P prompts, siblings together; advantages come later.

    Waits for what `scorer` has begun and does not score it again. Returns the groups and, by
    criterion, why scores are null.
    """
    known, notes = scorer.results() or (None, {})
    groups, scored = score_groups(prompts, rollouts, rubric, known, progress)
    return groups, notes | scored.notes


def score_groups(
    prompts: Sequence[Prompt],
    rollouts: Sequence[Rollout],
    rubric: Rubric,
    known: Sequence[Mapping[str, float | None]] | None = None,
    progress: Progress | None = None,
) -> tuple[list[PromptRollouts], Scored]:
    """Add scores and reward to the rollouts of P prompts, equally many each, siblings together.

    known: scores that are not computed again, one mapping a rollout. progress: of the run that
    sampled the rollouts; None for texts that belong to no run.
    """
    size = len(rollouts) // len(prompts)
    completions = [r.completion for r in rollouts]
    run = progress.with_ids(rollouts) if progress else None
    scored = rubric.score_all(completions, [p for p in prompts for _ in range(size)], known, run)
    done = [
        replace(rollout, scores=scores, reward=reward)
        for rollout, scores, reward in zip(rollouts, scored.scores, scored.rewards, strict=True)
    ]
    return [(p, tuple(done[i * size : (i + 1) * size])) for i, p in enumerate(prompts)], scored


@dataclass(frozen=True, slots=True)
class Comparison:
    """Advantages and compared rewards, (B,) each, nan = unscored; and the run's reward scale."""

    parts: Parts  # of the advantages
    rewards: torch.Tensor  # after gate, scale and clip
    reward_scale: RunningStd  # with these rewards in it

    @property
    def advantages(self) -> torch.Tensor:
        return self.parts.advantages


def compare_groups(
    groups: Sequence[PromptRollouts], rubric: Rubric, config: RunConfig, reward_scale: RunningStd
) -> tuple[tuple[Group, ...], Comparison]:
    """Compare every completion with its siblings. Returns groups whose rollouts have advantages.

    A rollout keeps its plain reward Σ w·s: gate, scale and clip decide what is compared, not what
    was achieved.
    """
    rollouts = [r for _, siblings in groups for r in siblings]
    keys = sibling_keys([p for p, _ in groups], [len(siblings) for _, siblings in groups], config)
    step_scores = StepScores(
        [r.scores for r in rollouts], [r.reward if r.edited else None for r in rollouts], keys
    )
    comparison = compare_scores(step_scores, rubric, config, reward_scale)
    advantages = iter(comparison.advantages.tolist())
    compared = tuple(
        group(
            prompt,
            tuple(replace(r, advantage=next(advantages)) for r in siblings),
            rubric,
            config.rubric.gate,
        )
        for prompt, siblings in groups
    )
    return compared, comparison


def sibling_keys(prompts: Sequence[Prompt], sizes: Sequence[int], config: RunConfig) -> list[int]:
    """One key a rollout, equal for those that are compared. sizes: rollouts of each prompt."""
    a = config.algorithm
    keys = GROUPINGS[a.grouping](prompts, a.similarity_threshold)
    return [key for key, size in zip(keys, sizes, strict=True) for _ in range(size)]


@dataclass(frozen=True, slots=True)
class StepScores:
    """The B rollouts of a step as they are compared."""

    scores: Sequence[Scores]  # by criterion
    edited: Sequence[float | None]  # the reward that a person gave, else None
    keys: Sequence[int]  # equal for rollouts that are compared with each other


def compare_scores(
    step: StepScores, rubric: Rubric, config: RunConfig, reward_scale: RunningStd
) -> Comparison:
    """From a step's scores to its advantages: gate, weights, scale, clip, comparison.

    The trainer and the what-if over stored rows both use it.
    """
    scores, weights = step.scores, rubric.weights
    if config.rubric.gate and rubric.outcome:
        scores = gated(scores, step.keys, rubric.outcome)
    # Equal scores of stored rows are one object: add each up once.
    distinct = {id(s): s for s in scores}
    sums = {key: total(s, weights) for key, s in distinct.items()}
    plain = [
        sums[id(s)] if reward is None else reward
        for s, reward in zip(scores, step.edited, strict=True)
    ]
    reward_scale = reward_scale.including(plain)
    # float64: the record must equal what anyone recomputes from the stored rewards.
    shaped_rewards = [_nan(r) for r in shaped(plain, config.rubric, reward_scale)]
    rewards = torch.tensor(shaped_rewards, dtype=torch.float64)  # (B,)
    rows = dict(zip(distinct, range(len(distinct)), strict=True))
    by_criterion = torch.tensor(
        [[_nan(s.get(name)) for name in weights] for s in distinct.values()], dtype=torch.float64
    )[[rows[id(s)] for s in scores]]  # (B, K)
    parts = advantage_parts(
        ADVANTAGES[config.algorithm.advantage],
        rewards,
        by_criterion,
        torch.tensor(list(weights.values()), dtype=torch.float64),
        step.keys,
    )
    return Comparison(parts, rewards, reward_scale)


def with_advantages(groups: Sequence[Group], advantages: Sequence[float]) -> tuple[Group, ...]:
    """The same groups with other advantages, one a rollout in their order."""
    values = iter(advantages)
    return tuple(
        replace(g, rollouts=tuple(replace(r, advantage=next(values)) for r in g.rollouts))
        for g in groups
    )


def is_informative(rollouts: Sequence[Rollout], rubric: Rubric, gate: bool) -> bool:
    """Whether siblings alone, compared with each other, would have advantages that are not 0."""
    scores = [r.scores for r in rollouts]
    if gate and rubric.outcome:
        scores = gated(scores, [0] * len(scores), rubric.outcome)
    known = [r for r in (total(s, rubric.weights) for s in scores) if r is not None]
    return bool(known) and max(known) - min(known) > TIE_TOLERANCE


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def group(
    prompt: Prompt, rollouts: tuple[Rollout, ...], rubric: Rubric, gate: bool = False
) -> Group:
    """The siblings of one prompt with their mean, sample standard deviation and verdict."""
    scored = [r.reward for r in rollouts if r.reward is not None]
    code = verdict(_siblings(rollouts, rubric), rubric.outcome)
    code = "gated" if gate and code == "phantom" else code
    return Group(
        prompt, rollouts, mean(scored), statistics.stdev(scored) if len(scored) > 1 else None, code
    )


def _siblings(rollouts: Sequence[Rollout], rubric: Rubric) -> SiblingScores:
    """What the verdict of a group follows from."""
    has_tools = any(r.completion.has_tools for r in rollouts)
    return SiblingScores(
        [r.reward for r in rollouts],
        [r.scores.get(rubric.outcome) for r in rollouts] if rubric.outcome else [],
        [r.completion.finish_reason for r in rollouts],
        variance_shares([r.scores for r in rollouts], rubric.weights),
        any(r.completion.num_calls for r in rollouts) if has_tools else None,
    )


def group_metrics(groups: Sequence[Group], rubric: Rubric) -> dict[str, float | int | None]:
    """Metrics of a step that need its groups only. Means are over scored rollouts.

    What another trainer did not record is left out: lengths, and how completions ended.
    """
    rollouts = [r for g in groups for r in g.rollouts]
    rewards = [r.reward for r in rollouts if r.reward is not None]
    lengths = [n for r in rollouts if (n := r.completion.num_tokens) is not None]
    ends = [end for r in rollouts if (end := r.completion.finish_reason) is not None]
    spans = [[r.reward for r in g.rollouts if r.reward is not None] for g in groups]
    ties = [tie(_siblings(g.rollouts, rubric)) for g in groups] if rubric.outcome else []
    return {
        "reward_mean": mean(rewards),
        "reward_std": statistics.stdev(rewards) if len(rewards) > 1 else None,
        "advantage_std": statistics.pstdev([r.advantage or 0.0 for r in rollouts]),
        "tied_group_frac": mean(bool(s) and max(s) - min(s) <= TIE_TOLERANCE for s in spans),
        "tied_best_frac": mean(kind == "all_right" for kind in ties),
        "tied_worst_frac": mean(kind == "all_wrong" for kind in ties),
        "tied_middle_frac": mean(kind == "tied" for kind in ties),
        "completion_tokens_mean": mean(lengths),
        "completion_tokens_max": max(lengths, default=None),
        "truncated_frac": mean(end == "length" for end in ends),
        "unique_frac": mean(
            len({r.completion.text for r in g.rollouts}) / len(g.rollouts) for g in groups
        ),
        "unscored_frac": 1 - len(rewards) / len(rollouts),
        **turn_metrics(rollouts),
    }


def turn_metrics(rollouts: Sequence[Rollout]) -> dict[str, float | None]:
    """Metrics of the rollouts in an environment: means over them alone; empty without any."""
    acting = [r for r in rollouts if r.completion.turns]
    if not acting:
        return {}
    turns = [t for r in acting for t in r.completion.turns]
    answers = [t for t in turns if t.role == TurnRole.OBSERVATION]
    num_tokens = sum(len(r.completion_ids) for r in acting)
    return {
        "turns_mean": (len(turns) - len(answers)) / len(acting),
        "tool_calls_mean": len(answers) / len(acting),
        "tool_error_frac": mean(bool(t.error) for t in answers),
        "observation_frac": sum(t.num_tokens for t in answers) / num_tokens if num_tokens else None,
    }


def too_many_unscored(groups: Sequence[Group], notes: Mapping[str, Notes]) -> str | None:
    """Which criteria failed and why, if more than half of a step's completions have no reward.

    notes: by criterion, why scores are null.
    """
    rollouts = [r for g in groups for r in g.rollouts]
    lost = sum(r.reward is None for r in rollouts)
    if 2 * lost <= len(rollouts):
        return None
    failed = {name: sum(r.scores[name] is None for r in rollouts) for name in rollouts[0].scores}
    blame = ", ".join(f"{name} {n} times" for name, n in failed.items() if n)
    reasons = " ".join(
        _first_reason(name, notes.get(name), groups) for name in failed if failed[name]
    )
    return (
        f"{lost} of {len(rollouts)} completions could not be scored (null: {blame}). {reasons} "
        "Once the cause is gone, or to go on without these scores, press Resume. "
        "To correct a criterion, press Stop and start a new run."
    )


def _first_reason(criterion: str, notes: Notes | None, groups: Sequence[Group]) -> str:
    """The most frequent reason why scores of a criterion are null, as a sentence."""
    if notes:
        reason, count = notes.most_common(1)[0]
        more = f" (and {len(notes) - 1} more)" if len(notes) > 1 else ""
        return f"First reason of {criterion} ({count} times): {reason.rstrip('.')}{more}."
    if not any(g.prompt.answer for g in groups):
        return f"Reason of {criterion}: the prompts have no right answer."
    return f"{criterion} gave no reason: it does not apply to these completions."


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are not None; None if there is none."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
