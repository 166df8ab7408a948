"""Policy: a model with its tokenizer and the ids that end a completion."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_core.models.lora import AdapterOff, adapter_layers
from grpo_core.types import Prompt


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, instruction: str
) -> list[int]:
    """Token ids of the prompt through the tokenizer's chat template, or of its bare text.

    meta["before"] holds earlier messages, the system prompt among them. Without a chat template
    they come first, as paragraphs, and the instruction is left out.
    """
    before = list(prompt.meta.get("before", ()))
    if not tokenizer.chat_template:
        paragraphs = [*(m["content"] for m in before), prompt.text]
        return tokenizer("\n\n".join(paragraphs))["input_ids"]
    content = f"{instruction}\n\n{prompt.text}" if instruction else prompt.text
    encoded: Any = tokenizer.apply_chat_template(
        [*before, {"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    return encoded["input_ids"]


@dataclass(frozen=True, slots=True)
class Reader:
    """A policy without its weights: enough to encode and count prompts."""

    tokenizer: PreTrainedTokenizerBase
    context: int | None  # tokens, prompt and completion together

    def encode(self, prompt: Prompt, instruction: str) -> list[int]:
        return encode_prompt(self.tokenizer, prompt, instruction)


@dataclass(frozen=True, slots=True)
class Policy:
    """A loaded causal language model.

    end_ids: every id that ends a turn, by the generation config, tokenizer and chat template.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
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
        """The text of a completion without its end tokens; all else is unchanged."""
        kept = [t for t in token_ids if t not in self.end_ids]
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        assert isinstance(text, str)  # one list of ids has one text
        return text

    def frozen_copy(self) -> nn.Module:
        """The reference: a frozen copy of the weights, or AdapterOff where there are adapters."""
        if layers := adapter_layers(self.model):
            return AdapterOff(self.model, layers)
        return copy.deepcopy(self.model).requires_grad_(False).eval()
