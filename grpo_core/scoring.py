"""From sampled ids to scored groups, and what a step's or an evaluation's scores say in sum."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from grpo_core.config import RunConfig
from grpo_core.learner import ADVANTAGES
from grpo_core.policy import Policy
from grpo_core.rollout import Sampled
from grpo_core.rubric import Rubric, verdict
from grpo_core.rubric.verdict import TIE_TOLERANCE
from grpo_core.types import Completion, Group, Prompt, Rollout


def score_groups(prompts: Sequence[Prompt], sampled: Sequence[Sampled], policy: Policy, rubric: Rubric, config: RunConfig) -> tuple[Group, ...]:
    """Text, scores, reward and advantage of every completion; each group compared with itself alone."""
    size = config.train.group_size
    completions = [Completion(policy.decode(s.token_ids), s.finish_reason, len(s.token_ids)) for s in sampled]
    scored = [rubric.score(c, prompts[i // size]) for i, c in enumerate(completions)]
    rewards = torch.tensor([math.nan if r is None else r for _, r in scored], dtype=torch.float64).view(-1, size)  # (P, G)
    # float64: the record must equal what anyone recomputes from the stored rewards. A critic's advantages come later, see with_advantages.
    estimate = ADVANTAGES.get(config.algorithm.advantage, torch.zeros_like)
    advantages = estimate(rewards).flatten().tolist()
    rollouts = [Rollout(c, scores, reward, a) for c, (scores, reward), a in zip(completions, scored, advantages, strict=True)]
    return tuple(group(prompt, tuple(rollouts[p * size : (p + 1) * size]), rubric.outcome) for p, prompt in enumerate(prompts))


def with_advantages(groups: Sequence[Group], advantages: Sequence[float]) -> tuple[Group, ...]:
    """The same groups with other advantages, one a rollout in their order."""
    values = iter(advantages)
    return tuple(replace(g, rollouts=tuple(replace(r, advantage=next(values)) for r in g.rollouts)) for g in groups)


def group(prompt: Prompt, rollouts: tuple[Rollout, ...], outcome: str | None) -> Group:
    """The siblings of one prompt with their mean, sample standard deviation and verdict."""
    rewards = [r.reward for r in rollouts]
    scored = [r for r in rewards if r is not None]
    code = verdict(rewards, [r.scores[outcome] for r in rollouts] if outcome else [], [r.completion.finish_reason for r in rollouts])
    return Group(prompt, rollouts, mean(scored), statistics.stdev(scored) if len(scored) > 1 else None, code)


def group_metrics(groups: Sequence[Group], rubric: Rubric) -> dict[str, float | int | None]:
    """What the scored groups alone say about a step. Means over scored rows; shares of groups and completions over all."""
    rollouts = [r for g in groups for r in g.rollouts]
    rewards = [r.reward for r in rollouts if r.reward is not None]
    lengths = [r.completion.num_tokens for r in rollouts]
    spans = [[r.reward for r in g.rollouts if r.reward is not None] for g in groups]
    return {
        "reward_mean": mean(rewards), "reward_std": statistics.stdev(rewards) if len(rewards) > 1 else None,
        "advantage_std": statistics.pstdev([r.advantage for r in rollouts]),
        "tied_group_frac": mean(bool(s) and max(s) - min(s) <= TIE_TOLERANCE for s in spans),
        "tied_best_frac": mean(g.verdict == "all_right" for g in groups) if rubric.outcome else None,
        "tied_worst_frac": mean(g.verdict == "all_wrong" for g in groups) if rubric.outcome else None,
        "completion_tokens_mean": mean(lengths), "completion_tokens_max": max(lengths), "tokens": sum(lengths),
        "truncated_frac": mean(r.completion.finish_reason == "length" for r in rollouts),
        "unique_frac": mean(len({r.completion.text for r in g.rollouts}) / len(g.rollouts) for g in groups),
        "unscored_frac": 1 - len(rewards) / len(rollouts),
    }


def heldout_metrics(prompts: Sequence[Prompt], sampled: Sequence[Sampled], policy: Policy, rubric: Rubric) -> dict[str, float | None]:
    """Means over one completion of each held-out prompt.

    heldout/accuracy is the share that reaches the rubric's outcome criterion, with its 95 % Wilson interval.
    """
    completions = [Completion(policy.decode(s.token_ids), s.finish_reason, len(s.token_ids)) for s in sampled]
    scored = [rubric.score(c, prompt) for c, prompt in zip(completions, prompts, strict=True)]
    results = {f"heldout/{name}": mean(scores[name] for scores, _ in scored) for name in scored[0][0]}
    results |= {"heldout/reward": mean(reward for _, reward in scored), "heldout/completion_tokens": mean(c.num_tokens for c in completions)}
    outcomes = [scores[rubric.outcome] for scores, _ in scored if scores[rubric.outcome] is not None] if rubric.outcome else []
    if outcomes:
        reached = sum(o >= 1 for o in outcomes)
        low, high = wilson_interval(reached, len(outcomes))
        results |= {"heldout/accuracy": reached / len(outcomes), "heldout/accuracy_low": low, "heldout/accuracy_high": high}
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
