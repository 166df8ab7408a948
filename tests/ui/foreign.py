"""Runs that another trainer made, as its reader would give them. Numbers are worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

from grpo_core.records.record import SourceGroup, SourceRollout, SourceRun, SourceStep
from grpo_core.records.writer import RecordWriter
from grpo_core.store import Store
from grpo_core.types import RunStatus

RUN = SourceRun(
    trainer="TRL 1.16.0",
    format="trl",
    key="trl:one",
    name="gsm8k, TRL",
    settings={
        "num_generations": 4,
        "learning_rate": 1e-6,
        "scale_rewards": "group",
        "beta": 0.04,
        "model_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct",
        "dataloader_num_workers": 2,
    },
    num_steps=3,
)
# Of rewards 1, 0, 0, 1: mean 0.5, std sqrt(1/3); ±0.5/(0.57735 + 1e-4) = ±0.865875.
HIGH = 0.5 / (math.sqrt(1 / 3) + 1e-4)
TEXTS = ("<answer>4</answer>", "<answer>5</answer>", "no idea", "It is 4.\n<answer>4</answer>")
REWARDS = (1.0, 0.0, 0.0, 1.0)
ADVANTAGES = (HIGH, -HIGH, -HIGH, HIGH)
SWAPPED = (-HIGH, HIGH, -HIGH, HIGH)  # not what the rewards give


def a_rollout(i: int, advantages: tuple[float, ...] = ADVANTAGES, **more) -> SourceRollout:
    return SourceRollout(
        text=TEXTS[i],
        scores={"correct": REWARDS[i], "format": 0.0},
        reward=REWARDS[i],
        advantage=advantages[i],
        **more,
    )


def a_group(prompt: str, advantages: tuple[float, ...] = ADVANTAGES, **more) -> SourceGroup:
    return SourceGroup(
        prompt=prompt,
        rollouts=tuple(a_rollout(i, advantages, **more) for i in range(4)),
        answer="4",
    )


def a_step(step: int, swapped: bool = False, **more) -> SourceStep:
    """A group that agrees and, if asked for, one whose advantages are swapped."""
    groups = [a_group("What is 2 + 2?", **more)]
    if swapped:
        groups.append(a_group(f"What is {step} + 1?", SWAPPED, **more))
    return SourceStep(step=step, groups=tuple(groups), metrics={"loss": 0.01 * step})


def with_tokens(step: SourceStep) -> SourceStep:
    """The step with three tokens a completion and their log-probabilities."""
    tokens = {
        "token_ids": (5, 6, 7),
        "sampling_logprobs": (-0.1, -0.5, -1.0),
        "logprobs": (-0.1, -0.5, -1.2),
        "finish_reason": "stop",
    }
    groups = tuple(
        replace(g, rollouts=tuple(replace(r, **tokens) for r in g.rollouts)) for g in step.groups
    )
    return replace(step, groups=groups, pieces={5: "<answer>", 6: "4", 7: "</answer>"})


def record_foreign(
    store: Store,
    run: SourceRun = RUN,
    steps: tuple[SourceStep, ...] | None = None,
    status: RunStatus = RunStatus.FINISHED,
) -> str:
    """Three steps, the second with a group that disagrees; returns the run's id."""
    if steps is None:
        steps = (a_step(1), a_step(2, swapped=True), a_step(3))
    with RecordWriter(store, run, live=status.is_live) as writer:
        for step in steps:
            writer.write(step)
        writer.finish(status)
        return writer.run_id
