"""The report before step 1: a real first step on a copy of the model, judged as findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_core.config import RunConfig, TaskConfig
from grpo_core.config.devices import shares
from grpo_core.errors import StopRequested, StudioError
from grpo_core.preflight.finding import LEVELS, Finding
from grpo_core.preflight.model_report import ENDS_DIFFER, ModelReport
from grpo_core.rubric import build_rubric
from grpo_core.rubric.predict import GROUP_SIZES, tied_share
from grpo_core.runs.zerogpu import outlook, steps_that_fit
from grpo_core.tasks import heldout_prompts, load_task, second_task
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import (
    Evaluated,
    Event,
    Group,
    GroupsScored,
    ModelLoaded,
    Noticed,
    Paused,
    StepCompleted,
    StepMetrics,
)

# Largest KL at step 1, in nats per token. Rounding in bfloat16 gives a tenth of it, and a fault
# a thousand times as much.
MAX_FIRST_KL = 1e-3
# Of a rollout server: its kernels in bfloat16 give a quarter of it.
MAX_SAMPLER_KL = 1e-2
MAX_PAUSES = 8  # of the first step
MAX_HELDOUT = 64  # held-out prompts for the baseline
# A share of 0.999 or more counts as all completions or groups.
ALL = 0.999


@dataclass(slots=True)
class FirstStep:
    """Collects the events of one step of training."""

    metrics: StepMetrics | None = None
    groups: tuple[Group, ...] = ()
    baseline: dict[str, float | None] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    pauses: list[str] = field(default_factory=list)  # why the run would have paused
    control: RunControl = field(default_factory=RunControl)
    env: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        match event:
            case ModelLoaded(env=env):
                self.env = env
            case StepCompleted(metrics=metrics):
                self.metrics = metrics
            case GroupsScored(groups=groups):
                self.groups = groups
            case Evaluated(step=0, metrics=metrics):
                self.baseline = dict(metrics)
            case Noticed(message=message):
                self.notices.append(message)
            case Paused(
                reason
            ):  # nobody can resume a preflight, so it reports the pause and goes on
                self.pauses.append(reason)
                if len(self.pauses) < MAX_PAUSES:
                    self.control.resume()
                else:  # nothing changes without a person
                    self.control.stop(reason)


def first_step(config: RunConfig, train: Callable[..., None] = train) -> FirstStep:
    """Take the run's first step with the real trainer, on a copy of the model; keep nothing."""
    once = {"steps": 1, "eval_every": 0, "checkpoint_every": 0, "token_records": 0}
    heldout = {"heldout_size": _few_heldout(config.task)}
    short = config.model_copy(
        update={
            "train": config.train.model_copy(update=once),
            "task": config.task.model_copy(update=heldout),
        }
    )
    first = FirstStep()
    try:
        train(short, first, first.control)
    except StopRequested as stopped:  # by itself, after MAX_PAUSES
        raise StudioError(str(stopped)) from None
    return first


def _few_heldout(task: TaskConfig) -> int | None:
    """Held-out prompts for the baseline: at most MAX_HELDOUT, and no more than there are."""
    size = task.heldout_size
    if size is None:
        if task.too_long == "drop":  # it is not known yet how many are dropped
            return None
        tasks = [task] + ([second] if (second := second_task(task)) else [])
        size = min(len(heldout_prompts(load_task(each), None)) for each in tasks)
    return min(MAX_HELDOUT, size)


def findings(
    config: RunConfig,
    model: ModelReport,
    counts: dict[str, Any],
    first: FirstStep,
    turns: Sequence[Finding] = (),
) -> list[Finding]:
    """The findings of a completed first step, ordered red, amber, green.

    counts: prompt counts of a file or dataset; empty for a built-in task. turns: those about its
    environment.
    """
    metrics = first.metrics
    assert metrics is not None, "the first step is complete"
    results = [
        *(Finding("red", "It would pause", p) for p in first.pauses),
        *_model_findings(model),
        *_prompt_findings(counts, config),
        *_rubric_findings(first),
        *_group_findings(config, first),
        *_worker_findings(config),
        *turns,
        *_length_findings(config, metrics),
        *_baseline_findings(config, first),
        *_update_findings(config, metrics),
        *_sampler_findings(first.env, metrics),
        *_lease_findings(config, first.env, metrics),
    ]
    return sorted(results, key=lambda f: LEVELS.index(f.level))


def _model_findings(m: ModelReport) -> list[Finding]:
    results = [Finding("red", "Model", p, final=True) for p in m.problems]
    if not m.ends_agree:
        results.append(Finding("amber", "Model", ENDS_DIFFER))
    if results:
        return results
    workers = f"{m.workers} × " if m.workers > 1 else ""
    text = f"{m.parameters:,} parameters in {m.dtype} on {workers}{m.device}; its end tokens agree."
    return [Finding("green", "Model", text)]


def _prompt_findings(counts: dict[str, Any], config: RunConfig) -> list[Finding]:
    if not counts:
        return []
    texts = {
        "empty": "{:,} rows have no prompt; they are left out.",
        "contradictions": "{:,} prompts repeat with a different answer.",
        "leaks": "{:,} training prompts are also held out; they are left out of training.",
        "unanswered": "{:,} prompts have no answer.",
        "too_long": "{:,} prompts are too long and are dropped.",
    }
    amber = [text.format(counts[name]) for name, text in texts.items() if counts[name]]
    if counts["heldout"] < config.task.max_heldout:
        amber.append(f"Only {counts['heldout']:,} prompts are held out.")
    if amber:
        return [Finding("amber", "Prompts", text) for text in amber]
    text = (
        f"{counts['train']:,} to train on, {counts['heldout']:,} held out, "
        f"{counts['duplicates']:,} duplicates left out."
    )
    return [Finding("green", "Prompts", text)]


def _rubric_findings(first: FirstStep) -> list[Finding]:
    """Criteria that could not score, and completions without a reward."""
    rollouts = [r for g in first.groups for r in g.rollouts]
    results = []
    for notice in first.notices:
        criterion, phrase, _ = notice.partition(" could not score")
        if phrase and criterion in rollouts[0].scores:
            fails_always = all(r.scores[criterion] is None for r in rollouts)
            results.append(Finding("red" if fails_always else "amber", "Rubric", notice))
    unscored = sum(r.reward is None for r in rollouts)
    if unscored:
        level = "red" if 2 * unscored > len(rollouts) else "amber"
        text = f"{unscored} of {len(rollouts)} completions have no reward."
        results.append(Finding(level, "Rubric", text))
    return results


def _group_findings(config: RunConfig, first: FirstStep) -> list[Finding]:
    """The share of tied groups, measured and expected at other group sizes."""
    rewards = [[r.reward for r in g.rollouts] for g in first.groups]
    tied = tied_share(rewards, config.train.group_size)
    if tied is None:
        return []
    shares = {size: tied_share(rewards, size) for size in GROUP_SIZES}
    by_size = ", ".join(f"{size}: {s:.0%}" for size, s in shares.items() if s is not None)
    level = "red" if tied >= ALL else "amber" if tied > 0.7 else "green"
    text = (
        f"{tied:.0%} of groups tie at {config.train.group_size} completions and give no gradient. "
        f"By group size: {by_size}."
    )
    return [Finding(level, "Groups", text)]


def _worker_findings(config: RunConfig) -> list[Finding]:
    """How the groups are shared out among the workers."""
    groups, workers = config.train.prompts_per_step, config.train.workers
    if not (text := shares(groups, workers)):
        return []
    if groups % workers:
        text += " Set Prompts per step to a multiple of Workers."
    return [Finding("amber" if groups % workers else "green", "Workers", text)]


def _length_findings(config: RunConfig, m: StepMetrics) -> list[Finding]:
    cut = m.truncated_frac or 0.0
    if cut <= 0.3:
        return []
    text = (
        f"{cut:.0%} of completions were cut at {config.train.max_new_tokens} tokens: "
        "raise Max new tokens."
    )
    return [Finding("red" if cut >= ALL else "amber", "Length", text)]


def _baseline_findings(config: RunConfig, first: FirstStep) -> list[Finding]:
    baseline = first.baseline
    accuracy = baseline.get("heldout/accuracy")
    if accuracy is not None:
        low, high = baseline["heldout/accuracy_low"], baseline["heldout/accuracy_high"]
        level, hint = "green", ""
        if accuracy == 0:
            level, hint = "amber", " No answer is right, so the policy may find nothing to learn."
        elif accuracy == 1:
            level, hint = "amber", " There is nothing left to learn."
        text = (
            f"{accuracy:.1%} of held-out prompts are right now "
            f"(95 % interval {low:.1%} to {high:.1%}).{hint}"
        )
        return [Finding(level, "Baseline", text)]
    if build_rubric(config.rubric).outcome is None:
        text = "No criterion decides whether a completion is right, so accuracy cannot be measured."
        return [Finding("amber", "Baseline", text)]
    return []


def _update_findings(config: RunConfig, m: StepMetrics) -> list[Finding]:
    results = []
    if m.kl is not None and abs(m.kl) < MAX_FIRST_KL:
        results.append(Finding("green", "KL at first", f"{m.kl:.2g} nats a token."))
    elif m.kl is not None:
        text = (
            f"{m.kl:.2g} nats a token: it must be 0. "
            "Dropout, adapters or precision make the policy differ from itself."
        )
        results.append(Finding("red", "KL at first", text))
    if m.grad_norm == 0:
        text = "The first step has none: all its groups tie."
        results.append(Finding("amber", "Gradient", text))
    seconds = m.step_seconds or 0.0
    steps = config.train.steps
    text = (
        f"The first step took {seconds:.1f} s, so {steps:,} steps take about "
        f"{_duration(seconds * steps)}; first steps are slower than later ones."
    )
    results.append(Finding("green", "Time", text))
    where = " on worker 1" if config.train.workers > 1 else ""
    text = f"{m.peak_memory_mib:,.0f} MiB at most in this step{where}."
    results.append(Finding("green", "Memory", text))
    return results


def _sampler_findings(env: Mapping[str, Any], m: StepMetrics) -> list[Finding]:
    """A server that samples: how far its probabilities are from the learner's."""
    if "sampler" not in env or m.sampler_kl is None:
        return []
    text = (
        f"{env['sampler']} writes the completions. KL to the learner: {m.sampler_kl:.1e} nats a "
        f"token, largest ratio {m.sampler_ratio_max:.3g}."
    )
    return [Finding("amber" if m.sampler_kl > MAX_SAMPLER_KL else "green", "Rollouts", text)]


def _lease_findings(config: RunConfig, env: Mapping[str, Any], m: StepMetrics) -> list[Finding]:
    """On ZeroGPU: how many steps fit into one lease, by the time of the first step."""
    lease_seconds = env.get("lease_seconds")
    if not lease_seconds:
        return []
    measured = env["lease_begin_seconds"], m.step_seconds or 0.0
    num_steps = steps_that_fit(lease_seconds, *measured)
    level = "green"
    if num_steps < config.train.steps:
        level = "amber" if num_steps else "red"
    return [Finding(level, "Lease", outlook(lease_seconds, config, measured))]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def refusal(report: Sequence[Finding], anyway: bool) -> str:
    """Why a run with this report may not start; "" if it may.

    `anyway` overrides red and amber findings, except final ones.
    """
    if any(f.final for f in report):
        reasons = _joined(f for f in report if f.final)
        return (
            f"Preflight: this run cannot work. {reasons} "
            "Change these settings. Starting anyway is not possible."
        )
    level = verdict(report)
    if anyway or level == "green":
        return ""
    reasons = _joined(f for f in report if f.level == level)
    if level == "red":
        return f"Preflight would stop this run. {reasons} Fix it, or choose to start anyway."
    return f"Preflight found warnings. {reasons} Change it, or choose to start anyway."


def _joined(findings: Iterable[Finding]) -> str:
    return " ".join(f"{f.title}: {f.text}" for f in findings)


def verdict(report: Sequence[Finding]) -> str:
    """The worst level of the findings; "green" if there are none."""
    return min((f.level for f in report), key=LEVELS.index, default="green")
