"""How much work a run asks for, derived from its settings in one place."""

from __future__ import annotations

from dataclasses import dataclass

from grpo_core.config import RunConfig


@dataclass(frozen=True, slots=True)
class Work:
    """Upper bounds; settings that multiply work are multiplied out."""

    updates: int  # optimiser steps of the run
    rollouts: int  # completions that one step may sample
    evaluated: int  # completions of one evaluation
    evaluations: int  # of the run
    new_tokens: int  # of a completion

    @property
    def completions(self) -> int:
        """Completions of evaluations of the whole run."""
        return self.evaluated * self.evaluations


def work(config: RunConfig) -> Work:
    """The most that a run can need."""
    t, a, task = config.train, config.algorithm, config.task
    return Work(
        updates=t.steps * a.updates_per_batch,
        # Each round of dynamic sampling may replace every group.
        rollouts=t.prompts_per_step * t.group_size * (1 + a.dynamic_sampling),
        evaluated=task.max_heldout * t.eval_samples * (2 if task.second else 1),
        evaluations=num_evaluations(t.steps, t.eval_every),
        new_tokens=t.max_new_tokens,
    )


def num_evaluations(steps: int, every: int) -> int:
    """Before the first step, after every `every` (0: none) and after the last.

    2 + ⌊(steps − 1) / every⌋
    """
    return 2 + ((steps - 1) // every if every else 0)
