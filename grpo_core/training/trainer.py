"""GRPO: sample groups, score them, compare siblings, update the policy. No SQLite, no browser."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, fields, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from grpo_core.config import RunConfig, default_learning_rate, with_changes
from grpo_core.environments.worlds import Worlds
from grpo_core.errors import NonFinite
from grpo_core.learner import Batch, Learner, LearnerSettings
from grpo_core.learner.workers import ALONE, Workers
from grpo_core.models import Policy, Vocabulary, load_policy, share_cores
from grpo_core.models.context_fit import fit_to_context
from grpo_core.models.device import (
    describe_device,
    environment,
    peak_memory_mib,
    reset_peak_memory,
)
from grpo_core.models.download import fetch
from grpo_core.models.precision import why_precision
from grpo_core.rollout import SamplingParams
from grpo_core.rubric import Notes, Rubric, RunningStd, build_rubric
from grpo_core.tasks import Task, heldout_prompts, load_task, remarks, second_task
from grpo_core.training.checkpoint_manager import CheckpointManager
from grpo_core.training.control import RunControl
from grpo_core.training.determinism import determinism, how_it_repeats
from grpo_core.training.evaluation import eval_groups, eval_metrics, with_scores
from grpo_core.training.memory_estimate import recomputes_layers
from grpo_core.training.rollout_batch import (
    RolloutBatch,
    Session,
    ask,
    collect_rollouts,
    sample,
    with_rewards,
)
from grpo_core.training.sampling_engine import sampling_engine
from grpo_core.training.scoring import (
    Progress,
    PromptRollouts,
    compare_groups,
    group_metrics,
    mean,
    too_many_unscored,
    with_advantages,
)
from grpo_core.training.timing import RunTimer
from grpo_core.types import (
    Evaluated,
    Event,
    Group,
    GroupsScored,
    ModelLoaded,
    Noticed,
    Phase,
    PhaseStarted,
    Prompt,
    Rollout,
    StepCompleted,
    StepMetrics,
    StepTokens,
)

# Evaluation sets by name: "heldout", and "second", a task that is never trained on.
EvalSets = Mapping[str, tuple[Task, Sequence[Prompt]]]


def train(
    config: RunConfig,
    emit: Callable[[Event], None],
    control: RunControl,
    workers: Workers = ALONE,
) -> None:
    """Train a policy by GRPO (arXiv:2402.03300). `emit` gets every event; `control` has commands.

    With the same settings the same seed gives the same run on the same machine, in one go or
    resumed: every random number comes from a generator keyed by (seed, step, group). On a CPU it is
    the same bit for bit; on CUDA only with `train.deterministic`.

    workers: the processes that share the run, each of which calls this. All have the same events;
    only those of worker 0 are the run's record, and only its control is a person's. The others'
    may ask to stop. Another number of workers gives the same run but for rounding.
    Raises InvalidConfig for what cannot be run, and StopRequested when the run is stopped.
    """
    with determinism(config.train.deterministic):
        _train(config, emit, control, workers)


def _train(
    config: RunConfig, emit: Callable[[Event], None], control: RunControl, workers: Workers
) -> None:
    t, points = config.train, control.points
    points.timer = RunTimer(emit)
    session, eval_sets = workers.together(partial(load, config, control, workers))
    policy = session.policy
    beside = workers.gather(platform.node).count(platform.node())  # workers on this machine
    share_cores(policy.num_parameters, beside)
    rate = learning_rate(config, policy)
    reference = workers.together(partial(reference_of, session))
    learner = make_learner(session, reference, rate)  # workers meet in it, to share the weights
    resolved = {} if t.learning_rate else {"train.learning_rate": rate}
    points.emit(ModelLoaded(run_environment(session, learner), resolved))

    vocabulary = Vocabulary(policy.tokenizer)  # of the tokens met so far
    with (
        closing(session),
        CheckpointManager(policy.model, learner, config, control) as checkpoints,
    ):
        step, reward_scale, evaluated = checkpoints.restore()
        while True:
            due = step in (0, t.steps) or (t.eval_every and step % t.eval_every == 0)
            if due and not evaluated:
                settings = workers.first(partial(control.settings, step))
                changed = replace(session, config=with_changes(config, settings))
                accuracy = evaluate(changed, step, eval_sets)
                checkpoints.mark(step, reward_scale, True, accuracy)
            checkpoints.save_if_due()
            if step == t.steps:
                return
            step, evaluated = step + 1, False
            reward_scale, metrics = take_step(session, learner, vocabulary, step, reward_scale)
            checkpoints.mark(step, reward_scale, evaluated)
            workers.first(partial(points.end_step, step, metrics))


def take_step(
    session: Session, learner: Learner, vocabulary: Vocabulary, step: int, reward_scale: RunningStd
) -> tuple[RunningStd, dict[str, Any]]:
    """One step of GRPO. Returns the scale of all rewards so far, and the step's metrics."""
    points, rubric, workers = session.points, session.rubric, session.workers
    timer = points.timer
    started = timer.now()
    reset_peak_memory(session.policy.device)
    config = with_changes(session.config, workers.first(partial(points.begin_step, step)))
    session = replace(session, config=config)
    rate = learning_rate(config, session.policy)
    learner.apply_settings(LearnerSettings(config.algorithm, config.train, rate, config.rollout))

    sampled = collect_rollouts(session, step)
    report_unscored(session, step, sampled)
    update_from = timer.now()
    batch = learner_batch(session, sampled)
    edited = False
    while True:  # once, and again whenever a person edits a reward before the update
        rewards = workers.first(partial(points.edited_rewards, step))
        pairs = with_rewards(sampled.groups, rewards)
        groups, comparison = compare_groups(pairs, rubric, config, reward_scale)
        # A critic estimates values before the policy moves.
        estimates = learner.estimate_values(
            batch, comparison.rewards, points.check_interrupt, edited
        )
        if estimates is not None:
            groups = with_advantages(groups, estimates.row_advantages.tolist())
        points.emit(GroupsScored(step, groups))
        numbers = group_metrics(groups, rubric)
        warning = too_many_unscored(groups, sampled.notes)
        edited = workers.first(partial(points.review, step, groups, numbers, warning))
        if not edited:
            break

    updating = PhaseStarted(Phase.UPDATING, step, config.train.steps)
    workers.first(partial(points.begin_phase, updating))
    rollouts = [r for group in groups for r in group.rollouts]
    advantages = torch.tensor([r.advantage for r in rollouts], device=batch.device)  # (B,)
    measured: dict[str, Any] = {"num_updates": 0}
    tokens = None
    try:
        update = learner.update(
            batch,
            estimates or advantages,
            lambda: points.check_interrupt(at_step_boundary=not learner.midway),
        )
        measured = {f.name: getattr(update, f.name) for f in fields(update)}
        measured["clip_frac"] = update.clip_low_frac + update.clip_high_frac
        if config.train.token_records and step % config.train.token_records == 0:
            # The step is not recorded yet, so stopping waits for its end.
            learner.measure_after(
                first_informative(groups, config.train.after_records),
                lambda: points.check_interrupt(at_step_boundary=False),
            )
            tokens = step_tokens(groups, learner, vocabulary)
    except NonFinite as problem:
        refused = f"The update of step {step} was refused, {problem}. The weights are as before. "
        choice = "Press Resume to skip it and go on, or Stop."
        workers.first(partial(points.hold, refused + choice))

    now = timer.now()
    metrics = StepMetrics(
        **numbers,
        **measured,
        **timer.lap(),
        replaced_groups=sampled.replaced_groups,
        tokens=sampled.tokens,
        sampling_seconds=sampled.sampling_seconds,
        scoring_seconds=sampled.scoring_seconds,
        update_seconds=now - update_from,
        step_seconds=now - started,
        peak_memory_mib=largest(workers.gather(partial(peak_memory_mib, session.policy.device))),
    )
    extra = criterion_metrics(rubric, rollouts, sampled.notes)
    if config.rubric.scale:
        extra["reward_scale"] = comparison.reward_scale.std
    points.emit(StepCompleted(step, metrics, extra, tokens))
    return comparison.reward_scale, asdict(metrics)


# ---- the parts of a run and of a step --------------------------------------------------------


def load(config: RunConfig, control: RunControl, workers: Workers) -> tuple[Session, EvalSets]:
    """Task, rubric, policy and evaluation sets. Raises InvalidConfig naming the field."""
    points = control.points
    points.begin_phase(PhaseStarted(Phase.LOADING, 0, config.train.steps))
    task, rubric = load_task(config.task), build_rubric(config.rubric)
    fetch(
        config.model,
        lambda text: points.emit(Noticed(0, "download", "info", text)),
        points.check_interrupt,
    )
    policy = load_policy(config.model, config.train.seed)
    worlds = Worlds(policy, points.check_interrupt)
    task = fit_to_context(task, worlds.encoder(task, config.rollout), config)
    heldout = heldout_prompts(task, config.task.heldout_size)
    if said := remarks(task, heldout, config.task.heldout_size):
        points.emit(Noticed(0, "prompts", "warning", said))
    eval_sets = {"heldout": (task, heldout)}
    if (other := second_task(config.task)) is not None:
        second = load_task(other)
        encoder = worlds.encoder(second, config.rollout)
        second = fit_to_context(second, encoder, config.model_copy(update={"task": other}))
        eval_sets["second"] = second, heldout_prompts(second, other.heldout_size)
    with_prompts = {name: pair for name, pair in eval_sets.items() if pair[1]}
    engine = sampling_engine(config, policy, control, workers)
    return Session(
        config, policy, task, rubric, points, worlds, None, workers, engine
    ), with_prompts


def reference_of(session: Session) -> nn.Module | None:
    """A frozen copy of a run's policy, where the KL to it is measured."""
    return session.policy.frozen_copy() if session.config.algorithm.measure_kl else None


def make_learner(session: Session, reference: nn.Module | None, rate: float) -> Learner:
    """The learner of a run's policy."""
    config, policy = session.config, session.policy
    settings = LearnerSettings(config.algorithm, config.train, rate, config.rollout)
    recompute = recomputes_layers(config, policy)
    return Learner(policy.model, reference, settings, recompute, session.workers)


def run_environment(session: Session, learner: Learner) -> dict[str, Any]:
    """What a reader of the record needs to repeat the run: versions, device, prompts."""
    config, table, device = session.config, session.task.table, session.policy.device
    shared = shared_by(session.workers, device) if session.workers.world > 1 else {}
    prompts = {"prompts": table.fingerprint} if table else {}
    said = {
        "precision": why_precision(config.model, device),
        "repeats": how_it_repeats(device, config.train.deterministic),
    }
    if session.engine is not None:
        said["sampler"] = f"vLLM {session.engine.served.version}"
    return environment(session.policy, learner.learning_rate) | said | prompts | shared


def shared_by(workers: Workers, device: torch.device) -> dict[str, Any]:
    """How many workers share a run, on which devices of how many nodes."""
    places = workers.gather(lambda: (platform.node(), describe_device(device)))
    devices = Counter(name for _, name in places)
    return {
        "workers": len(places),
        "devices": "; ".join(f"{count} × {name}" for name, count in devices.items()),
        "nodes": len({node for node, _ in places}),
    }


def learner_batch(session: Session, sampled: RolloutBatch) -> Batch:
    """The rollouts of a step that this worker learns from, as token ids."""
    masks_truncated, policy = session.config.algorithm.mask_truncated, session.policy
    groups = [sampled.groups[p] for p in session.workers.mine(len(sampled.groups))]
    rollouts = [r for _, siblings in groups for r in siblings]
    logprobs = [r.sampling_logprobs for r in rollouts if r.sampling_logprobs]
    actions = None
    if any(r.action_mask for r in sampled.rollouts):
        actions = [r.action_mask or [True] * len(r.completion_ids) for r in rollouts]
    return Batch(
        prompts=[siblings[0].prompt_ids for _, siblings in groups],
        completions=[r.completion_ids for r in rollouts],
        trains=[not (masks_truncated and r.completion.finish_reason == "length") for r in rollouts],
        pad_id=policy.pad_id,
        device=policy.device,
        sampling_logprobs=logprobs or None,
        actions=actions,
    )


def report_unscored(session: Session, step: int, sampled: RolloutBatch) -> None:
    """Tell a person which criteria could not score, and why."""
    for criterion, notes in sampled.notes.items():
        if notes:
            reasons = "; ".join(f"{n} × {reason}" for reason, n in notes.most_common(3))
            text = f"{criterion} could not score: {reasons}"
            session.points.emit(Noticed(step, f"grader/{criterion}", "warning", text))


def criterion_metrics(
    rubric: Rubric, rollouts: Sequence[Rollout], notes: Mapping[str, Notes]
) -> dict[str, float | None]:
    """The mean score of each criterion, and what its grader used of each of its means."""
    means = {f"score/{name}": mean(r.scores[name] for r in rollouts) for name in rubric.weights}
    used = {
        f"used/{name}/{what}": amount
        for name, note in notes.items()
        for what, amount in note.used.items()
    }
    return means | used


def step_tokens(
    groups: Sequence[Group], learner: Learner, vocabulary: Vocabulary
) -> StepTokens | None:
    """What the update computed of each token, by the position of its rollout in the step."""
    positions = [(p, i) for p, group in enumerate(groups) for i in range(len(group.rollouts))]
    records = dict(zip(positions, learner.token_records(), strict=True))
    ids = [r.completion_ids for group in groups for r in group.rollouts]
    return StepTokens(records, vocabulary.new_pieces(ids))


def largest(values: Sequence[float | None]) -> float | None:
    return max((v for v in values if v is not None), default=None)


def first_informative(groups: Sequence[Group], count: int) -> list[int]:
    """Positions of the first `count` groups; those without any advantage come last."""
    tied = [not any(r.advantage for r in group.rollouts) for group in groups]
    return sorted(range(len(groups)), key=lambda p: tied[p])[:count]


def evaluate(session: Session, step: int, eval_sets: EvalSets) -> float | None:
    """Score `eval_samples` completions of every evaluation prompt; return held-out accuracy.

    They are sampled from the same random numbers each time, or greedily. The name of a set
    prefixes the names of its metrics. The first `eval_records` held-out groups are recorded.
    """
    if not eval_sets:
        return None
    t, points, workers = session.config.train, session.points, session.workers
    workers.first(partial(points.begin_phase, PhaseStarted(Phase.EVALUATING, step, t.steps)))
    session.give_weights()
    metrics: dict[str, float | None] = {}
    kept: tuple[Group, ...] = ()
    for name, (task, prompts) in eval_sets.items():
        of_task = replace(session, task=task)
        answered = workers.in_order(workers.gather(partial(answer, of_task, step, prompts)))
        prompts = [prompt for prompt, _ in answered]
        scored = [r for _, rollouts in answered for r in rollouts]
        results = eval_metrics(prompts, scored, session.rubric)
        if name == "heldout":
            kept = eval_groups(prompts, scored, t.eval_records)
        metrics |= {f"{name}/{what}": value for what, value in results.items()}
    session.points.emit(Evaluated(step, metrics, kept))
    return metrics.get("heldout/accuracy")


def answer(session: Session, step: int, prompts: Sequence[Prompt]) -> list[PromptRollouts]:
    """This worker's share of an evaluation set, with scored completions."""
    t, numbers = session.config.train, session.workers.mine(len(prompts))
    if not numbers:
        return []
    temperature = t.temperature if t.eval_mode == "sampled" else 0.0
    params = SamplingParams(t.eval_samples, t.max_new_tokens, temperature)
    asked = ask(session, [prompts[n] for n in numbers], t.eval_samples, -1, numbers)
    rollouts = sample(session, asked, params)
    scored = iter(with_scores(asked.prompts, rollouts, session.rubric, Progress(step, t.steps)))
    return [(prompt, tuple(islice(scored, t.eval_samples))) for prompt in asked.prompts]


def learning_rate(config: RunConfig, policy: Policy) -> float:
    """As set, or the default for the policy's size."""
    t, lora = config.train, bool(config.model.lora_rank)
    return t.learning_rate or default_learning_rate(policy.num_parameters, lora)
