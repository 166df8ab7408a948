"""AdamW when memory is short: its averages are made early, and a step is made whole or not at all.

AdamW: arXiv:1711.05101.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from grpo_core.errors import OutOfMemory
from grpo_core.models.device import is_out_of_memory, release_memory

log = logging.getLogger("grpo_studio")


def allocate_averages(optimizer: torch.optim.AdamW) -> None:
    """Make what AdamW itself would make in its first step, with the same numbers.

    Called before a pass, so that the pass finds a micro-batch that fits beside the averages. Raises
    OutOfMemory if they do not fit at all.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    missing = [p for p in parameters if p.requires_grad and p not in optimizer.state]
    for attempt in (1, 2):
        try:
            averages = [_averages(p) for p in missing]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            optimizer.state.update(zip(missing, averages, strict=True))
            return
        if attempt == 1:  # the caches of sampling may still be held
            release_memory()
    needed = sum(2 * p.numel() * p.element_size() for p in missing)
    raise OutOfMemory(
        f"model.lora_rank: there is not enough memory for the optimiser, {needed / 2**30:.1f} GiB "
        f"for {sum(p.numel() for p in missing):,} trained parameters. "
        "Use LoRA (16, for instance) or a smaller model."
    )


def _averages(p: Tensor) -> dict[str, Tensor]:
    return {
        "step": torch.zeros((), dtype=torch.float32, device=p.device),
        "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
        "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
    }


def take_step(optimizer: torch.optim.AdamW) -> None:
    """optimizer.step(). If memory runs out, weight by weight, which needs less.

    Averages and gradients exist already, so only the loading of a kernel, at its first launch, can
    ask for memory. At that moment no weight of the group has moved, but AdamW may have counted the
    step already.
    """
    groups = optimizer.param_groups
    try:
        for group in groups:  # one at a time: a group that has moved is not moved again
            optimizer.param_groups = [group]
            _take_step(optimizer, group)
    finally:
        optimizer.param_groups = groups


def _take_step(optimizer: torch.optim.AdamW, group: dict[str, Any]) -> None:
    states: list[Mapping[str, Tensor]] = [
        optimizer.state[p] for p in group["params"] if p in optimizer.state
    ]
    counted = torch.stack([s["step"] for s in states]) if states else torch.zeros(0)
    try:
        optimizer.step()
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside the handler: the traceback would keep the failed step's tensors alive.
    release_memory()
    log.warning("Out of memory in the optimiser's step: it moves one weight after another.")
    for state, count in zip(states, counted, strict=True):
        state["step"].copy_(count)
    together = {name: group[name] for name in ("fused", "foreach")}
    group.update(fused=False, foreach=False)
    try:
        optimizer.step()
    finally:
        group.update(together)
