"""Train a reward model: a sequence classifier with one label, by the loss of Bradley and Terry.

The text it reads is the one that the criterion `reward_model` reads, by the same function.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpo_core.config import ModelConfig
from grpo_core.errors import StudioError
from grpo_core.models.classifier import load_classifier_base
from grpo_core.models.device import (
    describe_device,
    is_out_of_memory,
    pick_device,
    prepare_device,
    release_memory,
    share_cores,
)
from grpo_core.models.lora import add_adapters, merge_adapters
from grpo_core.models.precision import precision
from grpo_core.models.source import one_line
from grpo_core.preferences.bradley_terry import bradley_terry_loss, centre_loss
from grpo_core.preferences.judged_pairs import Pair, Split
from grpo_core.preferences.reward_report import PairReport, report
from grpo_core.preferences.reward_settings import RewardSettings
from grpo_core.rubric.reward_model import encode, logits_of, text_read

LARGE = 50_000_000  # parameters; from here on only adapters are trained, unless the settings say
LORA_RANK = 16
WARMUP = 0.1  # of the steps
LOOKS = 10  # measurements on held-out pairs, besides the first
MICRO_TOKENS = 16_384  # of one pass, so that memory does not grow with pairs per step
SCORE_BATCH = 32
CENTRE = 0.01  # weight of centre_loss


@dataclass(frozen=True, slots=True)
class Progress:
    """One optimiser step; step 0 is before the first. None: not measured at this step."""

    step: int
    num_steps: int
    loss: float | None  # mean over the pairs of the step
    heldout_accuracy: float | None = None
    heldout_loss: float | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained reward model with its measurements. Adapters are merged into it."""

    model: Any
    tokenizer: Any
    heldout: PairReport
    train: PairReport
    curve: tuple[Progress, ...]
    num_parameters: int
    lora_rank: int
    learning_rate: float
    device: str
    seconds: float
    was_stopped: bool


@dataclass(frozen=True, slots=True)
class _Job:
    """What the loop needs: the model, the texts of both sides, and how it is trained."""

    model: Any
    tokenizer: Any
    split: Split
    settings: RewardSettings
    learning_rate: float
    autocast: torch.dtype | None


def train_reward_model(
    split: Split,
    settings: RewardSettings,
    emit: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train on `split.train`, measure on `split.heldout`, and return the model.

    The same settings, pairs and machine give the same model. When should_stop() is true the
    training ends with the present weights, which are measured as usual. Raises StudioError.
    """
    started = time.monotonic()
    config, device = ModelConfig(name=settings.base, revision=settings.revision), pick_device()
    prepare_device(device)
    # Dropout and new adapters draw from the global generator.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        try:
            job, num_parameters, rank = _prepare(split, settings, config, device)
            curve, was_stopped = _train(job, emit, should_stop)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            release_memory()
            raise StudioError(
                f"base = {settings.base!r}: memory ran out while it was trained. "
                "Use LoRA (lora_rank = 16), fewer max tokens, or a smaller base."
            ) from None
    merge_adapters(job.model)
    job.model.to(precision(config, device)).eval().requires_grad_(False)
    heldout, train = (
        report(pairs, _differences(job, pairs)) for pairs in (split.heldout, split.train)
    )
    return Trained(
        job.model,
        job.tokenizer,
        heldout,
        train,
        tuple(curve),
        num_parameters,
        rank,
        job.learning_rate,
        describe_device(device),
        time.monotonic() - started,
        was_stopped,
    )


def _prepare(
    split: Split, settings: RewardSettings, config: ModelConfig, device: torch.device
) -> tuple[_Job, int, int]:
    """The job, the base's parameters, and the rank of its adapters (0: all weights are trained)."""
    dtype = precision(config, device)
    model, tokenizer = load_classifier_base(config, dtype, settings.seed, device)
    num_parameters = sum(p.numel() for p in model.parameters())
    share_cores(num_parameters)
    is_large = num_parameters >= LARGE
    rank = settings.lora_rank
    if rank is None:
        rank = LORA_RANK if is_large else 0
    if rank:
        head = [p for n, p in model.named_parameters() if not n.startswith(_body(model))]
        try:
            add_adapters(
                model, config.model_copy(update={"lora_rank": rank}), settings.seed, "SEQ_CLS"
            )
        except ValueError as error:  # of peft, about architectures for which it has no adapters
            raise StudioError(
                f"lora_rank = {rank}: {model.config.model_type} can have no adapters: "
                f"{one_line(error)}. Set it to 0, or name another base."
            ) from None
        for p in head:
            p.requires_grad_(True)
            p.data = p.data.float()
    else:
        model.float()  # bfloat16 would round small updates away
    rate = settings.learning_rate or (1e-4 if rank else 1e-5 if is_large else 5e-4)
    autocast = None if dtype == torch.float32 else dtype
    return _Job(model, tokenizer, split, settings, rate, autocast), num_parameters, rank


def _body(model: Any) -> str:
    return f"{model.base_model_prefix}."


def _train(
    job: _Job, emit: Callable[[Progress], None], should_stop: Callable[[], bool]
) -> tuple[list[Progress], bool]:
    """All steps. Returns the curve, and whether it was stopped before its end."""
    settings, pairs = job.settings, job.split.train
    steps_per_epoch = -(-len(pairs) // settings.batch_pairs)
    num_steps = settings.epochs * steps_per_epoch
    look_every = max(1, num_steps // LOOKS)
    trained = [p for p in job.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: _rate(k, num_steps))
    curve: list[Progress] = []

    def note(step: int, loss: float | None) -> None:
        found = None
        if step % look_every == 0 or step == num_steps:
            found = report(job.split.heldout, _differences(job, job.split.heldout))
        curve.append(
            Progress(step, num_steps, loss, found and found.accuracy, found and found.loss)
        )
        emit(curve[-1])

    note(0, None)
    for step, batch in enumerate(_batches(pairs, settings), start=1):
        if should_stop():
            return curve, True
        job.model.train()
        loss = _backward(job, batch)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        note(step, loss)
    return curve, False


def _rate(step: int, num_steps: int) -> float:
    """The share of the learning rate: up over WARMUP of the steps, then down to 0, linearly."""
    warmup = max(1, round(WARMUP * num_steps))
    return min((step + 1) / warmup, (num_steps - step) / max(1, num_steps - warmup + 1), 1.0)


def _batches(pairs: Sequence[Pair], settings: RewardSettings) -> Iterator[list[Pair]]:
    """The pairs of each step; every epoch has its own order."""
    rng = random.Random(settings.seed)
    for _ in range(settings.epochs):
        order = rng.sample(pairs, len(pairs))
        for start in range(0, len(order), settings.batch_pairs):
            yield order[start : start + settings.batch_pairs]


def _backward(job: _Job, batch: Sequence[Pair]) -> float:
    """Add up the gradient of the mean loss of a step, a few pairs at a time. Returns that loss."""
    total, start = 0.0, 0
    while start < len(batch):
        ids, size = _fitting(job, batch[start:])
        part, start = batch[start : start + size], start + size
        with _autocast(job):
            scores = job.model(**ids).logits[:, 0].float()  # (2·size,)
        is_tie = torch.tensor([p.is_tie for p in part], device=scores.device)
        margin = torch.tensor([p.margin * job.settings.margin for p in part], device=scores.device)
        losses = bradley_terry_loss(scores[:size], scores[size:], is_tie, margin)  # (size,)
        loss = losses.sum() / len(batch)
        centred = centre_loss(scores[:size], scores[size:]).sum() / len(batch)
        if not torch.isfinite(loss):
            raise StudioError("the loss became NaN or infinite. Lower the learning rate.")
        (loss + CENTRE * centred).backward()
        total += loss.item()
    return total


def _fitting(job: _Job, pairs: Sequence[Pair]) -> tuple[Any, int]:
    """Token ids of as many of the first pairs as fit in MICRO_TOKENS, and the number of pairs.

    The preferred texts come first, then the others: (2·size, T).
    """
    size = len(pairs)
    while True:
        some = pairs[:size]
        texts = _texts(job, some, "chosen") + _texts(job, some, "rejected")
        ids = encode(job.tokenizer, texts, job.settings.max_tokens)  # (2·size, T)
        if size == 1 or ids["input_ids"].numel() <= MICRO_TOKENS:
            return ids.to(job.model.device), size
        size = max(1, size // 2)


def _texts(job: _Job, pairs: Sequence[Pair], side: str) -> list[str]:
    return [text_read(job.tokenizer, p.prompt, getattr(p, side)) for p in pairs]


def _differences(job: _Job, pairs: Sequence[Pair]) -> list[float]:
    """r_chosen - r_rejected of each pair."""
    job.model.eval()
    texts = _texts(job, pairs, "chosen") + _texts(job, pairs, "rejected")
    with _autocast(job):
        rows = logits_of(job.model, job.tokenizer, texts, job.settings.max_tokens, SCORE_BATCH)
    scores: list[Tensor] = [row[0] for row in rows]
    return [(a - b).item() for a, b in zip(scores[: len(pairs)], scores[len(pairs) :], strict=True)]


def _autocast(job: _Job) -> contextlib.AbstractContextManager[Any]:
    if job.autocast is None:
        return contextlib.nullcontext()
    return torch.autocast(job.model.device.type, job.autocast)
