"""float32 copies of trained weights that are stored in half precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


class MasterWeights:
    """What the optimiser moves: a float32 master m of each half-precision weight w, else w itself.

        m <- m + step,   w <- round(m)      Micikevicius et al. 2018, arXiv:1710.03740 §3.1

    Without masters a bfloat16 weight keeps its value wherever the step is below 1/512 of it: at a
    learning rate of 1e-6 that is 98 % of the weights of a model drawn from N(0, 0.02²).
    Gradients of the micro-batches are summed in float32 too. Tied weights have one master.
    """

    def __init__(self, model: nn.Module):
        self._masters: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        self._named: dict[str, nn.Parameter] = {}
        for name, weight in model.named_parameters():
            self._named[name] = weight
            if weight.requires_grad and weight.dtype in HALF:
                master = nn.Parameter(weight.detach().float())
                self._masters[name] = weight, master
                self._named[name] = master

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
