"""LoRA: small matrices beside the linear layers are trained in the model's place (arXiv:2106.09685), put in by peft."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from grpo_core.config import ModelConfig


def add_adapters(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Freeze the model and put adapters of rank `lora_rank` beside every linear layer but the output head; the first output is unchanged.

    W x + (alpha/rank)·B A x,  B = 0 at first
    """
    from peft import inject_adapter_in_model  # seconds to import

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(lora_config(config), model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # In float32 whatever the base: bfloat16 would round small updates away.
            parameter.data = parameter.data.float()
            assert "lora_" in name, name


def lora_config(config: ModelConfig) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def adapter_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that carry adapters; empty for a model that is trained whole."""
    return [m for m in model.modules() if hasattr(m, "lora_A")]


@torch.no_grad()
def merge_adapters(model: nn.Module) -> nn.Module:
    """The same function as plain layers: every adapter added into its layer, in place. Returns the model."""
    for layer in adapter_layers(model):
        layer.merge()
    for module in list(model.modules()):
        for child, layer in list(module.named_children()):
            if hasattr(layer, "lora_A"):
                setattr(module, child, layer.get_base_layer())
    return model


class AdapterOff(nn.Module):
    """Stands where a reference model stands. Knows the layers that carry adapters; holds no weights of its own."""

    def __init__(self, model: nn.Module, layers: Sequence[Any]):
        super().__init__()
        self._held = (
            model,
            tuple(layers),
        )  # in a tuple: as a submodule the policy's weights would count as the reference's

    @contextmanager
    def off(self) -> Iterator[nn.Module]:
        """The model, its adapters silent for as long as this lasts."""
        model, layers = self._held
        # Not peft's enable_adapters: that would also stop their gradients, in the middle of a step.
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield model
        finally:
            for layer in layers:
                layer._disable_adapters = False
