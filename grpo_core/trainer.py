"""GRPO, the whole of it: sample groups, score them, compare siblings, move the policy. Knows neither SQLite nor a browser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan
from time import perf_counter

import torch

from grpo_core.config import RunConfig
from grpo_core.control import RunControl
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.learner import Batch, Learner
from grpo_core.policy import Policy, load_policy
from grpo_core.policy.environment import environment, peak_memory_mib
from grpo_core.rollout import sample_groups
from grpo_core.rubric import Rubric, build_rubric
from grpo_core.scoring import group_metrics, heldout_metrics, mean, score_groups, with_advantages
from grpo_core.tasks import Task, heldout_prompts, load_task, train_prompts
from grpo_core.types import Evaluated, Event, GroupsScored, ModelLoaded, Phase, PhaseStarted, Prompt, StepCompleted, StepMetrics

Emit = Callable[[Event], None]


def train(config: RunConfig, emit: Emit, control: RunControl) -> None:
    """Train a policy by GRPO (arXiv:2402.03300), telling `emit` everything that happens, asking `control` whether to go on.

    On one machine with the same settings the same seed gives the same run: every random number comes from a generator keyed by
    (seed, step). Raises InvalidConfig for what cannot be run and StopRequested when control says so.
    """
    t = config.train
    emit(PhaseStarted(Phase.LOADING, 0, t.steps))
    task, rubric = load_task(config.task.name), build_rubric(config.rubric)
    heldout = heldout_prompts(task, config.task.heldout_size)
    policy = load_policy(config.model, t.seed)
    learning_rate = t.learning_rate or default_learning_rate(policy)
    learner = Learner(policy.model, policy.frozen_copy(), config.algorithm, t, learning_rate)
    emit(ModelLoaded(environment(policy, learning_rate)))

    evaluate(0, heldout, policy, task, rubric, config, emit, control)
    for step in range(1, t.steps + 1):
        started = perf_counter()
        prompts = train_prompts(task, t.seed, step, t.prompts_per_step)

        emit(PhaseStarted(Phase.SAMPLING, step, t.steps))
        prompt_ids = [encode(policy, prompt, task, config) for prompt in prompts]
        sampled = sample_groups(policy, prompt_ids, t.group_size, t.max_new_tokens, t.temperature, generator(policy, t.seed, step), control.breathe)
        sampled_at = perf_counter()

        emit(PhaseStarted(Phase.SCORING, step, t.steps))
        groups = score_groups(prompts, sampled, policy, rubric, config)
        batch = Batch(prompt_ids, completions=[s.token_ids for s in sampled],
                      trains=[not (config.algorithm.mask_truncated and s.finish_reason == "length") for s in sampled],
                      pad_id=policy.pad_id, device=policy.device)
        scored_at = perf_counter()

        rewards = torch.tensor([nan if r.reward is None else r.reward for group in groups for r in group.rollouts], dtype=torch.float64)  # (B,)
        judged = learner.judge(batch, rewards, control.breathe)  # with a critic: it must look before the policy moves
        if judged is not None:
            groups = with_advantages(groups, judged.row_advantages.tolist())
        emit(GroupsScored(step, groups))
        control.breathe()

        emit(PhaseStarted(Phase.UPDATING, step, t.steps))
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        advantages = torch.tensor([rollout.advantage for rollout in rollouts], device=policy.device)  # (B,)
        update = learner.update(batch, judged or advantages, control.breathe)

        now = perf_counter()
        metrics = StepMetrics(
            **group_metrics(groups, rubric), kl_coef=config.algorithm.kl_coef, clip_frac=update.clip_low_frac + update.clip_high_frac,
            **{name: getattr(update, name) for name in update.__slots__},
            sampling_seconds=sampled_at - started, scoring_seconds=scored_at - sampled_at, update_seconds=now - scored_at,
            step_seconds=now - started, peak_memory_mib=peak_memory_mib(policy))
        emit(StepCompleted(step, metrics, {f"score/{name}": mean(r.scores[name] for r in rollouts) for name in rollouts[0].scores}))
        if step == t.steps or (t.eval_every and step % t.eval_every == 0):
            evaluate(step, heldout, policy, task, rubric, config, emit, control)


def evaluate(step: int, prompts: Sequence[Prompt], policy: Policy, task: Task, rubric: Rubric, config: RunConfig, emit: Emit,
             control: RunControl) -> None:
    """One sampled completion of every held-out prompt, from the same random numbers each time."""
    if not prompts:
        return
    t = config.train
    emit(PhaseStarted(Phase.EVALUATING, step, t.steps))
    prompt_ids = [encode(policy, prompt, task, config) for prompt in prompts]
    sampled = sample_groups(policy, prompt_ids, 1, t.max_new_tokens, t.temperature, generator(policy, t.seed, -1), control.breathe)
    emit(Evaluated(step, heldout_metrics(prompts, sampled, policy, rubric)))


def encode(policy: Policy, prompt: Prompt, task: Task, config: RunConfig) -> list[int]:
    """Prompt ids; refuses a prompt that leaves no room for the completion in the model's context."""
    ids = policy.encode(prompt, task.instruction)
    if policy.context is not None and len(ids) + config.train.max_new_tokens > policy.context:
        raise InvalidConfig([FieldProblem(
            "train.max_new_tokens", config.train.max_new_tokens, f"a prompt of {len(ids)} tokens and this many do not fit the model's context of {policy.context}",
            f"Use {max(1, policy.context - len(ids))} or fewer.")])
    return ids


def generator(policy: Policy, seed: int, step: int) -> torch.Generator:
    """The random numbers of one step. A step of -1 is evaluation's."""
    return torch.Generator(policy.device).manual_seed((seed * 1_000_003 + step + 1) % 2**63)


def default_learning_rate(policy: Policy) -> float:
    """1e-4 below 50 M parameters, else 1e-6: what full fine-tuning by policy gradient bears."""
    return 1e-4 if policy.num_parameters < 50e6 else 1e-6
