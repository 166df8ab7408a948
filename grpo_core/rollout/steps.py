"""One token for every row of a decode batch: the step, and its replay as a CUDA graph.

A graph is one launch where the step itself is hundreds. It holds the draw too, so the host waits
for no token: it launches replays, and looks now and then at which rows have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from grpo_core.models import Policy
from grpo_core.models.device import is_out_of_memory
from grpo_core.models.once import say_once
from grpo_core.models.products import one_core_below
from grpo_core.rollout.decoders import Decoder, FixedDecoder
from grpo_core.rollout.draw import Rows

UNRECORDED = "grpo_studio_unrecorded"  # on a model whose steps could not be recorded
# A replay may differ from the step itself by the rounding of its dtype, since other kernels may
# compute it. This share of its numbers must be within so many roundings of their size. A step that
# reads a wrong buffer is off by about the size itself.
WITHIN, ROUNDINGS = 0.99, 8
TF32_EPS = 2.0**-10
DRAW_COST = 64  # drawing from one logit takes as long as so many multiplications of a product

Step = Callable[[], None]


def _cuda_graph(step: Step) -> Step:
    graph = torch.cuda.CUDAGraph()
    # thread_local: the playground may sample in another thread.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph.replay


# What makes a replay of a step, by kind of device. Elsewhere steps are computed plainly.
CAPTURE: dict[str, Callable[[Step], Step]] = {"cuda": _cuda_graph}


def decode_step(decoder: Decoder, rows: Rows) -> None:
    """Read the rows' last tokens and draw the next ones. Every result stays on the device."""
    logits = decoder.step(rows.last)
    with one_core_below(DRAW_COST * logits.numel()):
        rows.draw(logits)


def records(policy: Policy) -> bool:
    """Whether this model's steps are to be recorded, and so need fixed shapes."""
    return policy.device.type in CAPTURE and not hasattr(policy.model, UNRECORDED)


def step_taker(model: nn.Module, decoder: Decoder, rows: Rows) -> Step:
    """A function that decodes one token of every row. Make a new one after rows have left."""
    if decoder.is_fixed:
        return RecordedSteps(model, cast("FixedDecoder", decoder), rows)
    return lambda: decode_step(decoder, rows)


class RecordedSteps:
    """Steps of fixed shapes. The first is computed, recorded and compared with its replay.

    If they differ, or recording fails, this model's steps are computed from then on.
    """

    def __init__(self, model: nn.Module, decoder: FixedDecoder, rows: Rows):
        self._model, self._decoder, self._rows = model, decoder, rows
        # Not a method of its own, such as _plainly: a cycle would keep the caches alive.
        self._replay: Step | None = None

    def __call__(self) -> None:
        if self._replay is not None:
            self._replay()
        elif hasattr(self._model, UNRECORDED):
            self._plainly()
        else:
            self._record()

    def _plainly(self) -> None:
        decode_step(self._decoder, self._rows)

    def _record(self) -> None:
        decoder, rows = self._decoder, self._rows
        changing = [*decoder.changing(), *rows.changing()]
        before = [t.clone() for t in changing]
        self._plainly()
        states, top = decoder.states, rows.top
        capture = CAPTURE[rows.last.device.type]
        try:
            replay = capture(self._plainly)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._give_up(f"cannot be recorded ({str(error).splitlines()[0]})")
            return
        _restore(changing, before)
        replay()
        if agree(decoder.states, states) and agree(rows.top, top, states.dtype):
            self._replay = replay
            return
        self._give_up("give other numbers when they are replayed")
        _restore(changing, before)
        self._plainly()

    def _give_up(self, problem: str) -> None:
        setattr(self._model, UNRECORDED, True)
        say_once(self._model, f"Decoding steps {problem}. They are computed plainly, more slowly.")


def _restore(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def agree(found: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether two results of the same computation in `dtype`, by default theirs, agree.

    Nearly all differences must be within some roundings of the results' size; nan never is. One
    number that rounds far off decides nothing.
    """
    dtype = dtype or expected.dtype
    # On a GPU float32 products use TF32.
    tf32 = expected.is_cuda and dtype == torch.float32
    rounding = TF32_EPS if tf32 else torch.finfo(dtype).eps
    found, expected = found.double(), expected.double()
    size = expected.square().mean().sqrt()
    within = (found - expected).abs() <= ROUNDINGS * rounding * size
    return bool(within.double().mean() >= WITHIN)
