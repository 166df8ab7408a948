"""float32 copies of trained weights that are stored in half precision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from grpo_core.learner.workers import Workers

HALF = (torch.float16, torch.bfloat16)


class MasterWeights:
    """What the optimiser moves: a float32 master m of each half-precision weight w, else w itself.

        m <- m + step,   w <- round(m)      Micikevicius et al. 2018, arXiv:1710.03740 §3.1

    Without masters a bfloat16 weight keeps its value wherever the step is below 1/512 of it: at a
    learning rate of 1e-6 that is 98 % of the weights of a model drawn from N(0, 0.02²).
    Gradients of the micro-batches are summed in float32 too. Tied weights have one master.
    """

    in_shards = False  # whether every worker keeps a part only

    def __init__(self, model: nn.Module):
        self._masters: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        self._named: dict[str, nn.Parameter] = dict(model.named_parameters())
        self._make_masters()

    def _make_masters(self) -> None:
        for name, weight in self._named.items():
            if weight.requires_grad and weight.dtype in HALF:
                master = nn.Parameter(weight.detach().float())
                self._masters[name] = weight, master
        self._named |= {name: master for name, (_, master) in self._masters.items()}

    def parameters(self) -> list[nn.Parameter]:
        """For the optimiser, in the model's order."""
        return list(self._named.values())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The same, with the names of the weights."""
        return iter(self._named.items())

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Add the weights' gradients to those of their masters; the weights keep none."""
        for weight, master in self._masters.values():
            if weight.grad is None:
                continue
            gradient = weight.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            weight.grad = None

    def clear_gradients(self) -> None:
        """Forget every gradient, also what a backward pass left that ended early."""
        for weight, _ in self._masters.values():
            weight.grad = None
        for p in self.parameters():
            p.grad = None

    @torch.no_grad()
    def reduce_gradients(self, workers: Workers) -> None:
        """Sum the gradients of all workers, into what this process's optimiser moves."""
        sum_gradients(self.parameters(), workers)

    def gradients(self) -> dict[str, Tensor]:
        """The gradients that this process keeps, by name."""
        return {name: p.grad for name, p in self._named.items() if p.grad is not None}

    def gradient_norm(self) -> Tensor:
        """Of all weights together, ()."""
        return nn.utils.get_total_norm(self.gradients().values())

    def first_non_finite(self) -> str:
        """The first parameter whose gradient is not finite, or "the loss"."""
        found = (name for name, g in self.gradients().items() if not g.isfinite().all())
        return next(found, "the loss")

    @torch.no_grad()
    def move_towards(self, targets: Iterable[Tensor], share: float) -> None:
        """w <- (1 - share)·w + share·target, for targets in the model's order."""
        for p, target in zip(self.parameters(), targets, strict=True):
            p.lerp_(target.to(p.dtype), share)
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the weights. Call it after every change of `parameters()`."""
        for weight, master in self._masters.values():
            weight.copy_(master)

    def state(self) -> dict[str, Tensor]:
        """The masters by name, not copied: valid until the next update. Empty for float32."""
        return {name: master.detach() for name, (_, master) in self._masters.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor] | None) -> None:
        """Continue from `state()`. Masters that it lacks, as in older checkpoints: the weights.

        A run may go on in float32, such as on another machine: then its weights take the masters.
        """
        weights = {name: weight for name, (weight, _) in self._masters.items()}
        for name, value in {**weights, **(state or {})}.items():
            self._named[name].copy_(value)

    def own_averages(self, optimizer: Mapping[str, Any]) -> Mapping[str, Any]:
        """The state of an optimiser of `parameters()`, as far as this process keeps it."""
        return optimizer

    def room(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """What a part of the state is read into that several workers kept in shards."""
        return torch.empty(tuple(shape), dtype=dtype)


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter], workers: Workers) -> None:
    """Give each parameter the sum of its gradients over all workers; none counts as 0.

    Where no worker has rows it is 0 instead of None: the optimiser's momentum continues.
    """
    trained = [p for p in parameters if p.requires_grad]
    if workers.world > 1 or all(p.grad is None for p in trained):
        for p in trained:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    workers.sum_([p.grad for p in trained if p.grad is not None])
