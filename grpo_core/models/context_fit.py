"""Find prompts that leave no room for a completion in the model's context; refuse or drop them."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from grpo_core.config import RunConfig
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.models.chat_template import ChatTooLong
from grpo_core.tasks import Task, environments_of
from grpo_core.tasks.columns import ENVIRONMENT, NO_ENVIRONMENT
from grpo_core.types import Prompt


class Encoder(Protocol):
    """A Policy, a Reader, or a RowEncoder, which adds the tools of a row's environment."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def context(self) -> int | None: ...

    def encode(self, prompt: Prompt, instruction: str) -> list[int]: ...


def fit_to_context(task: Task, policy: Encoder, config: RunConfig) -> Task:
    """The task without the prompts that are too long for the model.

    Raises InvalidConfig if `task.too_long` is "refuse", if no training prompt remains, or if the
    model's chat template refuses the roles of a row.
    """
    if task.table is None:
        return task
    _check_chats(task, policy)
    if policy.context is None:
        return task
    too_long = too_long_rows(task, policy, config)
    if not len(too_long):
        return task
    total = len(task.table.train) + len(task.table.heldout)
    new_tokens = config.train.max_new_tokens
    if config.task.too_long == "refuse":
        problem = FieldProblem(
            "task.too_long",
            "refuse",
            f"{len(too_long):,} of {total:,} prompts leave no room for {new_tokens} new tokens "
            f"in the context of {policy.context}",
            "Lower train.max_new_tokens, choose a model with a longer context, "
            "or set task.too_long to drop.",
        )
        raise InvalidConfig([problem])
    kept = task.table.without(too_long)
    if not len(kept.train):
        problem = FieldProblem(
            "train.max_new_tokens",
            new_tokens,
            f"no prompt leaves room for so many new tokens in the context of {policy.context}",
            "Lower it, or choose a model with a longer context.",
        )
        raise InvalidConfig([problem])
    return task.with_table(kept)


def _check_chats(task: Task, policy: Encoder) -> None:
    """Encode one prompt of each sequence of roles, so that a refusal does not come during a run."""
    assert task.table is not None
    if not policy.tokenizer.chat_template:
        return
    for row in task.table.one_of_each_chat():
        with suppress(ChatTooLong):
            policy.encode(task.table.prompt(row), task.instruction)


def too_long_rows(task: Task, policy: Encoder, config: RunConfig) -> np.ndarray:
    """Row numbers of prompts whose tokens plus `max_new_tokens` exceed the context.

    Tokenises only candidates. A prompt of n bytes has at most n tokens, plus the tokens of the
    chat template and of the tools around it; the first prompt gives an upper bound for those, in
    each of the environments that rows name.
    """
    assert task.table is not None
    assert policy.context is not None
    table = task.table
    rows = np.concatenate([table.train, table.heldout])
    room = policy.context - config.train.max_new_tokens

    def num_tokens(prompt: Prompt) -> float:
        try:
            return len(policy.encode(prompt, task.instruction))
        except ChatTooLong:
            return math.inf

    # Includes the first prompt's own text, so the bound is loose and misses no candidate.
    first = table.prompt(int(rows[0]))
    template_tokens = min(
        room, max(num_tokens(_in_environment(first, name)) for name in environments_of(task))
    )
    candidates = table.longer_than(max(0, int(room - template_tokens)))
    candidates = candidates[np.isin(candidates, rows)]
    too_long = [row for row in candidates if num_tokens(table.prompt(row)) > room]
    return np.array(too_long, dtype=np.int64)


def _in_environment(prompt: Prompt, name: str) -> Prompt:
    """The prompt as its row would be with this in its column `environment`."""
    columns = {**prompt.meta.get("columns", {}), ENVIRONMENT: name or NO_ENVIRONMENT}
    return replace(prompt, meta={**prompt.meta, "columns": columns})
