"""What a person asks before and after a run, each a question with a frozen answer: how prompts will be read, whether a model fits, what a rubric pays."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from grpo_core.config import RunConfig
from grpo_core.fit import too_long_rows
from grpo_core.lending import Lending
from grpo_core.policy import load_reader
from grpo_core.policy.report import ModelReport, report
from grpo_core.rollout import sample_groups
from grpo_core.tasks import heldout_prompts, load_task, train_prompts

GREEDY = 1e-6  # a temperature at which the likeliest token always wins


@dataclass(frozen=True, slots=True)
class PromptAsRead:
    """A prompt exactly as the model reads it: the decoded tokens, special ones included."""

    prompt_id: str
    text: str
    num_tokens: int
    answer: str
    heldout: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """Some prompts, and what was counted while reading all of them; counts is empty for a task that makes its own."""

    prompts: tuple[PromptAsRead, ...]
    chat_template: bool
    context: int | None
    counts: dict[str, Any]


class Desk:
    """Answers questions about models and prompts. Holds nothing between them but the last model."""

    def __init__(self) -> None:
        self._models = Lending()

    def preview(self, config: RunConfig, count: int = 5) -> Preview:
        """The first prompts of training and one held-out one, as the model will read them. Raises InvalidConfig."""
        task, reader = load_task(config.task), load_reader(config.model)
        shown = [(p, False) for p in train_prompts(task, config.train.seed, 1, count)] + [(p, True) for p in heldout_prompts(task, min(1, config.task.heldout_size))]
        prompts = []
        for prompt, heldout in shown:
            ids = reader.encode(prompt, task.instruction)
            prompts.append(PromptAsRead(prompt.id, reader.tokenizer.decode(ids), len(ids), prompt.answer, heldout))
        counts: dict[str, Any] = {}
        if task.table is not None:
            table = task.table
            counts = {**asdict(table.counts), "train": len(table.train), "heldout": len(table.heldout), "prompt_column": table.columns.prompt,
                      "answer_column": table.columns.answer, "too_long": 0 if reader.context is None else len(too_long_rows(task, reader, config))}
        return Preview(tuple(prompts), bool(reader.tokenizer.chat_template), reader.context, counts)

    def check_model(self, config: RunConfig, sample: bool = True) -> tuple[ModelReport, str]:
        """What can be said of the model for this run, and one greedily sampled answer to the task's first prompt ("" if it was not asked for or does not fit)."""
        found = report(config)
        if not sample or found.problems:
            return found, ""
        task = load_task(config.task)
        [prompt] = train_prompts(task, config.train.seed, 1, 1)
        with self._models.use(config.model, config.train.seed) as policy:
            [answer] = sample_groups(policy, [policy.encode(prompt, task.instruction)], 1, min(64, config.train.max_new_tokens), GREEDY,
                                     torch.Generator(policy.device).manual_seed(0))
            return found, policy.decode(answer.token_ids)
