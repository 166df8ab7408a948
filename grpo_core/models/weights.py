"""Whether a model was loaded whole: every weight from its files, each used, each finite."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from grpo_core.models.folder import AGAIN, BadModel
from grpo_core.models.shape import text_config

# Buffers that older versions saved, and which are computed now.
_COMPUTED = re.compile(
    r"\.(masked_bias|inv_freq|position_ids|(cos|sin)_cached)$|(attn|attention)\.bias$"
)
_IN_LAYER = re.compile(r"^(.*?\.|)(\d+)\.")  # "model.layers." and "0"


def check_complete(model: PreTrainedModel, loaded: Mapping[str, Any]) -> None:
    """Raise BadModel naming the weights that the files lack, or that the model leaves unused.

    loaded: what transformers reports of loading. Missing weights would be random ones. Tied weights
    are not missing. Unused weights of other tasks, such as a value head, do no harm; those of the
    model's own layers mean that the configuration belongs to another model.
    """
    if missing := sorted(loaded["missing_keys"]):
        problem = f"its files lack {_named(missing)}"
        for name in loaded["unexpected_keys"]:
            if name.endswith(f".{missing[0]}"):
                hint = "Save the model itself, without what wraps it."
                raise BadModel(f"{problem}; the first is called {name} there", hint)
        raise BadModel(problem)
    for name, in_file, in_model in sorted(loaded["mismatched_keys"]):
        shapes = f"the shape {list(in_file)} in its file and {list(in_model)} by its config.json"
        raise BadModel(f"its weight {name} has {shapes}")
    if unused := _unused(model, loaded["unexpected_keys"]):
        raise BadModel(
            f"the model of its config.json does not use {_named(unused)}",
            "Put the config.json of these weights beside them.",
        )


def _named(names: list[str]) -> str:
    more = ", …" if len(names) > 3 else ""
    return f"{len(names):,} of its weights: {', '.join(names[:3])}{more}"


def _unused(model: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """The unexpected weights that stand in the model's layers, or beside a weight of the model."""
    own = set(model.state_dict())
    own |= {name.removeprefix(f"{model.base_model_prefix}.") for name in own}
    modules = {name.rpartition(".")[0] for name in own}
    stacks: dict[str, int] = {}  # of layers -> number of its layers
    for found in filter(None, map(_IN_LAYER.match, own)):
        stacks[found[1]] = max(stacks.get(found[1], 0), int(found[2]) + 1)
    shape = text_config(model.config)
    # Layers after the last one, which predict tokens beyond the next. They are not trained here.
    more = getattr(shape, "num_nextn_predict_layers", None) or 0

    def is_own(name: str) -> bool:
        if _COMPUTED.search(name):
            return False
        layer = _IN_LAYER.match(name)
        if layer is None or layer[1] not in stacks:
            return name.rpartition(".")[0] in modules
        beyond = int(layer[2]) - stacks[layer[1]]
        return not 0 <= beyond < more

    return sorted(name for name in unexpected if is_own(name))


def check_types(model: PreTrainedModel, folder: Path) -> None:
    """Raise BadModel naming a weight whose file holds integers for the model's fractions.

    Such a file is quantised, and its config.json does not say how.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        return
    fractions = {name for name, p in model.named_parameters() if p.is_floating_point()}
    fractions |= {name.removeprefix(f"{model.base_model_prefix}.") for name in fractions}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in fractions.intersection(weights.keys()):
                if (kind := weights.get_slice(name).get_dtype())[0] in "IUB" and kind != "BF16":
                    raise BadModel(f"its weight {name} has the type {kind} in {file.name}")


def check_finite(model: nn.Module) -> None:
    """Raise BadModel naming the first weight that holds NaN or infinity."""
    if name := first_not_finite(model):
        values = model.get_parameter(name)
        bad = values.numel() - int(values.isfinite().sum())
        problem = f"{bad:,} of {values.numel():,} numbers in its weight {name} are not finite"
        raise BadModel(problem, AGAIN)


@torch.no_grad()
def first_not_finite(model: nn.Module) -> str | None:
    """The name of the first parameter that holds NaN or infinity."""
    for name, p in model.named_parameters():
        # The sum is cheaper than a test of each number; a sum may also overflow.
        if p.is_floating_point() and not p.sum().isfinite() and not p.isfinite().all():
            return name
    return None
