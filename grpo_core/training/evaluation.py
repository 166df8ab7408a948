"""Score held-out completions: accuracy with intervals, and the groups that are kept."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from grpo_core.rubric import Rubric
from grpo_core.rubric.predict import mean_interval, pass_at, wilson_interval
from grpo_core.training.scoring import Progress, mean
from grpo_core.types import Group, GroupKind, Prompt, Rollout


def with_scores(
    prompts: Sequence[Prompt], rollouts: Sequence[Rollout], rubric: Rubric, progress: Progress
) -> list[Rollout]:
    """The rollouts of an evaluation set with scores and rewards; those of one prompt are together.

    Advantages stay None: nothing learns from these.
    """
    repeated = [p for p in prompts for _ in range(len(rollouts) // len(prompts))]
    completions = [r.completion for r in rollouts]
    scored = rubric.score_all(completions, repeated, run=progress.with_ids(rollouts))
    return [
        replace(r, scores=scores, reward=reward)
        for r, scores, reward in zip(rollouts, scored.scores, scored.rewards, strict=True)
    ]


def eval_groups(
    prompts: Sequence[Prompt], scored: Sequence[Rollout], num_kept: int
) -> tuple[Group, ...]:
    """The groups of the first `num_kept` prompts, without what only an update needs."""
    size = len(scored) // len(prompts) if prompts else 0
    groups = []
    for i, prompt in enumerate(prompts[:num_kept]):
        rollouts = tuple(
            replace(r, prompt_ids=(), completion_ids=(), sampling_logprobs=None, action_mask=None)
            for r in scored[i * size : (i + 1) * size]
        )
        groups.append(eval_group(prompt, rollouts))
    return tuple(groups)


def eval_group(prompt: Prompt, rollouts: tuple[Rollout, ...]) -> Group:
    """The scored completions of one prompt, which are not compared: their verdict says so."""
    rewards = [r.reward for r in rollouts if r.reward is not None]
    std = statistics.stdev(rewards) if len(rewards) > 1 else None
    return Group(prompt, rollouts, mean(rewards), std, GroupKind.EVALUATION)


def eval_metrics(
    prompts: Sequence[Prompt], scored: Sequence[Rollout], rubric: Rubric
) -> dict[str, float | None]:
    """Means over the completions of an evaluation set; those of one prompt stand together.

    accuracy is the share that reaches the rubric's outcome criterion, pass@1, with its 95 %
    interval: Wilson's for one completion a prompt, over prompts for several. With several there is
    pass@k for k = 2, 4, … too. tool_use: the share that calls a tool.
    """
    size = len(scored) // len(prompts)
    results = {name: mean(r.scores[name] for r in scored) for name in rubric.weights}
    results["reward"] = mean(r.reward for r in scored)
    results["completion_tokens"] = mean(r.completion.num_tokens for r in scored)
    if any(r.completion.turns for r in scored):
        results["tool_use"] = mean(r.completion.num_calls > 0 for r in scored)
    if rubric.outcome:
        outcomes = [r.scores[rubric.outcome] for r in scored]
        by_prompt = [
            [o >= 1 for o in outcomes[i : i + size] if o is not None]
            for i in range(0, len(outcomes), size)
        ]
        results |= passes([reached for reached in by_prompt if reached])
    return results


def passes(known: Sequence[Sequence[bool]]) -> dict[str, float | None]:
    """Accuracy and pass@k with intervals. known: for each prompt, which completions were right.

    Prompts with fewer than k scored completions are left out of pass@k.
    """
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
