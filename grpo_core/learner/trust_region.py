"""TRPO's step: as far uphill as the policy may move, measured in KL and not in weights. arXiv:1502.05477.

    maximise mean(w·A)  subject to  mean KL(π_old ‖ π_θ) ≤ δ

To second order in the step the KL is ½ dᵀF d, F = mean over completion tokens of Jᵀ(diag p − p pᵀ)J, with p = π_old over the
vocabulary and J = ∂ logits/∂θ. So: solve (F + λI) x = g by conjugate gradient, go √(2δ / xᵀFx)·x, and halve that until the surrogate
improves and the KL, now measured and not expanded, is at most δ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from grpo_core.learner.batch import Batch
from grpo_core.learner.logprobs import predict

log = logging.getLogger("grpo_studio")

CG_ITERATIONS = 10
CG_RESIDUAL = 1e-8  # of |g|; in float32 the ten iterations end first
DAMPING = 0.1
HALVINGS = 10
KL_CHUNK = 2**22  # elements of a vocabulary-wide float64 table held at once, 32 MiB

Part = tuple[Batch, Tensor]  # a micro-batch and its advantages (B,)
Loss = Callable[
    [Batch, Tensor, Tensor, Tensor], Tensor
]  # batch, advantages (B,), new and old logprobs (B, T) -> its share of the step's loss
Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class TrustRegionStep:
    """What a constrained step measured. `step_frac` 0: the weights are, bit for bit, what they were."""

    trust_kl: float  # mean KL(π_old ‖ π_new) over completion tokens, nats
    trust_delta: float
    trust_step_frac: float  # accepted share of √(2δ / xᵀFx)·x: 1, ½, ¼ … or 0
    trust_residual: float  # |g − (F + λI)x| / |g|
    trust_gain: float  # how much the surrogate rose


def trust_region_step(
    model: nn.Module,
    parts: Sequence[Part],
    loss: Loss,
    delta: float,
    temperature: float,
    check_interrupt: Callable[[], None] = lambda: None,
    damping: float = DAMPING,
) -> TrustRegionStep:
    """Move the weights one constrained step against the gradients that stand in `.grad`, those of the sum of `loss` over `parts`.

    `check_interrupt` is called before each pass over a part and may raise; until the step is accepted no weight has moved. Where no
    fraction of the step is both better and within δ, none is taken.
    """
    weights = trainable(model)
    ascent = -flat([p.grad for p in weights.values()], weights)
    norm = ascent.norm()
    if norm == 0:
        return TrustRegionStep(
            0.0, delta, 0.0, 0.0, 0.0
        )  # all groups tie: nowhere to go, and 0/0 is no direction
    # Of unit length, so that a small reward does not underflow; the step is the same for any multiple of g.
    solution = conjugate_gradient(
        fisher(model, parts, temperature, check_interrupt), ascent / norm, damping
    )
    full = solution.x * (2 * delta / solution.x_fisher_x).sqrt()
    for halvings in range(HALVINGS + 1):
        candidate = {
            n: (p.detach() + d * 0.5**halvings).to(p.dtype)
            for (n, p), d in zip(weights.items(), unflat(full, weights), strict=True)
        }
        kl, change = compare(model, candidate, parts, loss, temperature, check_interrupt)
        if kl <= delta and change < 0:  # False for nan
            with torch.no_grad():
                for name, p in weights.items():
                    p.copy_(candidate[name])
            return TrustRegionStep(kl, delta, 0.5**halvings, solution.residual, -change)
    log.warning(
        "Trust region: no fraction of the step down to 1/%d both improved the surrogate and kept KL <= %g; the weights stay.",
        2**HALVINGS,
        delta,
    )
    return TrustRegionStep(0.0, delta, 0.0, solution.residual, 0.0)


@dataclass(frozen=True, slots=True)
class Solution:
    x: Tensor
    x_fisher_x: Tensor  # xᵀFx, without the damping: what the KL will be, twice, to second order
    residual: float


def conjugate_gradient(
    product_with: Callable[[Tensor], Tensor],
    g: Tensor,
    damping: float = DAMPING,
    iterations: int = CG_ITERATIONS,
    tolerance: float = CG_RESIDUAL,
) -> Solution:
    """Solve (F + λI) x = g knowing F only by its products. Hestenes and Stiefel 1952; Nocedal and Wright, algorithm 5.2."""
    x, fisher_x = torch.zeros_like(g), torch.zeros_like(g)
    residual = direction = g
    norm, squared = float(g.norm()), float(g @ g)
    for _ in range(iterations):
        if squared**0.5 <= tolerance * norm:
            break
        product = product_with(direction)
        damped = product + damping * direction
        length = squared / float(direction @ damped)
        x, fisher_x, residual = (
            x + length * direction,
            fisher_x + length * product,
            residual - length * damped,
        )
        before, squared = squared, float(residual @ residual)
        direction = residual + squared / before * direction
    return Solution(x, x @ fisher_x, squared**0.5 / norm)


def fisher(
    model: nn.Module,
    parts: Sequence[Part],
    temperature: float,
    check_interrupt: Callable[[], None] = lambda: None,
) -> Callable[[Tensor], Tensor]:
    """v -> F·v, F never formed: how the logits move, (diag p − p pᵀ) of that, pulled back to the weights.

        F v = 1/N Σ_t Jᵀ (p ⊙ (Jv − pᵀJv))      Gauss–Newton; Schraudolph 2002

    v and F·v: flat over the trainable weights. Equals the Hessian of the KL at π_old.
    """
    weights = trainable(model)
    num_tokens = sum(int(batch.completion_mask.sum()) for batch, _ in parts)
    check_interrupt()
    # One part: its graph serves all iterations. Several: each anew, so that memory stays that of one.
    held = Jacobian(model, weights, parts[0][0], temperature) if len(parts) == 1 else None

    def product(vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        for batch, _ in parts:
            check_interrupt()
            jacobian = held or Jacobian(model, weights, batch, temperature)
            p, change = jacobian.logits.detach().softmax(-1), jacobian.push(vector)  # (N, V) each
            check_interrupt()
            total += jacobian.pull(p * (change - (p * change).sum(-1, keepdim=True)) / num_tokens)
        return total

    return product


class Jacobian:
    """J = ∂ logits/∂θ at the present weights, as the two products that can be had without forming it."""

    # Jv is taken as the derivative of Jᵀu in u (Townsend's double backward): measured twice as fast here as forward mode and as two
    # backward passes through the KL. Sandwiching the exact diag p − p pᵀ keeps F positive semi-definite to rounding, as CG needs.
    def __init__(self, model: nn.Module, weights: Weights, batch: Batch, temperature: float):
        self.weights = weights
        with (
            torch.enable_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):  # the fused kernels have no second derivative
            self.logits = completion_logits(model, weights, batch, temperature)  # (N, V)
            self._probe = torch.zeros_like(self.logits, requires_grad=True)
            self._pulled = self._grad(self.logits, self._probe, create_graph=True)

    def push(self, vector: Tensor) -> Tensor:
        """J v, (N, V)."""
        used = [
            (g, v.to(g.dtype))
            for g, v in zip(self._pulled, unflat(vector, self.weights), strict=True)
            if g is not None
        ]
        return torch.autograd.grad(
            [g for g, _ in used], self._probe, [v for _, v in used], retain_graph=True
        )[0]

    def pull(self, values: Tensor) -> Tensor:
        """Jᵀ values, flat."""
        return flat(self._grad(self.logits, values, retain_graph=True), self.weights)

    def _grad(self, outputs: Tensor, values: Tensor, **options: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            outputs, list(self.weights.values()), values, allow_unused=True, **options
        )


@torch.no_grad()
def compare(
    model: nn.Module,
    candidate: Weights,
    parts: Sequence[Part],
    loss: Loss,
    temperature: float,
    check_interrupt: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Mean KL(present policy ‖ candidate) over completion tokens, exact over the vocabulary, and the change in loss between them."""
    weights = trainable(model)
    kl = change = 0.0
    num_tokens = 0
    for batch, advantages in parts:
        check_interrupt()
        before = completion_logits(model, weights, batch, temperature)  # (N, V)
        check_interrupt()
        after = completion_logits(model, candidate, batch, temperature)  # (N, V)
        chosen = batch.completion_ids[batch.completion_mask]  # (N,)
        old = torch.zeros(
            batch.completion_mask.shape, dtype=torch.float64, device=before.device
        )  # (B, T)
        new = torch.zeros_like(old)
        picked = []
        for start in range(0, len(chosen), size := max(1, KL_CHUNK // before.shape[-1])):
            rows = slice(start, start + size)
            p, q = before[rows].double().log_softmax(-1), after[rows].double().log_softmax(-1)
            kl += float(torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum())
            picked.append(
                torch.stack([p, q]).gather(-1, chosen[rows].expand(2, -1)[..., None])[..., 0]
            )  # (2, n)
        old[batch.completion_mask], new[batch.completion_mask] = torch.cat(picked, 1)
        change += float(loss(batch, advantages, new, old)) - float(
            loss(batch, advantages, old, old)
        )
        num_tokens += len(chosen)
    return kl / num_tokens, change


def completion_logits(
    model: nn.Module, weights: Weights, batch: Batch, temperature: float
) -> Tensor:
    """The logits that each completion token was drawn from, under other weights than the model's own. (N, V), padding left out."""
    logits = predict(model, batch, weights=weights).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Tied weights stand here once."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def flat(tensors: Sequence[Tensor | None], weights: Weights) -> Tensor:
    """One vector over all trainable weights, at least float32; None is a weight that nothing depends on."""
    return torch.cat(
        [
            (torch.zeros_like(p) if t is None else t)
            .detach()
            .flatten()
            .to(torch.promote_types(p.dtype, torch.float32))
            for t, p in zip(tensors, weights.values(), strict=True)
        ]
    )


def unflat(vector: Tensor, weights: Weights) -> list[Tensor]:
    return [
        piece.view_as(p)
        for piece, p in zip(
            vector.split([p.numel() for p in weights.values()]), weights.values(), strict=True
        )
    ]
