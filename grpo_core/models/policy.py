"""Policy: model, tokenizer, and the ids that end a completion."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from grpo_core.models.lora import AdapterOff, adapter_layers
from grpo_core.types import Prompt


def encode_prompt(tokenizer: Any, prompt: Prompt, instruction: str) -> list[int]:
    """Token ids as the model reads the prompt: through its chat template if it has one, else the bare text.

    Earlier messages, a system prompt among them, stand in meta["before"]; without a chat template they come first, as paragraphs.
    """
    before = list(prompt.meta.get("before", ()))
    if tokenizer.chat_template:
        messages = [
            *before,
            {
                "role": "user",
                "content": f"{instruction}\n\n{prompt.text}" if instruction else prompt.text,
            },
        ]
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
    return tokenizer("\n\n".join([*(m["content"] for m in before), prompt.text]))["input_ids"]


@dataclass(frozen=True, slots=True)
class Reader:
    """What reads prompts: a tokenizer and the context it has to fit. A policy without its weights."""

    tokenizer: Any
    context: int | None

    def encode(self, prompt: Prompt, instruction: str) -> list[int]:
        return encode_prompt(self.tokenizer, prompt, instruction)


@dataclass(frozen=True, slots=True)
class Policy:
    """A loaded causal language model. `end_ids`: every id that ends a turn, of generation config, tokenizer and chat template."""

    model: Any
    tokenizer: Any
    end_ids: frozenset[int]
    pad_id: int
    context: int | None  # tokens, prompt and completion together

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def encode(self, prompt: Prompt, instruction: str) -> list[int]:
        return encode_prompt(self.tokenizer, prompt, instruction)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Completion ids -> text, end tokens left out, everything else as it is."""
        return self.tokenizer.decode(
            [t for t in token_ids if t not in self.end_ids], skip_special_tokens=True
        )

    def frozen_copy(self) -> Any:
        """The reference: the same weights, never to move; with LoRA the model itself, its adapters off."""
        if layers := adapter_layers(self.model):
            return AdapterOff(self.model, layers)
        return copy.deepcopy(self.model).requires_grad_(False).eval()
