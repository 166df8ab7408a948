"""One report before step 1: what a real first step, on a copy that is thrown away, says about the run. Red stops, amber asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_core.config import RunConfig
from grpo_core.preflight.model_report import ModelReport
from grpo_core.rubric import build_rubric
from grpo_core.rubric.predict import GROUP_SIZES, tied_share
from grpo_core.runs.zerogpu import outlook, steps_that_fit
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

KL_AT_FIRST = (
    1e-3  # nats a token; rounding in bfloat16 makes a tenth of it, a fault a thousand times as much
)
HELDOUT = 64  # held-out prompts for the baseline, at most


@dataclass(frozen=True, slots=True)
class Finding:
    """level: "red" the run would not work, "amber" look at it first, "green" as it should be. final: starting anyway could only fail."""

    level: str
    title: str
    text: str
    final: bool = False


@dataclass(slots=True)
class FirstStep:
    """What one step of training said, and what it was made of."""

    metrics: StepMetrics | None = None
    groups: tuple[Group, ...] = ()
    baseline: dict[str, float | None] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    pauses: list[str] = field(default_factory=list)  # why the run would have waited for a person
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
            case Paused(reason):  # nobody watches a preflight: it goes on, and says so afterwards
                self.pauses.append(reason)
                self.control.resume()


def first_step(config: RunConfig, train: Callable[..., None] = train) -> FirstStep:
    """The very step that the run would begin with, by the trainer itself, on its own copy of the model; nothing is kept of it."""
    said = FirstStep()
    short = {"steps": 1, "eval_every": 0, "checkpoint_every": 0, "token_records": 0}
    once = config.model_copy(
        update={
            "train": config.train.model_copy(update=short),
            "task": config.task.model_copy(
                update={"heldout_size": min(HELDOUT, config.task.heldout_size)}
            ),
        }
    )
    train(once, said, said.control)
    return said


def findings(
    config: RunConfig, model: ModelReport, counts: dict[str, Any], first: FirstStep
) -> list[Finding]:
    """Everything in the order in which a person should read it: what stops the run first."""
    assert first.metrics is not None
    found = [
        *(Finding("red", "It would pause", p) for p in first.pauses),
        *_of_model(model),
        *_of_prompts(counts, config),
        *_of_rubric(config, first),
        *_of_sampling(config, first),
        *_of_update(config, first.metrics),
        *_of_lease(config, first),
    ]
    return sorted(found, key=lambda f: ("red", "amber", "green").index(f.level))


def _of_model(m: ModelReport) -> list[Finding]:
    found = [Finding("red", "Model", p, final=True) for p in m.problems] + [
        Finding("amber", "Model", r) for r in m.remarks if "differ" in r or "does not name" in r
    ]
    return found or [
        Finding(
            "green",
            "Model",
            f"{m.parameters:,} parameters in {m.dtype} on {m.device}; its end tokens agree.",
        )
    ]


def _of_prompts(c: dict[str, Any], config: RunConfig) -> list[Finding]:
    if not c:
        return []
    amber = [
        text.format(c[key])
        for key, text in (
            ("contradictions", "{:,} prompts stand there again with another answer."),
            ("leaks", "{:,} training prompts were also held out and left training."),
            ("unanswered", "{:,} prompts have no answer."),
            ("too_long", "{:,} prompts are too long and are dropped."),
        )
        if c[key]
    ]
    if c["heldout"] < config.task.heldout_size:
        amber.append(f"Only {c['heldout']:,} prompts are held out.")
    return [Finding("amber", "Prompts", text) for text in amber] or [
        Finding(
            "green",
            "Prompts",
            f"{c['train']:,} to train on, {c['heldout']:,} held out, {c['duplicates']:,} duplicates left out.",
        )
    ]


def _of_rubric(config: RunConfig, first: FirstStep) -> list[Finding]:
    rollouts = [r for g in first.groups for r in g.rollouts]
    found = [
        Finding(
            "red" if sum(r.scores[name] is None for r in rollouts) == len(rollouts) else "amber",
            "Rubric",
            text,
        )
        for text in first.notices
        for name in [text.split(" could not score")[0]]
        if name in rollouts[0].scores
    ]
    nulls = sum(r.reward is None for r in rollouts)
    if nulls:
        found.append(
            Finding(
                "red" if 2 * nulls > len(rollouts) else "amber",
                "Rubric",
                f"{nulls} of {len(rollouts)} completions have no reward.",
            )
        )
    tied = tied_share(
        [[r.reward for r in g.rollouts] for g in first.groups], config.train.group_size
    )
    predicted = [
        f"{size}: {share:.0%}"
        for size in GROUP_SIZES
        if (share := tied_share([[r.reward for r in g.rollouts] for g in first.groups], size))
        is not None
    ]
    if tied is not None:
        level = "red" if tied >= 0.999 else "amber" if tied > 0.7 else "green"
        found.append(
            Finding(
                level,
                "Groups",
                f"{tied:.0%} of groups tie at {config.train.group_size} completions and teach nothing. By group size: {', '.join(predicted)}.",
            )
        )
    return found


def _of_sampling(config: RunConfig, first: FirstStep) -> list[Finding]:
    found, cut = [], first.metrics.truncated_frac or 0.0
    if cut > 0.3:
        found.append(
            Finding(
                "red" if cut >= 0.999 else "amber",
                "Length",
                f"{cut:.0%} of completions were cut at {config.train.max_new_tokens} tokens: raise Max new tokens.",
            )
        )
    b = first.baseline
    if (accuracy := b.get("heldout/accuracy")) is not None:
        low, high = b["heldout/accuracy_low"], b["heldout/accuracy_high"]
        level = "amber" if accuracy in (0.0, 1.0) else "green"
        hint = (
            " Nothing is right by chance: the policy may find nothing to learn from."
            if accuracy == 0
            else " There is nothing left to learn."
            if accuracy == 1
            else ""
        )
        found.append(
            Finding(
                level,
                "Baseline",
                f"{accuracy:.1%} of held-out prompts are right now (95 % interval {low:.1%} to {high:.1%}).{hint}",
            )
        )
    elif build_rubric(config.rubric).outcome is None:
        found.append(
            Finding(
                "amber",
                "Baseline",
                "No criterion decides whether a completion is right, so no accuracy can be measured.",
            )
        )
    return found


def _of_update(config: RunConfig, m: StepMetrics) -> list[Finding]:
    found = []
    if m.kl is not None:
        level = "green" if abs(m.kl) < KL_AT_FIRST else "red"
        found.append(
            Finding(
                level,
                "KL at first",
                f"{m.kl:.2g} nats a token"
                + (
                    "."
                    if level == "green"
                    else ": it must be 0. Dropout, adapters or precision make the policy differ from itself."
                ),
            )
        )
    if m.grad_norm == 0:
        found.append(Finding("amber", "Gradient", "The first step has none: all its groups tie."))
    seconds = (m.step_seconds or 0.0) * config.train.steps
    found.append(
        Finding(
            "green",
            "Time",
            f"The first step took {m.step_seconds:.1f} s, so {config.train.steps:,} steps take about {_spoken(seconds)}; first steps are slower than later ones.",
        )
    )
    found.append(Finding("green", "Memory", f"{m.peak_memory_mib:,.0f} MiB at most in this step."))
    return found


def _of_lease(config: RunConfig, first: FirstStep) -> list[Finding]:
    """On ZeroGPU: how many steps one lease holds, by what the first step took in one."""
    if not (seconds := first.env.get("lease_seconds")):
        return []
    measured = first.env["lease_begin_seconds"], first.metrics.step_seconds or 0.0
    fit = steps_that_fit(seconds, *measured)
    return [
        Finding(
            "red" if fit == 0 else "amber" if fit < config.train.steps else "green",
            "Lease",
            outlook(seconds, config, measured),
        )
    ]


def _spoken(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def refusal(found: Sequence[Finding], anyway: bool) -> str:
    """Why a run with this report may not start, or asks first; "" if it may. Red stops and amber asks, and `anyway` answers, except where nothing could work."""
    final = [f for f in found if f.final]
    if final:
        return f"Preflight: this run cannot work. {' '.join(f'{f.title}: {f.text}' for f in final)} Change what it names; it cannot be started anyway."
    level = verdict(found)
    if anyway or level == "green":
        return ""
    said = " ".join(f"{f.title}: {f.text}" for f in found if f.level == level)
    return (
        f"Preflight would stop this run. {said} Mend it, or choose to start anyway."
        if level == "red"
        else f"Preflight asks you to look first. {said} Change it, or choose to start anyway."
    )


def verdict(found: Sequence[Finding]) -> str:
    """The worst level."""
    return next(
        (level for level in ("red", "amber") if any(f.level == level for f in found)), "green"
    )
