"""TRL's trainer as our peer: the settings of every comparison, so that both sides do the same work.

Needs tests/requirements.txt (trl).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trl.trainer.grpo_config import GRPOConfig

from grpo_core.models import Policy
from grpo_core.rubric import Rubric
from grpo_core.types import Completion, Prompt

DEFAULTS: dict[str, Any] = {
    "temperature": 1.0,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "max_grad_norm": 1.0,
}


def arguments(folder: str, *, prompts: int, group_size: int, **more: Any) -> GRPOConfig:
    """One optimiser step a batch of prompts × group_size fresh completions, with DAPO's loss.

    Tokens are sampled from the whole distribution. `more`: further arguments, as TRL names them.
    """
    return GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=prompts * group_size,
        num_generations=group_size,
        num_iterations=1,
        shuffle_dataset=False,
        top_k=0,
        top_p=1.0,
        scale_rewards="group",
        loss_type="dapo",
        disable_dropout=True,
        report_to=[],
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        **(DEFAULTS | more),
    )


def criterion(
    name: str, rubric: Rubric, policy: Policy, prompts: Sequence[Prompt]
) -> Callable[..., list[float | None]]:
    """One criterion of the rubric as a reward function in TRL's form."""

    def complete(ids: list[int]) -> Completion:
        finish_reason = "stop" if ids[-1] in policy.end_ids else "length"
        return Completion(policy.decode(ids), finish_reason, len(ids))

    def score(completion_ids: list[list[int]], row: list[int], **_: Any) -> list[float | None]:
        return [
            rubric.score(complete(ids), prompts[i])[0][name]
            for ids, i in zip(completion_ids, row, strict=True)
        ]

    score.__name__ = name
    return score
