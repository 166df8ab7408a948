"""Sample groups: each prompt is read once for all of its completions, finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_core.models import Policy
from grpo_core.rollout.decode_batches import decode_batches
from grpo_core.rollout.decoders import decoder


@dataclass(frozen=True, slots=True)
class Sampled:
    """The ids of one completion, its end token included; finish_reason "stop" or "length"."""

    token_ids: list[int]
    finish_reason: str
    logprobs: list[float] | None = None  # of each token as it was drawn, in nats, when asked for


OnGroupDone = Callable[[int, list[Sampled]], None]  # prompt p, all of its completions


@torch.inference_mode()
def sample_groups(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator,
    check_interrupt: Callable[[], None] = lambda: None,
    keep_logprobs: bool = False,
    whole: OnGroupDone | None = None,
) -> list[Sampled]:
    """Draw `group_size` completions of each of P prompts; row p·G + g is completion g of prompt p. Temperature 0: the likeliest token.

    Every row has its own random numbers, all from `generator`, so what it draws depends neither on its neighbours nor on when these end:
    the process's own random state is neither read nor moved. `check_interrupt` is called before each token and may raise to abandon; `whole` when
    the last completion of a prompt has ended.
    """
    # One number a token, and in float64: 24 bits would never draw a token of probability 1e-8.
    chances = torch.rand(
        len(prompts),
        group_size,
        max_new_tokens,
        generator=generator,
        device=policy.device,
        dtype=torch.float64,
    )
    sampled: list[list[Sampled]] = [[]] * len(prompts)
    for wave in decode_batches(policy, prompts, group_size, max_new_tokens):
        rows = _decode(
            policy,
            [prompts[p] for p in wave],
            group_size,
            temperature,
            chances[wave].flatten(0, 1),
            check_interrupt,
            keep_logprobs,
            (lambda i, siblings, wave=wave: whole(wave[i], siblings)) if whole else None,
        )
        for i, p in enumerate(wave):
            sampled[p] = rows[i * group_size : (i + 1) * group_size]
    return [s for group in sampled for s in group]


def _decode(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    group_size: int,
    temperature: float,
    chances: Tensor,
    check_interrupt: Callable[[], None],
    keep_logprobs: bool,
    whole: OnGroupDone | None,
) -> list[Sampled]:
    """The completions of prompts that fit memory together. chances (B, T), one for each token that may be drawn; `whole` counts these prompts alone."""
    device, (num_rows, max_new_tokens) = policy.device, chances.shape
    model = decoder(policy)
    check_interrupt()
    logits = model.read(prompts, group_size, max_new_tokens)  # (B, V)

    tokens = torch.full((num_rows, max_new_tokens), policy.pad_id, device=device)
    logprobs = torch.zeros(
        (num_rows, max_new_tokens) if keep_logprobs else (num_rows, 0), device=device
    )
    lengths = torch.full((num_rows,), max_new_tokens, device=device)
    ended = torch.zeros(num_rows, dtype=torch.bool, device=device)
    alive = torch.arange(num_rows, device=device)  # which row of the whole each row of the batch is
    end_ids = torch.tensor(sorted(policy.end_ids), device=device)
    going_on = [group_size] * len(prompts)

    def drawn(rows: slice) -> list[Sampled]:
        return [
            Sampled(row[:n], "stop" if e else "length", kept[:n] if keep_logprobs else None)
            for row, n, e, kept in zip(
                *(t[rows].tolist() for t in (tokens, lengths, ended, logprobs)), strict=True
            )
        ]

    for t in range(max_new_tokens):
        check_interrupt()
        token, logprob = _draw(logits, temperature, chances[alive, t], keep_logprobs)
        tokens[alive, t] = token
        if keep_logprobs:
            logprobs[alive, t] = logprob.float()
        done = alive[torch.isin(token, end_ids) & ~ended[alive]]
        lengths[done] = t + 1
        ended[done] = True
        if whole is not None:
            for row in done.tolist():
                p = row // group_size
                going_on[p] -= 1
                if not going_on[p]:
                    whole(p, drawn(slice(p * group_size, (p + 1) * group_size)))
        if t + 1 == max_new_tokens:
            break
        going = ~ended[alive]
        num_going = int(going.sum())
        if not num_going:
            break
        if num_going <= model.moves_at * len(alive):
            rows = going.nonzero().squeeze(1)
            model.keep(rows)
            alive, token = alive[rows], token[rows]
        logits = model.step(token)
    sampled = drawn(slice(None))
    if whole is not None:
        for p in (p for p, n in enumerate(going_on) if n):
            whole(p, sampled[p * group_size : (p + 1) * group_size])
    return sampled


def _draw(
    logits: Tensor, temperature: float, chance: Tensor, keep_logprobs: bool
) -> tuple[Tensor, Tensor | None]:
    """One token a row from softmax(logits / temperature), and its log-probability.

    The token at which the cumulative distribution passes u·(its end), u uniform in [0, 1), found in two steps: in which stretch of the
    vocabulary, then where in that stretch. The whole vocabulary is then only summed up and never accumulated.
    """
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if not temperature:
        token = scaled.argmax(-1)
        return token, scaled.log_softmax(-1).gather(1, token[:, None]).squeeze(
            1
        ) if keep_logprobs else None
    # In place, e^(logit - the largest): the logits are nobody else's, and memory as large as they are is slow to come by.
    weights = (
        (scaled if temperature == 1 else scaled.div_(temperature))
        .sub_(scaled.amax(-1, keepdim=True))
        .exp_()
    )
    token, total = _passes(weights, chance)
    return token, (
        weights.gather(1, token[:, None]).squeeze(1) / total
    ).log() if keep_logprobs else None


STRETCH = 256


def _passes(weights: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """weights (b, V), chance (b,) in [0, 1) -> where their running sum first exceeds chance times the whole, and the whole, (b,) each."""
    num_rows, size = weights.shape
    whole = size - size % STRETCH
    sums = (
        weights[:, :whole].view(num_rows, -1, STRETCH).sum(-1)
        if whole == size
        else torch.cat(
            [
                weights[:, :whole].unflatten(1, (-1, STRETCH)).sum(-1),
                weights[:, whole:].sum(-1, keepdim=True),
            ],
            1,
        )
    )
    ends = sums.double().cumsum(-1)  # (b, V/256)
    target = chance[:, None] * ends[:, -1:]
    which = torch.searchsorted(ends, target, right=True).clamp(max=ends.shape[1] - 1)  # (b, 1)
    places = which * STRETCH + torch.arange(STRETCH, device=weights.device)  # (b, 256)
    inside = (
        torch.where(places < size, weights.gather(1, places.clamp(max=size - 1)), 0.0)
        .double()
        .cumsum(-1)
    )
    # Rounding may leave the target just beyond the stretch's own sum: then its last token that can be drawn is meant.
    before = torch.where(which > 0, ends.gather(1, (which - 1).clamp(min=0)), 0.0)
    rest = (target - before).clamp(max=inside[:, -1:] * (1 - 1e-12))
    return places.gather(
        1, torch.searchsorted(inside, rest, right=True).clamp(max=STRETCH - 1)
    ).squeeze(1), ends[:, -1]
