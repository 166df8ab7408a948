"""From sampled ids to scored groups, and what a step's or an evaluation's scores say in sum."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from grpo_core.config import RunConfig
from grpo_core.learner import ADVANTAGES, GROUPINGS
from grpo_core.learner.advantages import compare
from grpo_core.models import Policy
from grpo_core.rollout import Sampled
from grpo_core.rubric import (
    Notes,
    Rubric,
    RunningStd,
    gated,
    shaped,
    total,
    variance_shares,
    verdict,
)
from grpo_core.rubric.predict import mean_interval, pass_at
from grpo_core.rubric.shaping import Scores
from grpo_core.training.async_scoring import AsyncScorer, completion
from grpo_core.types import TIE_TOLERANCE, Completion, Group, Prompt, Rollout


def score(
    prompts: Sequence[Prompt],
    sampled: Sequence[Sequence[Sampled]],
    policy: Policy,
    rubric: Rubric,
    ahead: AsyncScorer,
) -> tuple[list[tuple[Rollout, ...]], dict[str, Notes]]:
    """Text, scores and reward of each prompt's completions; advantages come when all groups of the step are there to be compared.

    What was asked for ahead is waited for and not asked again. Returns also, by criterion, why it could not score what it could not.
    """
    rows = [
        (prompt, completion(policy, s))
        for prompt, siblings in zip(prompts, sampled, strict=True)
        for s in siblings
    ]
    known, notes = ahead.found() or (None, {})
    scored = rubric.score_all([c for _, c in rows], [p for p, _ in rows], known)
    rollouts = iter(
        Rollout(c, scores, reward, 0.0)
        for (_, c), scores, reward in zip(rows, scored.scores, scored.rewards, strict=True)
    )
    return [tuple(next(rollouts) for _ in siblings) for siblings in sampled], notes | scored.notes


def compare_groups(
    groups: Sequence[tuple[Prompt, tuple[Rollout, ...]]],
    rubric: Rubric,
    config: RunConfig,
    spread: RunningStd,
) -> tuple[tuple[Group, ...], torch.Tensor, RunningStd]:
    """Rewards shaped, then every completion against its siblings. Returns the groups, the rewards (B,) that were compared, nan = unscored, and the
    spread with these in it.

    A rollout keeps its plain reward Σ w·s: gate, scale and clip decide what is compared, not what was achieved.
    """
    prompts, rollouts = [p for p, _ in groups], [r for _, siblings in groups for r in siblings]
    keys = sibling_keys(prompts, [len(siblings) for _, siblings in groups], config)
    advantages, rewards, spread = advantages_of(
        [r.scores for r in rollouts],
        [r.reward if r.edited else None for r in rollouts],
        keys,
        rubric,
        config,
        spread,
    )
    told = iter(
        replace(r, advantage=advantage)
        for r, advantage in zip(rollouts, advantages.tolist(), strict=True)
    )
    return (
        tuple(
            group(prompt, tuple(next(told) for _ in siblings), rubric, config.rubric.gate)
            for prompt, siblings in groups
        ),
        rewards,
        spread,
    )


def sibling_keys(prompts: Sequence[Prompt], sizes: Sequence[int], config: RunConfig) -> list[int]:
    """One number a rollout, equal for those that are compared with each other. sizes: rollouts of each prompt."""
    a = config.algorithm
    return [
        key
        for key, size in zip(
            GROUPINGS[a.grouping](prompts, a.similarity_threshold), sizes, strict=True
        )
        for _ in range(size)
    ]


def advantages_of(
    scores: Sequence[Scores],
    given: Sequence[float | None],
    keys: Sequence[int],
    rubric: Rubric,
    config: RunConfig,
    spread: RunningStd,
) -> tuple[torch.Tensor, torch.Tensor, RunningStd]:
    """From a step's scores to its advantages: gate, weights, scale, clip, comparison. What the trainer does, and the what-if over stored rows.

    given: the reward that a person gave a rollout, else None. Returns advantages and compared rewards (B,), nan = unscored, and the spread with these.
    """
    if config.rubric.gate and rubric.outcome:
        scores = gated(scores, keys, rubric.outcome)
    weights = rubric.weights
    distinct = {
        id(s): s for s in scores
    }  # equal scores of stored rows are one object: each is added up once
    sums = {key: total(s, weights) for key, s in distinct.items()}
    plain = [sums[id(s)] if own is None else own for s, own in zip(scores, given, strict=True)]
    spread = spread.including(plain)
    # float64: the record must equal what anyone recomputes from the stored rewards.
    rewards = torch.tensor(
        [_nan(r) for r in shaped(plain, config.rubric, spread)], dtype=torch.float64
    )  # (B,)
    rows = dict(zip(distinct, range(len(distinct)), strict=True))
    by_criterion = torch.tensor(
        [[_nan(s.get(name)) for name in weights] for s in distinct.values()], dtype=torch.float64
    )[[rows[id(s)] for s in scores]]  # (B, K)
    return (
        compare(
            ADVANTAGES[config.algorithm.advantage],
            rewards,
            by_criterion,
            torch.tensor(list(weights.values())),
            keys,
        ),
        rewards,
        spread,
    )


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
    rewards, outcome = [r.reward for r in rollouts], rubric.outcome
    scored = [r for r in rewards if r is not None]
    code = verdict(
        rewards,
        [r.scores[outcome] for r in rollouts] if outcome else [],
        [r.completion.finish_reason for r in rollouts],
        variance_shares([r.scores for r in rollouts], rubric.weights),
        outcome,
    )
    code = "gated" if gate and code == "phantom" else code
    return Group(
        prompt, rollouts, mean(scored), statistics.stdev(scored) if len(scored) > 1 else None, code
    )


def group_metrics(groups: Sequence[Group], rubric: Rubric) -> dict[str, float | int | None]:
    """What the scored groups alone say about a step. Means over scored rows; shares of groups and completions over all."""
    rollouts = [r for g in groups for r in g.rollouts]
    rewards = [r.reward for r in rollouts if r.reward is not None]
    lengths = [r.completion.num_tokens for r in rollouts]
    spans = [[r.reward for r in g.rollouts if r.reward is not None] for g in groups]
    return {
        "reward_mean": mean(rewards),
        "reward_std": statistics.stdev(rewards) if len(rewards) > 1 else None,
        "advantage_std": statistics.pstdev([r.advantage for r in rollouts]),
        "tied_group_frac": mean(bool(s) and max(s) - min(s) <= TIE_TOLERANCE for s in spans),
        "tied_best_frac": mean(g.verdict == "all_right" for g in groups)
        if rubric.outcome
        else None,
        "tied_worst_frac": mean(g.verdict == "all_wrong" for g in groups)
        if rubric.outcome
        else None,
        "tied_middle_frac": mean(g.verdict == "tied" for g in groups) if rubric.outcome else None,
        "completion_tokens_mean": mean(lengths),
        "completion_tokens_max": max(lengths),
        "truncated_frac": mean(r.completion.finish_reason == "length" for r in rollouts),
        "unique_frac": mean(
            len({r.completion.text for r in g.rollouts}) / len(g.rollouts) for g in groups
        ),
        "unscored_frac": 1 - len(rewards) / len(rollouts),
    }


def too_many_unscored(groups: Sequence[Group]) -> str | None:
    """Where more than half of a step's completions have no reward: which criteria failed how often."""
    rollouts = [r for g in groups for r in g.rollouts]
    lost = sum(r.reward is None for r in rollouts)
    if 2 * lost <= len(rollouts):
        return None
    failed = {name: sum(r.scores[name] is None for r in rollouts) for name in rollouts[0].scores}
    blame = ", ".join(f"{name} {n} times" for name, n in failed.items() if n)
    return f"{lost} of {len(rollouts)} completions could not be scored (null: {blame}). Mend the criterion, or press Resume to go on without them, or Stop."


def eval_metrics(
    prompts: Sequence[Prompt], sampled: Sequence[Sampled], policy: Policy, rubric: Rubric
) -> dict[str, float | None]:
    """Means over the completions of each prompt of an exam, as many of each, one after the other.

    accuracy is the share that reaches the rubric's outcome criterion, pass@1, with its 95 % interval: Wilson's for one try a prompt, over
    prompts for several; then pass@k for k = 2, 4, … too.
    """
    tries = len(sampled) // len(prompts)
    prompts = [p for p in prompts for _ in range(tries)]
    completions = [
        Completion(policy.decode(s.token_ids), s.finish_reason, len(s.token_ids)) for s in sampled
    ]
    found = rubric.score_all(completions, prompts)
    results = {name: mean(scores[name] for scores in found.scores) for name in rubric.weights}
    results |= {
        "reward": mean(found.rewards),
        "completion_tokens": mean(c.num_tokens for c in completions),
    }
    if rubric.outcome:
        outcomes = [scores[rubric.outcome] for scores in found.scores]
        known = [
            [o >= 1 for o in outcomes[i : i + tries] if o is not None]
            for i in range(0, len(outcomes), tries)
        ]
        results |= passes([right for right in known if right])
    return results


def passes(known: Sequence[Sequence[bool]]) -> dict[str, float | None]:
    """Accuracy and pass@k with intervals, from what was right for each prompt; prompts with fewer than k scored tries are left out of pass@k."""
    if not known:
        return {}
    if max(map(len, known)) == 1:
        reached = sum(right[0] for right in known)
        low, high = wilson_interval(reached, len(known))
        return {"accuracy": reached / len(known), "accuracy_low": low, "accuracy_high": high}
    results: dict[str, float | None] = {}
    for k in (2**i for i in range(max(map(len, known)).bit_length())):
        if rates := [pass_at(k, sum(right), len(right)) for right in known if len(right) >= k]:
            name = "accuracy" if k == 1 else f"pass@{k}"
            results |= dict(
                zip((name, f"{name}_low", f"{name}_high"), mean_interval(rates), strict=True)
            )
    return results


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion: (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n)      Wilson 1927"""
    p, n = successes / trials, trials
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are not None; None if there is none."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
