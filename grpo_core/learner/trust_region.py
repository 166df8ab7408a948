"""TRPO's step: as far uphill as a bound on the KL allows. arXiv:1502.05477.

    maximise mean(w·A)  subject to  mean KL(π_old ‖ π_θ) ≤ δ

To second order in the step d the KL is ½ dᵀF d, with F = mean over completion tokens of
Jᵀ(diag p − p pᵀ)J, p = π_old over the vocabulary and J = ∂ logits/∂θ. Conjugate gradient solves
(F + λI) x = g. The step √(2δ / xᵀFx)·x is halved until the surrogate improves and the measured KL
is at most δ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from grpo_core.learner.batch import Batch
from grpo_core.learner.logprobs import ForwardOptions, predict
from grpo_core.learner.master_weights import MasterWeights

log = logging.getLogger("grpo_studio")

CG_ITERATIONS = 10
CG_RESIDUAL = 1e-8  # of |g|; in float32 the ten iterations end first
DAMPING = 0.1
HALVINGS = 10
KL_CHUNK = 2**22  # elements of a vocabulary-wide float64 table held at once, 32 MiB

Part = tuple[Batch, Tensor]  # a micro-batch and its advantages (B,)
# batch, advantages (B,), logprobs and old_logprobs (B, T) -> its share of the step's loss
PartLoss = Callable[[Batch, Tensor, Tensor, Tensor], Tensor]
Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class TrustRegionStep:
    """What a constrained step measured. With trust_step_frac 0 no weight has changed."""

    trust_kl: float  # mean KL(π_old ‖ π_new) over completion tokens, nats
    trust_delta: float
    trust_step_frac: float  # accepted share of √(2δ / xᵀFx)·x: 1, ½, ¼ … or 0
    trust_residual: float  # |g − (F + λI)x| / |g|
    trust_gain: float  # how much the surrogate rose


@dataclass(frozen=True, slots=True)
class Surrogate:
    """What a constrained step improves: the sum of `loss` over the parts, under `model`."""

    model: nn.Module
    weights: MasterWeights  # the model's, which hold the gradient and move
    parts: Sequence[Part]
    loss: PartLoss
    temperature: float
    # Called before each pass over a part; may raise. No weight moves before a step is accepted.
    check_interrupt: Callable[[], None] = lambda: None


def trust_region_step(
    surrogate: Surrogate, delta: float, damping: float = DAMPING
) -> TrustRegionStep:
    """Move the weights one constrained step, given the gradient of the loss in `.grad`.

    If no fraction of the step is both better and within δ, the weights stay.
    """
    weights = trainable(surrogate.weights)
    ascent = -flatten([p.grad for p in weights.values()], weights)
    norm = ascent.norm()
    if norm == 0:  # all groups are tied; 0/0 has no direction
        return TrustRegionStep(0.0, delta, 0.0, 0.0, 0.0)
    product = fisher(
        surrogate.model, surrogate.parts, surrogate.temperature, surrogate.check_interrupt
    )
    # Scaled to length 1, so that a small reward does not underflow; the step does not depend on it.
    solution = conjugate_gradient(product, ascent / norm, damping)
    full_step = solution.x * (2 * delta / solution.x_fisher_x).sqrt()
    for halvings in range(HALVINGS + 1):
        candidate = {
            name: (p.detach() + step * 0.5**halvings).to(p.dtype)
            for (name, p), step in zip(weights.items(), unflatten(full_step, weights), strict=True)
        }
        rounded = {n: candidate[n].to(p.dtype) for n, p in trainable(surrogate.model).items()}
        kl, change = kl_and_loss_change(surrogate, rounded)
        if kl <= delta and change < 0:  # False for nan
            with torch.no_grad():
                for name, p in weights.items():
                    p.copy_(candidate[name])
            surrogate.weights.publish()
            return TrustRegionStep(kl, delta, 0.5**halvings, solution.residual, -change)
    log.warning(
        "Trust region: no fraction of the step down to 1/%d both improved the surrogate and kept "
        "KL <= %g; the weights stay.",
        2**HALVINGS,
        delta,
    )
    return TrustRegionStep(0.0, delta, 0.0, solution.residual, 0.0)


@dataclass(frozen=True, slots=True)
class Solution:
    x: Tensor
    x_fisher_x: Tensor  # xᵀFx without the damping: twice the KL, to second order
    residual: float


def conjugate_gradient(
    product_with: Callable[[Tensor], Tensor],
    g: Tensor,
    damping: float = DAMPING,
    iterations: int = CG_ITERATIONS,
    tolerance: float = CG_RESIDUAL,
) -> Solution:
    """Solve (F + λI) x = g from products F·v alone.

    Hestenes and Stiefel 1952; Nocedal and Wright, Numerical Optimization, algorithm 5.2.
    """
    x, fisher_x = torch.zeros_like(g), torch.zeros_like(g)
    residual = direction = g
    norm, squared = float(g.norm()), float(g @ g)
    for _ in range(iterations):
        if squared**0.5 <= tolerance * norm:
            break
        product = product_with(direction)
        damped = product + damping * direction
        length = squared / float(direction @ damped)
        x = x + length * direction
        fisher_x = fisher_x + length * product
        residual = residual - length * damped
        before, squared = squared, float(residual @ residual)
        direction = residual + squared / before * direction
    return Solution(x, x @ fisher_x, squared**0.5 / norm)


def fisher(
    model: nn.Module,
    parts: Sequence[Part],
    temperature: float,
    check_interrupt: Callable[[], None] = lambda: None,
) -> Callable[[Tensor], Tensor]:
    """A function v -> F·v that never forms F      Gauss–Newton; Schraudolph 2002

        F v = 1/N Σ_t Jᵀ (p ⊙ (Jv − pᵀJv))

    v and F·v are flat over the trainable weights. F is the Hessian of the KL at π_old.
    """
    weights = trainable(model)
    num_tokens = sum(int(batch.completion_mask.sum()) for batch, _ in parts)
    check_interrupt()
    # The graph of a single part serves all iterations. With several parts it is rebuilt each time,
    # so that only one part's graph is in memory.
    kept = Jacobian(model, weights, parts[0][0], temperature) if len(parts) == 1 else None

    def product(vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        for batch, _ in parts:
            check_interrupt()
            jacobian = kept or Jacobian(model, weights, batch, temperature)
            p = jacobian.logits.detach().softmax(-1)  # (N, V)
            change = jacobian.push(vector)  # (N, V)
            check_interrupt()
            total += jacobian.pull(p * (change - (p * change).sum(-1, keepdim=True)) / num_tokens)
        return total

    return product


class Jacobian:
    """J = ∂ logits/∂θ at the present weights, as the products Jv and Jᵀu."""

    # Jv is the derivative of Jᵀu in u (Townsend's double backward): measured twice as fast here as
    # forward mode, and as two backward passes through the KL. With the exact diag p − p pᵀ in
    # between, F is positive semi-definite to rounding, which conjugate gradient needs.
    def __init__(self, model: nn.Module, weights: Weights, batch: Batch, temperature: float):
        self.weights = weights
        # The fused attention kernels have no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            self.logits = completion_logits(model, weights, batch, temperature)  # (N, V)
            self._probe = torch.zeros_like(self.logits, requires_grad=True)
            self._pulled = self._grad(self.logits, self._probe, create_graph=True)

    def push(self, vector: Tensor) -> Tensor:
        """J v, (N, V)."""
        pieces = unflatten(vector, self.weights)
        pairs = zip(self._pulled, pieces, strict=True)
        used = [(g, v.to(g.dtype)) for g, v in pairs if g is not None]
        outputs, directions = [g for g, _ in used], [v for _, v in used]
        return torch.autograd.grad(outputs, self._probe, directions, retain_graph=True)[0]

    def pull(self, values: Tensor) -> Tensor:
        """Jᵀ values, flat."""
        return flatten(self._grad(self.logits, values, retain_graph=True), self.weights)

    def _grad(self, outputs: Tensor, values: Tensor, **options: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            outputs, list(self.weights.values()), values, allow_unused=True, **options
        )


@torch.no_grad()
def kl_and_loss_change(surrogate: Surrogate, candidate: Weights) -> tuple[float, float]:
    """Mean KL(present policy ‖ candidate) over completion tokens, and the change in loss.

    The KL is exact over the vocabulary, in nats.
    """
    model, temperature = surrogate.model, surrogate.temperature
    weights = trainable(model)
    kl = change = 0.0
    num_tokens = 0
    for batch, advantages in surrogate.parts:
        surrogate.check_interrupt()
        before = completion_logits(model, weights, batch, temperature)  # (N, V)
        surrogate.check_interrupt()
        after = completion_logits(model, candidate, batch, temperature)  # (N, V)
        mask = batch.completion_mask
        chosen = batch.completion_ids[mask]  # (N,)
        picked = []
        size = max(1, KL_CHUNK // before.shape[-1])
        for start in range(0, len(chosen), size):
            rows = slice(start, start + size)
            p = before[rows].double().log_softmax(-1)
            q = after[rows].double().log_softmax(-1)
            kl += float(torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum())
            ids = chosen[rows].expand(2, -1)[..., None]
            picked.append(torch.stack([p, q]).gather(-1, ids)[..., 0])  # (2, n)
        old_logprobs = torch.zeros(mask.shape, dtype=torch.float64, device=before.device)  # (B, T)
        logprobs = torch.zeros_like(old_logprobs)
        old_logprobs[mask], logprobs[mask] = torch.cat(picked, 1)
        after_loss = surrogate.loss(batch, advantages, logprobs, old_logprobs)
        before_loss = surrogate.loss(batch, advantages, old_logprobs, old_logprobs)
        change += float(after_loss) - float(before_loss)
        num_tokens += len(chosen)
    return kl / num_tokens, change


def completion_logits(
    model: nn.Module, weights: Weights, batch: Batch, temperature: float
) -> Tensor:
    """Logits / temperature of the completion tokens, (N, V), under the given weights."""
    logits = predict(model, batch, ForwardOptions(weights=weights)).logits
    assert logits is not None
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def trainable(model: nn.Module | MasterWeights) -> dict[str, Tensor]:
    """Trainable weights by name; tied weights appear once."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def flatten(tensors: Sequence[Tensor | None], weights: Weights) -> Tensor:
    """One vector over all trainable weights, at least float32. None: all zeros."""
    pieces = []
    for tensor, p in zip(tensors, weights.values(), strict=True):
        values = torch.zeros_like(p) if tensor is None else tensor
        pieces.append(values.detach().flatten().to(torch.promote_types(p.dtype, torch.float32)))
    return torch.cat(pieces)


def unflatten(vector: Tensor, weights: Weights) -> list[Tensor]:
    """The inverse of `flatten`."""
    pieces = vector.split([p.numel() for p in weights.values()])
    return [piece.view_as(p) for piece, p in zip(pieces, weights.values(), strict=True)]
