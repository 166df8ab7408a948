"""Log-probabilities of completion tokens under a model, with the prompt of a group computed once where the model allows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grpo_core.learner.batch import Batch, Layout, packed, separate
from grpo_core.learner.packed_attention import flat
from grpo_core.models.decoder import FusedDecoder, forward, masked, recomputing
from grpo_core.models.lm_head import MAX_LOGITS, Chosen, ThroughHead

PACKING_TOLERANCE = {
    torch.float32: 1e-3,
    torch.float64: 1e-6,
}  # nats; half precision differs by rounding alone
HALF_TOLERANCE = 0.25


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model says about completion tokens, in nats, float32, 0 on padding."""

    logprobs: Tensor  # (B, T) of the tokens themselves
    entropy: Tensor | None  # (B, T) of the distributions they came from; None when not asked for
    distribution: Tensor | None = None  # (B, T, V) log-probabilities of all tokens, when asked for
    states: Tensor | None = (
        None  # (B, T, H) last hidden states that the tokens were predicted from, when asked for
    )


def score_tokens(
    model: nn.Module,
    batch: Batch,
    temperature: float,
    layout: Callable[..., Layout] | None = None,
    *,
    entropy: bool = True,
    entropy_gradient: bool = False,
    distribution: bool = False,
    states: bool = False,
    recompute: bool = False,
    in_place: bool = False,
) -> Scored:
    """Log-probability of each completion token, and the entropy of the distribution it came from.

        log π_T(y_t | y_<t) with π_T = softmax(logits / temperature)

    Only completion tokens reach the output layer. Entropy is left out, or carries a gradient, only when asked to.
    A batch with siblings shares their prompts, on a CPU end to end where the architecture is one of ours, else packed; one without does not;
    unless `layout` says so. in_place: the gradient of a large output layer, and of the embedding that is often the same, may be added to `.grad`
    by the backward pass itself, where it would else be made up to three times.
    """
    found = predict(
        model,
        batch,
        layout,
        keep_states=states,
        max_logits=None if distribution else MAX_LOGITS,
        recompute=recompute,
        in_place=in_place,
    )
    mask = batch.completion_mask
    chosen, head = batch.completion_ids[mask], model.get_output_embeddings()  # (N,)
    if found.logits is not None:
        logprobs, entropies = Chosen.apply(found.logits, chosen, temperature, entropy)
    else:
        logprobs, entropies = ThroughHead.apply(
            found.states, head.weight, head.bias, chosen, temperature, entropy, in_place
        )

    def spread(values: Tensor) -> Tensor:
        """(N, …) -> (B, T, …)"""
        return values.new_zeros(*mask.shape, *values.shape[1:]).masked_scatter(
            mask.view(*mask.shape, *[1] * (values.dim() - 1)), values
        )

    if entropies is not None:
        entropies = spread(entropies if entropy_gradient else entropies.detach())
    return Scored(
        spread(logprobs),
        entropies,
        spread((found.logits.float() / temperature).log_softmax(-1)) if distribution else None,
        spread(found.states) if states else None,
    )


def token_logprobs(
    model: nn.Module, batch: Batch, temperature: float, layout: Callable[..., Layout] | None = None
) -> tuple[Tensor, Tensor]:
    """The two (B, T) of `score_tokens`: log-probabilities with gradient, entropy without."""
    scored = score_tokens(model, batch, temperature, layout)
    return scored.logprobs, scored.entropy


# ---- the forward pass --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Predicted:
    """Of the N completion tokens of a batch: the logits they were predicted by, or the states from which these can be made."""

    logits: Tensor | None  # (N, V)
    states: Tensor | None  # (N, H)


def predict(
    model: nn.Module,
    batch: Batch,
    layout: Callable[..., Layout] | None = None,
    weights: Mapping[str, Tensor] | None = None,
    *,
    keep_states: bool = False,
    max_logits: int | None = None,
    recompute: bool = False,
    in_place: bool = False,
) -> Predicted:
    """One forward pass in which the output layer is given nothing but the states that predict completion tokens.

    With more than `max_logits` of N·V it is not given them either, if what it makes of a state is all that the model does with it:
    then only the states are returned. recompute: layers keep only their inputs for the gradient.
    """
    family = (
        FusedDecoder.of(model) if layout is None and weights is None and batch.is_shared else None
    )
    if family and batch.device.type == "cpu":
        arranged, attend = (found := flat(batch)), found.attend
    else:  # the kernels of `flat` are a CPU's
        arranged = (layout or (packed if batch.is_shared else separate))(
            batch, next(model.parameters()).dtype
        )
        attend = masked(arranged.attention_mask)
    kept: list[Tensor] = []
    holds_back = (
        max_logits is not None
        and len(arranged.predicted_at[0]) * output_size(model) > max_logits
        and type(model.get_output_embeddings()) is nn.Linear
    )

    def choose(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
        states = arguments[0][arranged.predicted_at]  # (N, H)
        kept.append(states)
        return (states[None, :1] if holds_back else states[None],)

    if family is not None:
        states = family.states(
            arranged.input_ids, arranged.position_ids, attend, recompute, in_place and holds_back
        )[arranged.predicted_at]
        return Predicted(
            None if holds_back else model.get_output_embeddings()(states),
            states if holds_back or keep_states else None,
        )

    hook = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        with recomputing(model) if recompute else nullcontext():
            logits = forward(
                model,
                weights,
                input_ids=arranged.input_ids,
                attention_mask=arranged.attention_mask,
                position_ids=arranged.position_ids,
                use_cache=False,
            ).logits
    finally:
        hook.remove()
    if not kept:
        raise TypeError(f"{type(model).__name__} does not call its own output layer")
    [states] = kept
    if holds_back:
        with torch.no_grad():
            alone = model.get_output_embeddings()(states[None, :1])
        if not torch.equal(
            alone, logits.detach()
        ):  # scaled or capped afterwards, as in Gemma 2: what else is done is not known here
            return predict(
                model, batch, layout, weights, keep_states=keep_states, recompute=recompute
            )
        return Predicted(None, states)
    return Predicted(logits[0], states if keep_states else None)


def output_size(model: nn.Module) -> int:
    """V"""
    return model.get_output_embeddings().weight.shape[0]


def hidden_size(model: nn.Module) -> int:
    """H"""
    return model.get_output_embeddings().weight.shape[1]


@torch.no_grad()
def packing_is_exact(
    model: nn.Module, batch: Batch, layout: Callable[..., Layout] | None = None
) -> bool:
    """Whether this model, on these rows, gives tokens that share a prompt the log-probabilities that they have in rows of their own.

    Asked of the model itself and not of a list of names: sliding windows, state-space layers and flash kernels that ignore the mask
    all show here. Rows of their own are computed by the model's own code, shared ones by ours where it knows the architecture, unless
    `layout` says how.
    """
    if not batch.is_shared:
        return False
    try:
        together, apart = (
            token_logprobs(model, batch, 1.0, layout)[0] for layout in (layout, separate)
        )
    except torch.OutOfMemoryError:
        raise
    except (
        TypeError,
        ValueError,
        RuntimeError,
        IndexError,
        AttributeError,
    ):  # what architectures raise that know no such mask
        return False
    return bool(
        (together - apart).abs().max()
        <= PACKING_TOLERANCE.get(next(model.parameters()).dtype, HALF_TOLERANCE)
    )
