"""From a step's prompts to its scored groups: sample, score, and put fresh prompts in the place of those that teach nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from grpo_core.config import RunConfig
from grpo_core.errors import FieldProblem, InvalidConfig, OutOfMemory
from grpo_core.learner.memory import is_out_of_memory
from grpo_core.models import Policy
from grpo_core.rollout import OnGroupDone, Sampled, sample_groups
from grpo_core.rubric import Notes, Rubric
from grpo_core.tasks import Task, train_prompts
from grpo_core.training.async_scoring import AsyncScorer
from grpo_core.training.control import RunControl
from grpo_core.training.scoring import is_informative, score
from grpo_core.types import Phase, PhaseStarted, Prompt, Rollout


@dataclass(frozen=True, slots=True)
class SampledGroup:
    """One prompt with its G completions, as ids and as scored rollouts."""

    prompt: Prompt
    prompt_ids: list[int]
    sampled: list[Sampled]
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """The P groups of a step, and what it took to get them."""

    groups: list[SampledGroup]
    replaced_groups: int
    tokens: int  # completion tokens sampled, those of replaced groups included
    sampling_seconds: float
    scoring_seconds: float
    notes: dict[str, Notes]  # by criterion: why it could not score what it could not, and how often

    @property
    def sampled(self) -> list[Sampled]:
        """All B completions, siblings together."""
        return [s for g in self.groups for s in g.sampled]


def collect_rollouts(
    step: int, policy: Policy, task: Task, rubric: Rubric, config: RunConfig, control: RunControl
) -> RolloutBatch:
    """P prompts with G scored completions each.

    With `dynamic_sampling` n, tied groups are replaced by the step's next prompts in up to n rounds (DAPO, arXiv:2503.14476 §3.2); what
    is tied after the last one stays, so that every step has P groups.
    """
    t, rng = config.train, generator(policy, config.train.seed, step)
    groups: list[SampledGroup] = []
    notes: dict[str, Notes] = {}
    num_prompts, tokens, sampling, scoring = 0, 0, 0.0, 0.0
    for _ in range(1 + config.algorithm.dynamic_sampling):
        dull = (
            [
                i
                for i, g in enumerate(groups)
                if not is_informative(g.rollouts, rubric, config.rubric.gate)
            ]
            if groups
            else list(range(t.prompts_per_step))
        )
        if not dull:
            break
        control.enter(PhaseStarted(Phase.SAMPLING, step, t.steps))
        started = control.tell.now()
        prompts = train_prompts(task, t.seed, step, num_prompts + len(dull))[num_prompts:]
        num_prompts += len(dull)
        ids = [encode(policy, prompt, task, config) for prompt in prompts]
        keeps_logprobs = config.algorithm.off_policy_threshold is not None or t.token_records > 0
        with AsyncScorer(rubric, policy, prompts) as ahead:
            sampled = sample(
                policy,
                ids,
                t.group_size,
                config,
                t.temperature,
                rng,
                control,
                keeps_logprobs,
                ahead.tell if ahead.is_wanted else None,
            )
            tokens += sum(len(s.token_ids) for s in sampled)
            sampled_at = control.tell.now()

            control.enter(PhaseStarted(Phase.SCORING, step, t.steps))
            by_prompt = [
                sampled[p * t.group_size : (p + 1) * t.group_size] for p in range(len(prompts))
            ]
            rollouts, why = score(prompts, by_prompt, policy, rubric, ahead)
        fresh = [SampledGroup(*one) for one in zip(prompts, ids, by_prompt, rollouts, strict=True)]
        for name, more in why.items():
            notes.setdefault(name, Notes()).add(more)
        new_at = dict(zip(dull, fresh, strict=True))
        groups = [new_at.get(i) or groups[i] for i in range(t.prompts_per_step)]
        sampling, scoring = (
            sampling + sampled_at - started,
            scoring + control.tell.now() - sampled_at,
        )
    return RolloutBatch(groups, num_prompts - t.prompts_per_step, tokens, sampling, scoring, notes)


def sample(
    policy: Policy,
    prompts: list[list[int]],
    group_size: int,
    config: RunConfig,
    temperature: float,
    rng: torch.Generator,
    control: RunControl,
    keep_logprobs: bool = False,
    whole: OnGroupDone | None = None,
) -> list[Sampled]:
    """Completions of encoded prompts; `whole` is told of each group when it is. Raises OutOfMemory, saying what to lower, where they do not fit."""
    t = config.train
    try:
        return sample_groups(
            policy,
            prompts,
            group_size,
            t.max_new_tokens,
            temperature,
            rng,
            control.check_interrupt,
            keep_logprobs,
            whole,
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    longest = max(map(len, prompts)) + t.max_new_tokens
    raise OutOfMemory(
        f"train.group_size: there is not enough memory to sample {len(prompts) * group_size:,} completions of up to {longest:,} tokens, prompt "
        "included, at once. Lower prompts_per_step, group_size or max_new_tokens, or use a smaller model."
    )


def with_rewards(
    groups: list[SampledGroup], given: Mapping[tuple[int, int], float]
) -> list[tuple[Prompt, tuple[Rollout, ...]]]:
    """Prompts with their rollouts, some with the reward that a person gave: (group, completion) -> reward, both from 0."""
    return [
        (
            g.prompt,
            tuple(
                replace(r, reward=given[p, i], edited=True) if (p, i) in given else r
                for i, r in enumerate(g.rollouts)
            ),
        )
        for p, g in enumerate(groups)
    ]


def encode(policy: Policy, prompt: Prompt, task: Task, config: RunConfig) -> list[int]:
    """Prompt ids; refuses a prompt that leaves no room for the completion in the model's context."""
    ids = policy.encode(prompt, task.instruction)
    if policy.context is not None and len(ids) + config.train.max_new_tokens > policy.context:
        raise InvalidConfig(
            [
                FieldProblem(
                    "train.max_new_tokens",
                    config.train.max_new_tokens,
                    f"a prompt of {len(ids)} tokens and this many do not fit the model's context of {policy.context}",
                    f"Use {max(1, policy.context - len(ids))} or fewer.",
                )
            ]
        )
    return ids


def generator(policy: Policy, seed: int, step: int) -> torch.Generator:
    """The random numbers of one step. A step of -1 is evaluation's."""
    return torch.Generator(policy.device).manual_seed((seed * 1_000_003 + step + 1) % 2**63)
