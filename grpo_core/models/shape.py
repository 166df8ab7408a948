"""A model's configuration: read, freed of what a folder may not decide, and measured."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from grpo_core.models.folder import MAX_LAYERS, BadModel, parts
from grpo_core.models.source import NAME_HINT, Source, one_line

# Settings of a configuration that would replace operations, and those of training programs.
_NOT_ITS_OWN = ("fusion_config", "distributed_config", "gradient_checkpointing")
_SIZES = ("hidden_size", "num_hidden_layers", "vocab_size")
BYTES_4BIT = 0.5  # of a parameter, without the quantisation constants
GIB = 2**30


def read_shape(source: Source, dtype: torch.dtype | None = None) -> PreTrainedConfig:
    """The source's configuration, with `dtype` as precision. Raises BadModel.

    The folder does not choose the code that computes the model: attention and experts are left to
    transformers, and outputs that cost memory are off.
    """
    for part in parts(source.settings):
        for name in part:
            if name == "attribute_map" or callable(getattr(PreTrainedConfig, name, None)):
                raise BadModel(f"config.json gives {name} a value, which is part of the library")
    # The library's classes check their values in code of many kinds, so any error may come.
    try:
        shape = AutoConfig.from_pretrained(source.name, **source.options)
        for part in _parts(shape):
            part._attn_implementation = part._experts_implementation = None
            part._output_attentions = part.output_hidden_states = False
            part.return_dict = True
            part.dtype = dtype
            for name in _NOT_ITS_OWN:
                vars(part).pop(name, None)
        layers = max(getattr(part, "num_hidden_layers", None) or 0 for part in _parts(shape))
        text = text_config(shape)
        sizes = {name: getattr(text, name, 1) for name in _SIZES}
    except Exception as error:
        raise BadModel(f"its configuration cannot be loaded: {one_line(error)}") from None
    if layers > MAX_LAYERS:
        raise BadModel(f"it has {layers:,} layers, and at most {MAX_LAYERS:,} can be built")
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise BadModel(f"config.json gives {str(value)[:60]} as {name}, which must be positive")
    return shape


def _parts(shape: PreTrainedConfig) -> Iterator[Any]:
    """The configuration, and those in it of a composite model."""
    yield shape
    for value in vars(shape).values():
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)


def text_config(shape: Any) -> Any:
    """The configuration of the language model in a composite one, else the configuration itself."""
    get = getattr(shape, "get_text_config", None)
    return get(decoder=True) if get else shape


def context_tokens(shape: Any) -> int | None:
    """The longest text, prompt and completion together; None if the configuration gives none."""
    context = getattr(text_config(shape), "max_position_embeddings", None)
    return context if isinstance(context, int) and context > 0 else None


def empty_model(shape: PreTrainedConfig, kind: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """The model on torch's meta device: all its tensors, without memory. Raises BadModel."""
    if type(shape) not in kind._model_mapping:
        what = kind.__name__.removeprefix("AutoModelFor")
        raise BadModel(f"transformers knows no {what} model for {shape.model_type}", NAME_HINT)
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return kind.from_config(copy.deepcopy(shape))
    except Exception as error:
        raise BadModel(f"no model can be built from its configuration: {one_line(error)}") from None


def check_memory(model: PreTrainedModel, dtype: torch.dtype, bits: str, room: int) -> None:
    """Raise BadModel if the weights of an empty model alone need more than `room` bytes."""
    size = BYTES_4BIT if bits == "4" else dtype.itemsize
    needed = sum(int(p.numel() * size) for p in model.parameters())
    needed += sum(b.numel() * b.element_size() for b in model.buffers())
    if needed > room:
        name = "4 bits" if bits == "4" else str(dtype).removeprefix("torch.")
        raise BadModel(
            f"its weights alone need {needed / GIB:,.1f} GiB in {name}, "
            f"but only {room / GIB:,.1f} GiB are available",
            "Name a smaller model, or lower the precision (model.dtype, model.base_bits).",
        )
