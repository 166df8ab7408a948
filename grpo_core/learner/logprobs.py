"""Log-probabilities of completion tokens under a model.

The prompt of a group is computed once where the model allows it. Only the states that predict
completion tokens reach the output layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from grpo_core.learner.batch import Batch, Layout, packed, separate
from grpo_core.learner.packed_attention import FlatLayout, MakeAttend, flat, flat_attention
from grpo_core.models import products
from grpo_core.models.attention_spans import Places, layer_masks, reset_dynamic_angles
from grpo_core.models.decoder import FusedDecoder, forward, masked_attention, recomputing
from grpo_core.models.lm_head import LogprobsFromLogits, LogprobsFromStates, max_logits

MakeLayout = Callable[[Batch, torch.dtype], Layout]

# An output layer of so many numbers has an embedding as large, whose gradient is then added in
# place. With 12 million numbers an update takes 2 to 5 % less time.
LARGE_TABLE = 2**20


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What `score_tokens` returns beside the log-probabilities, and how it computes them."""

    layout: MakeLayout | None = None  # None: the fastest that model and batch allow
    entropy: bool = True
    entropy_gradient: bool = False  # else entropy is detached
    distribution: bool = False
    states: bool = False
    recompute: bool = False  # layers keep only their inputs for the backward pass
    # The backward pass may add the gradients of a large output layer and of the embedding directly
    # to `.grad`. Otherwise up to three tensors as large as the layer exist.
    in_place: bool = False


@dataclass(frozen=True, slots=True)
class TokenOutputs:
    """A model's numbers for completion tokens: nats, at least float32, 0 on padding."""

    logprobs: Tensor  # (B, T)
    entropy: Tensor | None  # (B, T) of the distributions that the tokens came from
    distribution: Tensor | None = None  # (B, T, V) log-probabilities of all tokens
    states: Tensor | None = None  # (B, T, H) last hidden states that predict the tokens


def score_tokens(
    model: nn.Module, batch: Batch, temperature: float, options: ScoreOptions | None = None
) -> TokenOutputs:
    """Log-probability of each completion token, and the entropy of its distribution.

        log π_T(y_t | y_<t),   π_T = softmax(logits / temperature)

    Raises TypeError if the model does not call its own output layer.
    """
    options = options or ScoreOptions()
    predicted = predict(
        model,
        batch,
        ForwardOptions(
            layout=options.layout,
            keep_states=options.states,
            max_logits=None if options.distribution else max_logits(batch.device),
            recompute=options.recompute,
            in_place=options.in_place,
        ),
    )
    mask = batch.completion_mask
    chosen = batch.completion_ids[mask]  # (N,)
    if predicted.logits is not None:
        logprobs, entropy = LogprobsFromLogits.apply(
            predicted.logits, chosen, temperature, options.entropy, predicted.may_overwrite
        )
    else:
        head = output_layer(model)
        logprobs, entropy = LogprobsFromStates.apply(
            predicted.states,
            head.weight,
            head.bias,
            chosen,
            temperature,
            options.entropy,
            options.in_place,
        )

    def padded(values: Tensor) -> Tensor:
        """(N, …) -> (B, T, …)"""
        places = mask.view(*mask.shape, *[1] * (values.dim() - 1))
        return values.new_zeros(*mask.shape, *values.shape[1:]).masked_scatter(places, values)

    if entropy is not None:
        entropy = padded(entropy if options.entropy_gradient else entropy.detach())
    distribution = states = None
    if options.distribution:
        assert predicted.logits is not None
        distribution = padded((predicted.logits.float() / temperature).log_softmax(-1))
    if options.states:
        assert predicted.states is not None
        states = padded(predicted.states)
    return TokenOutputs(padded(logprobs), entropy, distribution, states)


def token_logprobs(
    model: nn.Module, batch: Batch, temperature: float, layout: MakeLayout | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities with gradient and entropy without, (B, T) each, of `score_tokens`."""
    outputs = score_tokens(model, batch, temperature, ScoreOptions(layout=layout))
    assert outputs.entropy is not None
    return outputs.logprobs, outputs.entropy


# ---- the forward pass --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ForwardOptions:
    """How `predict` runs the model."""

    layout: MakeLayout | None = None  # None: the fastest that model and batch allow
    weights: Mapping[str, Tensor] | None = None  # by name, in place of the model's own
    keep_states: bool = False  # return the states too
    max_logits: int | None = None  # above this N·V, return states in place of logits
    recompute: bool = False
    in_place: bool = False


@dataclass(frozen=True, slots=True)
class Predicted:
    """For the N completion tokens of a batch: the logits that predict them, or the last states."""

    logits: Tensor | None  # (N, V)
    states: Tensor | None  # (N, H)
    # No backward pass needs the logits' values but that of the loss. A model's own code may: the
    # gradient of a cap, c·tanh(z/c), is computed from them.
    may_overwrite: bool = False


def predict(model: nn.Module, batch: Batch, options: ForwardOptions) -> Predicted:
    """One forward pass; the output layer gets only the states that predict completion tokens.

    With more than `max_logits` logits it gets none and the states are returned, unless the model
    changes the logits afterwards. Raises TypeError if the model does not call its output layer.
    """
    decoder = None
    if options.layout is None and options.weights is None and batch.is_shared:
        decoder = FusedDecoder.of(model)
    if decoder is None:
        return _predict_by_model(model, batch, options)

    make_attend = make_flat_attention(model, decoder)
    if make_attend is not None:
        layout = flat(batch, make_attend)
        attend = layout.attend
    else:
        layout = _layout(model, batch, options)
        attend = masked_attention(layout.attention_mask)
    holds_back = _holds_back(model, layout, options)
    is_large = output_layer(model).weight.numel() >= LARGE_TABLE
    states = decoder.states(
        layout.input_ids,
        layout.position_ids,
        attend,
        options.recompute,
        options.in_place and (holds_back or is_large),
    )[layout.predicted_at]
    if holds_back:
        return Predicted(None, states)
    head = output_layer(model)
    logits = products.apply(head, states)
    kept = states if options.keep_states else None
    return Predicted(logits, kept, may_overwrite=products.is_plain(head))


def make_flat_attention(model: nn.Module, decoder: FusedDecoder) -> MakeAttend | None:
    """What computes the flat layout's attention where this model is; None: nothing does."""
    weight = output_layer(model).weight
    return flat_attention(weight.device, weight.dtype, decoder.head_dim)


def _predict_by_model(model: nn.Module, batch: Batch, options: ForwardOptions) -> Predicted:
    """`predict` by the model's own code; a hook selects the states that reach the output layer."""
    layout = _layout(model, batch, options)
    reset_dynamic_angles(model)
    holds_back = _holds_back(model, layout, options)
    kept: list[Tensor] = []

    def select(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        states = arguments[0][layout.predicted_at]  # (N, H)
        kept.append(states)
        return (states[None, :1] if holds_back else states[None],)

    hook = output_layer(model).register_forward_pre_hook(select)
    try:
        with recomputing(model) if options.recompute else nullcontext():
            logits = forward(
                model,
                options.weights,
                input_ids=layout.input_ids,
                attention_mask=_masks(model, batch, layout),
                position_ids=layout.position_ids,
                use_cache=False,
            ).logits
    finally:
        hook.remove()
    if not kept:
        raise TypeError(f"{type(model).__name__} does not call its own output layer")
    [states] = kept
    if not holds_back:
        return Predicted(logits[0], states if options.keep_states else None)
    with torch.no_grad():
        unchanged = output_layer(model)(states[None, :1])
    if torch.equal(unchanged, logits.detach()):
        return Predicted(None, states)
    # The model scales or caps its logits, as Gemma 2 does, so only its own code can make them.
    return _predict_by_model(model, batch, replace(options, max_logits=None))


def _layout(model: nn.Module, batch: Batch, options: ForwardOptions) -> Layout:
    make = options.layout or (packed if batch.is_shared else separate)
    return make(batch, next(model.parameters()).dtype)


def _masks(model: nn.Module, batch: Batch, layout: Layout) -> Tensor | dict[str, Tensor]:
    """What the model's own forward takes: separate rows leave windows of attention to it."""
    mask = layout.attention_mask
    if mask.dim() == 2:
        return mask
    positions = layout.position_ids
    places = Places(positions, positions, batch.longest_row)
    return batch.cached_layout(("masks", mask.dtype), lambda: layer_masks(model, mask, places))


def _holds_back(model: nn.Module, layout: Layout | FlatLayout, options: ForwardOptions) -> bool:
    """Whether there are more logits than max_logits, and a linear layer that can chunk them."""
    return (
        options.max_logits is not None
        and len(layout.predicted_at[0]) * output_size(model) > options.max_logits
        and type(output_layer(model)) is nn.Linear
    )


def output_layer(model: Any) -> Any:
    """The layer from hidden states to logits, by transformers' name for it."""
    return model.get_output_embeddings()


def output_size(model: nn.Module) -> int:
    """V"""
    return output_layer(model).weight.shape[0]


def hidden_size(model: nn.Module) -> int:
    """H"""
    return output_layer(model).weight.shape[1]
