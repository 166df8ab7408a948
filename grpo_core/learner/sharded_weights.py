"""What the optimiser moves, in shards: each worker keeps 1/N of it. For full fine-tuning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, zeros

from grpo_core.learner.master_weights import HALF, MasterWeights
from grpo_core.learner.workers import Workers

_LAYER = re.compile(r".*?\.\d+\.")  # the beginning of a name, up to the number of its layer


class ShardedWeights(MasterWeights):
    """Masters of every trained weight in shards of N workers, by FSDP2's fully_shard.

    Every worker holds the whole model in the precision that it computes in, at the same addresses
    for the whole run: sampling, passes and the reference see plain weights. An update sums the
    gradients in float32, and each worker gets those of its shard (reduce-scatter); the optimiser
    moves the shards; `publish` gathers them, rounded, layer by layer (all-gather).

    Memory of P trained parameters, beside the model: 12·P/N bytes of masters and AdamW's averages
    in place of 12·P, and one layer more while it is gathered.    Zhao et al. 2023, arXiv:2304.11277
    """

    in_shards = True

    def __init__(self, model: nn.Module, workers: Workers):
        self._workers = workers
        device = next(model.parameters()).device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # FSDP2 works on the present one
        self._mesh = init_device_mesh(device.type, (workers.world,))
        self._blocks: list[tuple[_Block, list[nn.Parameter]]] = []
        self._summed: dict[str, Tensor] = {}  # float32 gradients of half-precision weights
        super().__init__(model)

    def _make_masters(self) -> None:
        for names in _gathered_together(self._named):
            weights = [self._named[name] for name in names]
            block = _Block(weights)
            policy = MixedPrecisionPolicy(param_dtype=weights[0].dtype)
            fully_shard(block, mesh=self._mesh, reshard_after_forward=False, mp_policy=policy)
            pairs = zip(weights, block.parameters(), strict=True)
            self._masters |= dict(zip(names, pairs, strict=True))
            self._blocks.append((block, weights))
        self._named |= {name: master for name, (_, master) in self._masters.items()}

    # ---- gradients -----------------------------------------------------------------------------

    def clear_gradients(self) -> None:
        super().clear_gradients()
        self._summed.clear()

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Sum half-precision gradients in float32; others stay in the weights until all are in."""
        for name, (weight, _) in self._masters.items():
            if weight.grad is None or weight.dtype not in HALF:
                continue
            gradient = weight.grad.float()
            known = self._summed.get(name)
            self._summed[name] = gradient if known is None else known.add_(gradient)
            weight.grad = None

    @torch.no_grad()
    def reduce_gradients(self, workers: Workers) -> None:
        """Each master gets its shard of the sum over all workers."""
        for name, (weight, master) in self._masters.items():
            gradient = self._summed.pop(name, weight.grad)
            weight.grad = None
            if gradient is None:
                gradient = torch.zeros_like(weight, dtype=master.dtype)
            # Contiguous, as FSDP2's shards are.
            share = DTensor.from_local(gradient.contiguous(), self._mesh, [Partial()])
            master.grad = share.redistribute(placements=[Shard(0)])

    def gradients(self) -> dict[str, Tensor]:
        """Of this worker's shards."""
        return {name: _local(g) for name, g in super().gradients().items()}

    def gradient_norm(self) -> Tensor:
        own = float(nn.utils.get_total_norm(self.gradients().values()))
        norms = self._workers.gather(lambda: own)
        return torch.tensor(norms, dtype=torch.float64).norm()

    def first_non_finite(self) -> str:
        found = self._workers.gather(super().first_non_finite)
        return next((name for name in self._named if name in found), found[0])

    # ---- weights -------------------------------------------------------------------------------

    @torch.no_grad()
    def move_towards(self, targets: Iterable[Tensor], share: float) -> None:
        for p, target in zip(self.parameters(), targets, strict=True):
            _local(p).lerp_(self._own(target, p).to(p.dtype), share)
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Gather the masters, rounded to the model's precision, into its weights."""
        for block, weights in self._blocks:
            shards = cast("FSDPModule", block)
            shards.unshard()
            for weight, whole in zip(weights, block.parameters(), strict=True):
                weight.copy_(whole)
            shards.reshard()

    def state(self) -> dict[str, Tensor]:
        """Masters of half-precision weights, in shards; others are the weights themselves."""
        halves = {name for name, (weight, _) in self._masters.items() if weight.dtype in HALF}
        return {name: m for name, m in super().state().items() if name in halves}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor] | None) -> None:
        """Continue from a `state()` of any number of workers."""
        for name, (weight, master) in self._masters.items():
            _local(master).copy_(self._own((state or {}).get(name, weight), master))
        self.publish()

    def own_averages(self, optimizer: Mapping[str, Any]) -> Mapping[str, Any]:
        """An optimiser's state in shards, of whole averages or of shards."""
        averages = dict(optimizer["state"])
        for i, p in enumerate(self.parameters()):
            if i in averages and isinstance(p, DTensor):
                averages[i] = {
                    key: self._shard(value) if value.shape == p.shape else value
                    for key, value in averages[i].items()
                }
        return {**optimizer, "state": averages}

    def room(self, shape: Sequence[int], dtype: torch.dtype) -> DTensor:
        """Zeros, in shards."""
        return zeros(*shape, dtype=dtype, device_mesh=self._mesh, placements=[Shard(0)])

    # ---- shards --------------------------------------------------------------------------------

    def _shard(self, value: Tensor) -> DTensor:
        if isinstance(value, DTensor):
            return value
        shard = self.room(value.shape, value.dtype)
        _local(shard).copy_(self._own(value, shard))
        return shard

    def _own(self, value: Tensor, like: Tensor) -> Tensor:
        """This worker's rows of a tensor, if it is whole and `like` is in shards."""
        if isinstance(value, DTensor) or not isinstance(like, DTensor):
            return _local(value)
        rows = -(-len(value) // self._workers.world)  # of each shard but the last ones
        return value[rows * self._workers.rank :][:rows]


class _Block(nn.Module):
    """The masters of weights that are gathered together."""

    def __init__(self, weights: Sequence[nn.Parameter]):
        super().__init__()
        wide = torch.promote_types(weights[0].dtype, torch.float32)
        self.masters = nn.ParameterList(nn.Parameter(w.detach().to(wide)) for w in weights)


def _gathered_together(named: Mapping[str, nn.Parameter]) -> Iterator[list[str]]:
    """The names of trained weights, those of a layer and of one precision together."""
    groups: dict[Any, list[str]] = {}
    for name, weight in named.items():
        if weight.requires_grad:
            layer = _LAYER.match(name)
            groups.setdefault((layer and layer[0], weight.dtype), []).append(name)
    yield from groups.values()


def _local(t: Tensor) -> Tensor:
    """A shard as a plain tensor that shares its memory."""
    return cast("DTensor", t.detach()).to_local() if isinstance(t, DTensor) else t
