"""LoRA (arXiv:2106.09685): peft puts small trained matrices beside the frozen linear layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors.torch import save_file
from torch import nn

from grpo_core.config import ModelConfig

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel


def add_adapters(model: nn.Module, config: ModelConfig, seed: int, task: str = "CAUSAL_LM") -> None:
    """Freeze the model and add adapters of rank r = `lora_rank` to every linear layer but the head.

        W x + (alpha / r) B A x      B = 0 at first, so the first output does not change

    A is drawn from `seed`. task: peft's name of what the head does; "SEQ_CLS": a score.
    """
    from peft import inject_adapter_in_model  # takes seconds to import

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(lora_config(config, model, task), model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # float32 also beside a bfloat16 base: bfloat16 would round small updates away.
            parameter.data = parameter.data.float()
            assert "lora_" in name, name


def lora_config(config: ModelConfig, model: nn.Module, task: str = "CAUSAL_LM") -> LoraConfig:
    """peft's description of the adapters that `add_adapters` puts into the model."""
    from peft import LoraConfig

    special = [name for name, m in model.named_modules() if not _is_product(m)]
    return LoraConfig(
        r=config.lora_rank,
        # peft scales by any number, although it declares an int.
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,  # pyright: ignore[reportArgumentType]
        lora_dropout=0.0,
        target_modules="all-linear",
        exclude_modules=special or None,
        task_type=task,
    )


def save_adapter(model: nn.Module, config: ModelConfig, folder: Path) -> None:
    """Write the adapters of `add_adapters` alone, in peft's format."""
    weights = {
        f"base_model.model.{name.replace('.default', '')}": p.detach().contiguous()
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    described = lora_config(config, model)
    described.base_model_name_or_path = config.name
    described.inference_mode = True
    described.save_pretrained(str(folder))


@torch.no_grad()
def _is_product(layer: nn.Module) -> bool:
    """False for a linear layer that computes more than a product, such as Llama 4's routers."""
    if not isinstance(layer, nn.Linear) or type(layer).forward is nn.Linear.forward:
        return True
    if not type(layer).__module__.startswith("transformers.models."):
        return True
    x = torch.linspace(-1, 1, layer.in_features).to(layer.weight)[None]
    y = layer(x)
    return isinstance(y, torch.Tensor) and torch.allclose(
        y, nn.functional.linear(x, layer.weight, layer.bias), rtol=0.05
    )


def adapter_layers(model: nn.Module) -> list[LoraLayer]:
    """The layers that have adapters; empty for a model that is trained whole."""
    return [cast("LoraLayer", m) for m in model.modules() if hasattr(m, "lora_A")]


def without_merged(layer: nn.Module) -> nn.Module:
    """The plain layer below adapters that are merged into its weight; else the layer itself."""
    is_merged = hasattr(layer, "lora_A") and cast("LoraLayer", layer).merged
    return cast("LoraLayer", layer).get_base_layer() if is_merged else layer


@torch.no_grad()
def scale_adapters(layers: Sequence[LoraLayer], factor: float) -> None:
    """W + BA -> W + factor·BA: what every adapter adds to its layer's weight, in place."""
    for layer in layers:
        for b in layer.lora_B.values():
            cast("nn.Linear", b).weight.mul_(factor)


@torch.no_grad()
def merge_adapters(model: nn.Module) -> nn.Module:
    """Add every adapter to its layer's weight, in place; only plain layers remain.

    Returns the model, which computes the same function.
    """
    for layer in adapter_layers(model):
        layer.merge()
    for module in list(model.modules()):
        for child, layer in list(module.named_children()):
            if hasattr(layer, "lora_A"):
                setattr(module, child, cast("LoraLayer", layer).get_base_layer())
    return model


class AdapterOff(nn.Module):
    """A reference model without weights of its own: the policy with its adapters switched off."""

    def __init__(self, model: nn.Module, layers: Sequence[LoraLayer]):
        super().__init__()
        # A tuple, because nn.Module would register a bare model as a submodule, and the policy's
        # weights would count as the reference's.
        self._held = (model, tuple(layers))

    @contextmanager
    def off(self) -> Iterator[nn.Module]:
        """The model, with its adapters switched off until the context ends."""
        model, layers = self._held
        # Not peft's enable_adapters: that also stops the adapters' gradients during a step.
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield model
        finally:
            for layer in layers:
                layer._disable_adapters = False


def num_adapter_parameters(model: PreTrainedModel, rank: int) -> int:
    """Parameters of adapters: rank x (inputs + outputs) for every linear layer but the head."""
    head = model.get_output_embeddings()
    return sum(
        rank * sum(m.get_parameter("weight").shape)
        for m in model.modules()
        if m is not head and type(m).__name__ in ("Linear", "Conv1D")
    )
