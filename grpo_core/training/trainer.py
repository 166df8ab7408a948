"""GRPO, the whole of it: sample groups, score them, compare siblings, move the policy. Knows neither SQLite nor a browser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch

from grpo_core.config import RunConfig, with_changes
from grpo_core.learner import Batch, Learner, NonFinite
from grpo_core.models import Policy, Vocabulary, load_policy, share_cores
from grpo_core.models.context_fit import fitting
from grpo_core.models.device import environment, peak_memory_mib
from grpo_core.models.download import fetch
from grpo_core.rubric import Rubric, RunningStd, build_rubric
from grpo_core.tasks import Task, heldout_prompts, load_task, second_task
from grpo_core.training.checkpoint import CheckpointManager
from grpo_core.training.control import RunControl
from grpo_core.training.memory_estimate import recomputes_layers
from grpo_core.training.rollout_batch import (
    collect_rollouts,
    encode,
    generator,
    sample,
    with_rewards,
)
from grpo_core.training.scoring import (
    compare_groups,
    eval_metrics,
    group_metrics,
    mean,
    too_many_unscored,
    with_advantages,
)
from grpo_core.training.timing import Clock
from grpo_core.types import (
    Evaluated,
    Event,
    GroupsScored,
    ModelLoaded,
    Noticed,
    Phase,
    PhaseStarted,
    Prompt,
    StepCompleted,
    StepMetrics,
    StepTokens,
)


def train(config: RunConfig, emit: Callable[[Event], None], control: RunControl) -> None:
    """Train a policy by GRPO (arXiv:2402.03300), telling `emit` everything that happens, asking `control` whether to go on.

    On one machine with the same settings the same seed gives the same run, in one go or resumed: every random number comes from a
    generator keyed by (seed, step). Raises InvalidConfig for what cannot be run and StopRequested when control says so.
    """
    control.tell = Clock(emit)
    t = config.train
    control.enter(PhaseStarted(Phase.LOADING, 0, t.steps))
    task, rubric = load_task(config.task), build_rubric(config.rubric)
    fetch(
        config.model,
        lambda text: control.tell(Noticed(0, "download", "info", text)),
        control.check_interrupt,
    )
    policy = load_policy(config.model, t.seed)
    task = fitting(task, policy, config)
    eval_sets = {"heldout": (task, heldout_prompts(task, config.task.heldout_size))}
    if (other := second_task(config.task)) is not None:
        second = fitting(load_task(other), policy, config.model_copy(update={"task": other}))
        eval_sets["second"] = second, heldout_prompts(second, other.heldout_size)
    share_cores(policy.num_parameters)
    reference = policy.frozen_copy() if config.algorithm.measure_kl else None
    learner = Learner(
        policy.model,
        reference,
        config.algorithm,
        t,
        learning_rate(config, policy),
        recomputes_layers(config, policy),
    )
    control.tell(
        ModelLoaded(
            environment(policy, learner.learning_rate)
            | ({"prompts": task.table.fingerprint} if task.table else {})
        )
    )

    vocabulary = Vocabulary(policy.tokenizer)  # of the tokens met
    with CheckpointManager(policy.model, learner, config, control) as checkpoints:
        step, spread, evaluated = (
            checkpoints.restore()
        )  # 0, no rewards seen yet, not evaluated; or what a checkpoint says
        while True:
            if not evaluated and (
                step in (0, t.steps) or (t.eval_every and step % t.eval_every == 0)
            ):
                accuracy = evaluate(
                    step,
                    eval_sets,
                    policy,
                    rubric,
                    with_changes(config, control.knobs(step)),
                    control,
                )
                checkpoints.mark(step, spread, True, accuracy)
            checkpoints.save_if_due()
            if step == t.steps:
                return
            step, evaluated = step + 1, False
            spread, measured = take_step(
                step, spread, policy, vocabulary, task, rubric, config, learner, control
            )
            checkpoints.mark(step, spread, evaluated)
            control.finished(step, measured)


def take_step(
    step: int,
    spread: RunningStd,
    policy: Policy,
    vocabulary: Vocabulary,
    task: Task,
    rubric: Rubric,
    config: RunConfig,
    learner: Learner,
    control: RunControl,
) -> tuple[RunningStd, dict[str, Any]]:
    """One step of GRPO. Returns the spread of all rewards so far, with this step's in it, and what was measured."""
    clock = control.tell
    started = clock.now()
    config = with_changes(config, control.changed(step))
    t = config.train
    learner.turn(config.algorithm, t, learning_rate(config, policy))

    drawn = collect_rollouts(step, policy, task, rubric, config, control)
    compared_at = clock.now()
    batch = Batch(
        prompts=[g.prompt_ids for g in drawn.groups],
        completions=[s.token_ids for s in drawn.sampled],
        trains=[
            not (config.algorithm.mask_truncated and s.finish_reason == "length")
            for s in drawn.sampled
        ],
        pad_id=policy.pad_id,
        device=policy.device,
        sampling_logprobs=[s.logprobs for s in drawn.sampled if s.logprobs] or None,
    )
    again = False
    while True:  # once; and again whenever a person edits a reward before the update
        groups, rewards, seen = compare_groups(
            with_rewards(drawn.groups, control.rewards(step)), rubric, config, spread
        )
        judged = learner.judge(
            batch, rewards, control.check_interrupt, again
        )  # with a critic: it must look before the policy moves
        if judged is not None:
            groups = with_advantages(groups, judged.row_advantages.tolist())
        control.tell(GroupsScored(step, groups))
        numbers = group_metrics(groups, rubric)
        if not (again := control.review(step, groups, numbers, too_many_unscored(groups))):
            break
    for criterion, why in drawn.notes.items():
        if why:
            control.tell(
                Noticed(
                    step,
                    f"grader/{criterion}",
                    "warning",
                    f"{criterion} could not score: "
                    + "; ".join(f"{n} × {w}" for w, n in why.most_common(3)),
                )
            )
    rollouts = [rollout for group in groups for rollout in group.rollouts]

    control.enter(PhaseStarted(Phase.UPDATING, step, t.steps))
    advantages = torch.tensor(
        [rollout.advantage for rollout in rollouts], device=policy.device
    )  # (B,)
    measured: dict[str, Any] = {"num_updates": 0}
    tokens = None
    try:
        update = learner.update(
            batch, judged or advantages, lambda: control.check_interrupt(whole=not learner.midway)
        )
        measured = {f.name: getattr(update, f.name) for f in fields(update)} | {
            "clip_frac": update.clip_low_frac + update.clip_high_frac
        }
        if t.token_records and step % t.token_records == 0:
            tokens = StepTokens(learner.log.records(), vocabulary.news(batch.completions))
    except NonFinite as problem:
        control.hold(
            f"The update of step {step} was refused, {problem}. The weights are as before. Press Resume to skip it and go on, or Stop."
        )

    now = clock.now()
    metrics = StepMetrics(
        **numbers,
        **measured,
        **clock.lap(),
        replaced_groups=drawn.replaced_groups,
        tokens=drawn.tokens,
        sampling_seconds=drawn.sampling_seconds,
        scoring_seconds=drawn.scoring_seconds,
        update_seconds=now - compared_at,
        step_seconds=now - started,
        peak_memory_mib=peak_memory_mib(policy),
    )
    extra = {f"score/{name}": mean(r.scores[name] for r in rollouts) for name in rubric.weights}
    extra |= {
        f"used/{name}/{what}": amount
        for name, why in drawn.notes.items()
        for what, amount in why.used.items()
    }
    control.tell(
        StepCompleted(
            step,
            metrics,
            extra | ({"reward_scale": seen.std} if config.rubric.scale else {}),
            tokens,
        )
    )
    return seen, asdict(metrics)


def evaluate(
    step: int,
    eval_sets: Mapping[str, tuple[Task, Sequence[Prompt]]],
    policy: Policy,
    rubric: Rubric,
    config: RunConfig,
    control: RunControl,
) -> float | None:
    """`eval_samples` completions of every prompt of every exam, sampled from the same random numbers each time, or greedy. Returns the held-out accuracy.

    eval_sets: "heldout", and "second": a task that is not trained on. Their names stand before those of their metrics.
    """
    if not any(prompts for _, prompts in eval_sets.values()):
        return None
    t = config.train
    control.enter(PhaseStarted(Phase.EVALUATING, step, t.steps))
    temperature = t.temperature if t.eval_mode == "sampled" else 0.0
    metrics: dict[str, float | None] = {}
    for name, (task, prompts) in eval_sets.items():
        prompt_ids = [encode(policy, prompt, task, config) for prompt in prompts]
        sampled = sample(
            policy,
            prompt_ids,
            t.eval_samples,
            config,
            temperature,
            generator(policy, t.seed, -1),
            control,
        )
        metrics |= {
            f"{name}/{what}": value
            for what, value in eval_metrics(prompts, sampled, policy, rubric).items()
        }
    control.tell(Evaluated(step, metrics))
    return metrics.get("heldout/accuracy")


def learning_rate(config: RunConfig, policy: Policy) -> float:
    """As set, or 1e-4 below 50 M parameters, else 1e-6: what full fine-tuning by policy gradient bears; adapters bear ten times that."""
    return config.train.learning_rate or (1e-4 if policy.num_parameters < 50e6 else 1e-6) * (
        10 if config.model.lora_rank else 1
    )
