"""GRPO, the whole of it: sample groups, score them, compare siblings, move the policy. Knows neither SQLite nor a browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from time import perf_counter

import torch

from grpo_core.config import RunConfig
from grpo_core.control import RunControl
from grpo_core.draw import Emit, draw_groups, encode, generator
from grpo_core.fit import fitting
from grpo_core.learner import Batch, Learner
from grpo_core.policy import Policy, Vocabulary, load_policy, share_cores
from grpo_core.policy.environment import environment, peak_memory_mib
from grpo_core.rollout import sample_groups
from grpo_core.rubric import Rubric, Spread, build_rubric
from grpo_core.scoring import compare_groups, group_metrics, heldout_metrics, mean, with_advantages
from grpo_core.tasks import Task, heldout_prompts, load_task
from grpo_core.types import Evaluated, GroupsScored, ModelLoaded, Phase, PhaseStarted, Prompt, StepCompleted, StepMetrics, StepTokens


def train(config: RunConfig, emit: Emit, control: RunControl) -> None:
    """Train a policy by GRPO (arXiv:2402.03300), telling `emit` everything that happens, asking `control` whether to go on.

    On one machine with the same settings the same seed gives the same run: every random number comes from a generator keyed by
    (seed, step). Raises InvalidConfig for what cannot be run and StopRequested when control says so.
    """
    t = config.train
    emit(PhaseStarted(Phase.LOADING, 0, t.steps))
    task, rubric = load_task(config.task), build_rubric(config.rubric)
    policy = load_policy(config.model, t.seed)
    task = fitting(task, policy, config)
    heldout = heldout_prompts(task, config.task.heldout_size)
    share_cores(policy.num_parameters)
    learning_rate = t.learning_rate or default_learning_rate(policy)
    learner = Learner(policy.model, policy.frozen_copy(), config.algorithm, t, learning_rate)
    emit(ModelLoaded(environment(policy, learning_rate)))

    evaluate(0, heldout, policy, task, rubric, config, emit, control)
    spread, vocabulary = Spread(), Vocabulary(policy.tokenizer)  # of all rewards so far, and of the tokens met
    for step in range(1, t.steps + 1):
        started = perf_counter()
        drawn = draw_groups(step, policy, task, rubric, config, emit, control)
        groups, rewards, spread = compare_groups([(g.prompt, g.rollouts) for g in drawn.groups], rubric, config, spread)
        compared_at = perf_counter()
        batch = Batch(prompts=[g.prompt_ids for g in drawn.groups], completions=[s.token_ids for s in drawn.sampled],
                      trains=[not (config.algorithm.mask_truncated and s.finish_reason == "length") for s in drawn.sampled],
                      pad_id=policy.pad_id, device=policy.device, sampling_logprobs=[s.logprobs for s in drawn.sampled if s.logprobs] or None)
        judged = learner.judge(batch, rewards, control.breathe)  # with a critic: it must look before the policy moves
        if judged is not None:
            groups = with_advantages(groups, judged.row_advantages.tolist())
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        emit(GroupsScored(step, groups))
        control.breathe()

        emit(PhaseStarted(Phase.UPDATING, step, t.steps))
        advantages = torch.tensor([rollout.advantage for rollout in rollouts], device=policy.device)  # (B,)
        update = learner.update(batch, judged or advantages, control.breathe)

        now = perf_counter()
        metrics = StepMetrics(
            **group_metrics(groups, rubric), replaced_groups=drawn.replaced_groups, tokens=drawn.tokens,
            clip_frac=update.clip_low_frac + update.clip_high_frac, **{f.name: getattr(update, f.name) for f in fields(update)},
            sampling_seconds=drawn.sampling_seconds, scoring_seconds=drawn.scoring_seconds, update_seconds=now - compared_at,
            step_seconds=now - started, peak_memory_mib=peak_memory_mib(policy))
        extra = {f"score/{name}": mean(r.scores[name] for r in rollouts) for name in rubric.weights}
        recorded = t.token_records and step % t.token_records == 0
        emit(StepCompleted(step, metrics, extra | ({"reward_scale": spread.std} if config.rubric.scale else {}),
                           StepTokens(learner.log.records(), vocabulary.news(batch.completions)) if recorded else None))
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


def default_learning_rate(policy: Policy) -> float:
    """1e-4 below 50 M parameters, else 1e-6: what full fine-tuning by policy gradient bears."""
    return 1e-4 if policy.num_parameters < 50e6 else 1e-6
