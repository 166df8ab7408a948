"""Log-probabilities of completion tokens under a model, with the prompt of a group computed once where the model allows it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grpo_core.learner.batch import Batch, Layout, packed, separate

PACKING_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # nats; half precision differs by rounding alone
HALF_TOLERANCE = 0.25


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model says about completion tokens, in nats, float32. Padding columns hold finite nonsense: mask them."""

    logprobs: Tensor  # (B, T) of the tokens themselves
    entropy: Tensor  # (B, T) of the distributions they came from
    distribution: Tensor | None = None  # (B, T, V) log-probabilities of all tokens, when asked for


def score_tokens(model: nn.Module, batch: Batch, temperature: float, layout: Callable[..., Layout] | None = None, *,
                 entropy_gradient: bool = False, distribution: bool = False) -> Scored:
    """Log-probability of each completion token, and the entropy of the distribution it came from.

        log π_T(y_t | y_<t) with π_T = softmax(logits / temperature)

    Entropy carries a gradient only when asked to: it would keep a second (B, T, V) alive. A batch with groups is packed, one
    without is not, unless `layout` says so.
    """
    layout = layout or (packed if batch.group_size > 1 else separate)
    arranged = layout(batch, next(model.parameters()).dtype)
    logits = forward(model, input_ids=arranged.input_ids, attention_mask=arranged.attention_mask, position_ids=arranged.position_ids,
                     use_cache=False).logits  # (R, W, V)
    logits = logits[arranged.predicted_at].float() / temperature  # (B, T, V)
    normaliser = logits.logsumexp(-1)  # (B, T)
    chosen = logits.gather(-1, batch.completion_ids[..., None]).squeeze(-1)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = normaliser - ((logits - normaliser[..., None]).exp() * logits).sum(-1)
    return Scored(chosen - normaliser, entropy, logits - normaliser[..., None] if distribution else None)


def token_logprobs(model: nn.Module, batch: Batch, temperature: float, layout: Callable[..., Layout] | None = None) -> tuple[Tensor, Tensor]:
    """The two (B, T) of `score_tokens`: log-probabilities with gradient, entropy without."""
    scored = score_tokens(model, batch, temperature, layout)
    return scored.logprobs, scored.entropy


@torch.no_grad()
def packing_is_exact(model: nn.Module, batch: Batch) -> bool:
    """Whether this model, on these rows, gives packed tokens the log-probabilities that they have in rows of their own.

    Asked of the model itself and not of a list of names: sliding windows, state-space layers and flash kernels that ignore the mask
    all show here.
    """
    if batch.group_size == 1:
        return False
    try:
        together, apart = (token_logprobs(model, batch, 1.0, layout)[0] for layout in (packed, separate))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):  # what architectures raise that know no such mask
        return False
    gap = torch.where(batch.completion_mask, (together - apart).abs(), 0.0).max()
    return bool(gap <= PACKING_TOLERANCE.get(next(model.parameters()).dtype, HALF_TOLERANCE))


def positions(attention_mask: Tensor) -> Tensor:
    """Position of each token counted from its row's first real one; padding gets 0."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def forward(model: nn.Module, **arguments: Any) -> Any:
    """model(**arguments), less the arguments that this architecture does not know (e.g. position_ids for ALiBi models)."""
    parameters = inspect.signature(model.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return model(**arguments)
    return model(**{k: v for k, v in arguments.items() if k in parameters})
