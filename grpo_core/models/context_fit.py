"""Which prompts leave room for a completion in the model's context: counted before a run, and refused or dropped as the run says."""

from __future__ import annotations

import numpy as np

from grpo_core.config import RunConfig
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.models import Policy, Reader
from grpo_core.tasks import Task


def fitting(task: Task, policy: Policy, config: RunConfig) -> Task:
    """The task without prompts that are too long for the model. Raises InvalidConfig if they are to be refused, or if none is left."""
    if task.table is None or policy.context is None:
        return task
    too_long = too_long_rows(task, policy, config)
    if not len(too_long):
        return task
    total = len(task.table.train) + len(task.table.heldout)
    if config.task.too_long == "refuse":
        raise InvalidConfig(
            [
                FieldProblem(
                    "task.too_long",
                    "refuse",
                    f"{len(too_long):,} of {total:,} prompts leave no room for {config.train.max_new_tokens} new tokens in the context of {policy.context}",
                    "Lower train.max_new_tokens, choose a model with a longer context, or set task.too_long to drop.",
                )
            ]
        )
    kept = task.table.without(too_long)
    if not len(kept.train):
        raise InvalidConfig(
            [
                FieldProblem(
                    "train.max_new_tokens",
                    config.train.max_new_tokens,
                    f"no prompt leaves room for so many in the context of {policy.context}",
                    "Lower it, or choose a model with a longer context.",
                )
            ]
        )
    return task.over(kept)


def too_long_rows(task: Task, policy: Policy | Reader, config: RunConfig) -> np.ndarray:
    """Row numbers of prompts whose tokens and max_new_tokens together exceed the context.

    Only candidates are tokenised: a prompt of n bytes has at most n tokens more than the template around it, which is measured once.
    """
    assert task.table is not None
    assert policy.context is not None
    room = policy.context - config.train.max_new_tokens
    first = task.table.prompt(int(np.concatenate([task.table.train, task.table.heldout])[0]))
    frame = len(
        policy.encode(first, task.instruction)
    )  # its own text included: more than the frame alone, so no candidate is missed
    candidates = task.table.longer_than(max(0, room - frame))
    candidates = candidates[
        np.isin(candidates, task.table.train) | np.isin(candidates, task.table.heldout)
    ]
    return np.array(
        [
            row
            for row in candidates
            if len(policy.encode(task.table.prompt(row), task.instruction)) > room
        ],
        dtype=np.int64,
    )
