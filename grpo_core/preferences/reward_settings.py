"""How a reward model is trained: every setting with title, help and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from grpo_core.config.places import Name
from grpo_core.config.sections.fields import Section, setting
from grpo_core.errors import FieldProblem, InvalidConfig


class RewardSettings(Section):
    """The settings of one training of a reward model."""

    base: Name = setting(
        "bundled",
        "Base model",
        "`bundled`, a local folder or a Hub id: the model that learns to score. "
        "A language model gets a new head with one output; a reward model learns on.",
        min_length=1,
        max_length=512,
    )
    revision: Name = setting(
        "main", "Revision", "Branch, tag or commit of a Hub model.", min_length=1, max_length=200
    )
    seed: int = setting(
        0, "Seed", "Of the new head, the order of the pairs and the held-out prompts.", ge=0,
        le=2**31,
    )  # fmt: skip
    epochs: int = setting(4, "Epochs", "How often each pair is learnt from.", ge=1, le=100)
    learning_rate: float | None = setting(
        None,
        "Learning rate",
        "Of AdamW, warmed up and then lowered to 0. Empty: 5e-4 below 50 M parameters, 1e-5 from "
        "there on, 1e-4 for adapters.",
        gt=0,
        le=1,
    )
    batch_pairs: int = setting(16, "Pairs per step", "Pairs of one optimiser step.", ge=1, le=1024)
    heldout_share: float = setting(
        0.2,
        "Held-out share",
        "Share of the pairs that only measure. They are of prompts that are not learnt from.",
        gt=0,
        lt=1,
    )
    max_tokens: int = setting(
        1024,
        "Max tokens",
        "Of prompt and answer together. A longer text loses its beginning.",
        ge=8,
        le=1_000_000,
    )
    lora_rank: int | None = setting(
        None,
        "LoRA rank",
        "0 trains all weights, a higher value only adapters of this rank. "
        "Empty: 16 from 50 M parameters on, else 0.",
        ge=0,
        le=1024,
    )
    margin: float = setting(
        0.0,
        "Margin",
        "Imported scores, times this, are by how much a chosen answer should at least lead "
        "(Llama 2). 0: they are not used.",
        ge=0,
        le=100,
    )


def reward_settings(values: Mapping[str, Any]) -> RewardSettings:
    """Settings from plain values; None means the default. Raises InvalidConfig."""
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return RewardSettings.model_validate(given)
    except ValidationError as error:
        problems = [
            FieldProblem(
                ".".join(map(str, found["loc"])),
                found["input"],
                found["msg"].replace("Input should be", "it must be"),
                "",
            )
            for found in error.errors(include_url=False)
        ]
        raise InvalidConfig(problems) from None
