"""Sequence-classification models: one that scores texts, and a base that learns to score them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from grpo_core.config import ModelConfig
from grpo_core.errors import StudioError
from grpo_core.models.device import pick_device
from grpo_core.models.folder import BadModel
from grpo_core.models.load import read_tokenizer, room_for_weights, with_weights
from grpo_core.models.precision import precision
from grpo_core.models.shape import (
    check_memory,
    context_tokens,
    empty_model,
    read_shape,
    text_config,
)
from grpo_core.models.source import find_source
from grpo_core.models.token_ids import known_pad_id
from grpo_core.models.weights import check_complete

_KIND = AutoModelForSequenceClassification
Classifier = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def load_classifier(name: str, revision: str = "main") -> Classifier:
    """Load a sequence-classification model and its tokenizer onto the device.

    The rules of a policy apply: safetensors only, no code of the model's own, no weight missing.
    Texts are cut to the model's context from their left. Raises StudioError.
    """
    try:
        if not name:
            raise BadModel("no model is named", "Set params.model.")
        config, device = ModelConfig(name=name, revision=revision), pick_device()
        source, dtype = find_source(config), precision(config, device)
        shape = read_shape(source, dtype)
        check_memory(empty_model(shape, _KIND), dtype, "16", room_for_weights(config, device))
        tokenizer = read_tokenizer(source, shape)
        model = with_weights(_KIND, source, shape, dtype=dtype)
        if not model.config.num_labels:
            raise BadModel("it has no labels")
        _fit(model, tokenizer)
    except BadModel as error:
        raise StudioError(
            f"the reward model {name!r} cannot be loaded: {error.problem}. {error.hint} "
            "It must be a sequence-classification model."
        ) from None
    # Dropout would make two scores of one text differ.
    return model.to(device).eval(), tokenizer  # pyright: ignore[reportArgumentType]


def load_classifier_base(
    config: ModelConfig, dtype: torch.dtype, seed: int, device: torch.device
) -> Classifier:
    """Load a model with one label, to be trained: a language model, or one that scores already.

    A language model gets a new head w with w_i ~ N(0, 1/(d + 1)), from `seed`; d: its width.
    Source: Stiennon et al. 2020, arXiv:2009.01325. Raises StudioError.
    """
    try:
        source = find_source(config)
        shape = copy.deepcopy(read_shape(source, dtype))
        shape.num_labels, shape.problem_type = 1, None
        check_memory(empty_model(shape, _KIND), dtype, "16", room_for_weights(config, device))
        tokenizer = read_tokenizer(source, shape)
        generator = torch.Generator().manual_seed(seed)

        def check(model: PreTrainedModel, loaded: Mapping[str, Any]) -> None:
            new = {name for name in loaded["missing_keys"] if _is_head(model, name)}
            new |= {name for name, *_ in loaded["mismatched_keys"] if _is_head(model, name)}
            check_complete(
                model,
                {
                    "missing_keys": set(loaded["missing_keys"]) - new,
                    "mismatched_keys": {k for k in loaded["mismatched_keys"] if k[0] not in new},
                    "unexpected_keys": loaded["unexpected_keys"],
                },
            )
            for name in sorted(new):
                _draw(model.get_parameter(name), generator)

        model = with_weights(_KIND, source, shape, check, dtype=dtype)
        _fit(model, tokenizer)
    except BadModel as error:
        raise StudioError(
            f"base = {config.name!r}: it cannot become a reward model: {error.problem}. "
            f"{error.hint}"
        ) from None
    return model.to(device), tokenizer  # pyright: ignore[reportArgumentType]


def _is_head(model: PreTrainedModel, name: str) -> bool:
    return not name.startswith(f"{model.base_model_prefix}.")


@torch.no_grad()
def _draw(weight: nn.Parameter, generator: torch.Generator) -> None:
    if weight.dim() < 2:  # a bias
        weight.zero_()
    else:
        drawn = torch.randn(weight.shape, generator=generator) / (weight.shape[1] + 1) ** 0.5
        weight.copy_(drawn)


def _fit(model: PreTrainedModel, tokenizer: Any) -> None:
    """Let model and tokenizer agree on padding and length. Raises BadModel.

    A decoder reads its score at the last token that is not padding.
    """
    if known_pad_id(model, tokenizer) is None:
        tokenizer.pad_token = tokenizer.eos_token
    pad_id = known_pad_id(model, tokenizer)
    if pad_id is None:
        raise BadModel("its tokenizer has no pad or end token within its vocabulary")
    for part in (model.config, text_config(model.config)):
        part.pad_token_id = pad_id
    if hasattr(model, "score"):  # a decoder: padding before a text would move its positions
        tokenizer.padding_side = "right"
    # The model judges the end of the completion, so a text that is too long loses its beginning.
    tokenizer.truncation_side = "left"
    limit = context_tokens(model.config)
    if limit is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
