"""Policy: model, tokenizer, and the ids that end a completion."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from grpo_core.learner.reference import AdapterOff
from grpo_core.policy.adapters import adapter_layers
from grpo_core.types import Prompt


def encode_prompt(tokenizer: Any, prompt: Prompt, instruction: str) -> list[int]:
    """Token ids as the model reads the prompt: through its chat template if it has one, else the bare text.

    Earlier messages, a system prompt among them, stand in meta["before"]; without a chat template they come first, as paragraphs.
    """
    before = list(prompt.meta.get("before", ()))
    if tokenizer.chat_template:
        messages = [*before, {"role": "user", "content": f"{instruction}\n\n{prompt.text}" if instruction else prompt.text}]
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
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
        return self.tokenizer.decode([t for t in token_ids if t not in self.end_ids], skip_special_tokens=True)

    def frozen_copy(self) -> Any:
        """The reference: the same weights, never to move; with LoRA the model itself, its adapters off."""
        if layers := adapter_layers(self.model):
            return AdapterOff(self.model, layers)
        return copy.deepcopy(self.model).requires_grad_(False).eval()


DEVICE_VARIABLE = "GRPO_DEVICE"  # "cpu": leave the GPU alone. "lent": in the forked process of a ZeroGPU lease


def pick_device() -> torch.device:
    if os.environ.get(DEVICE_VARIABLE) == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def share_cores(num_parameters: int) -> None:
    """Let torch use as many CPU threads as the model can keep busy: one for every two million parameters, at most all cores.

    A tiny model gains a third from a second thread on an idle machine, and loses more than half to it beside a browser
    (docs/runs.md), because every one of its small operations then waits for both. Process-wide, like torch's own setting.
    One in a forked process: OpenMP's threads stayed with its parent, and it would wait for them for ever.
    """
    if os.environ.get(DEVICE_VARIABLE) == "lent":
        torch.set_num_threads(1)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, min(cores, num_parameters // 2_000_000)))


def describe_device(device: torch.device) -> str:
    """For people: "CPU, 2 threads" or "NVIDIA H200, 139 GB"."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GB"
    return "Apple GPU (MPS)" if device.type == "mps" else f"CPU, {os.cpu_count()} cores"
