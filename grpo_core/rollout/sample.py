"""Sample groups: each prompt is read once for all of its completions, finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_core.policy import Policy
from grpo_core.rollout.decoders import decoder
from grpo_core.rollout.waves import waves


@dataclass(frozen=True, slots=True)
class Sampled:
    """The ids of one completion, its end token included; finish_reason "stop" or "length"."""

    token_ids: list[int]
    finish_reason: str
    logprobs: list[float] | None = None  # of each token as it was drawn, in nats, when asked for


@torch.inference_mode()
def sample_groups(policy: Policy, prompts: Sequence[Sequence[int]], group_size: int, max_new_tokens: int, temperature: float,
                  generator: torch.Generator, breathe: Callable[[], None] = lambda: None, keep_logprobs: bool = False) -> list[Sampled]:
    """Draw `group_size` completions of each of P prompts; row p·G + g is completion g of prompt p. Temperature 0: the likeliest token.

    Every row has its own random numbers, all from `generator`, so what it draws depends neither on its neighbours nor on when these end:
    the process's own random state is neither read nor moved. `breathe` is called before each token and may raise to abandon.
    """
    # One number a token, and in float64: 24 bits would never draw a token of probability 1e-8.
    chances = torch.rand(len(prompts), group_size, max_new_tokens, generator=generator, device=policy.device, dtype=torch.float64)
    sampled: list[list[Sampled]] = [[]] * len(prompts)
    for wave in waves(policy, prompts, group_size, max_new_tokens):
        rows = _decode(policy, [prompts[p] for p in wave], group_size, temperature, chances[wave].flatten(0, 1), breathe, keep_logprobs)
        for i, p in enumerate(wave):
            sampled[p] = rows[i * group_size : (i + 1) * group_size]
    return [s for group in sampled for s in group]


def _decode(policy: Policy, prompts: Sequence[Sequence[int]], group_size: int, temperature: float, chances: Tensor, breathe: Callable[[], None],
            keep_logprobs: bool) -> list[Sampled]:
    """The completions of prompts that fit memory together. chances (B, T), one for each token that may be drawn."""
    device, (num_rows, max_new_tokens) = policy.device, chances.shape
    model = decoder(policy)
    breathe()
    logits = model.read(prompts, group_size, max_new_tokens)  # (B, V)

    tokens = torch.full((num_rows, max_new_tokens), policy.pad_id, device=device)
    logprobs = torch.zeros((num_rows, max_new_tokens) if keep_logprobs else (num_rows, 0), device=device)
    lengths = torch.full((num_rows,), max_new_tokens, device=device)
    ended = torch.zeros(num_rows, dtype=torch.bool, device=device)
    alive = torch.arange(num_rows, device=device)  # which row of the whole each row of the batch is
    end_ids = torch.tensor(sorted(policy.end_ids), device=device)
    for t in range(max_new_tokens):
        breathe()
        token, logprob = _draw(logits, temperature, chances[alive, t], keep_logprobs)
        tokens[alive, t] = token
        if keep_logprobs:
            logprobs[alive, t] = logprob.float()
        done = alive[torch.isin(token, end_ids) & ~ended[alive]]
        lengths[done] = t + 1
        ended[done] = True
        if t + 1 == max_new_tokens:
            break
        going = ~ended[alive]
        num_going = int(going.sum())
        if not num_going:
            break
        if 4 * num_going <= 3 * len(alive):  # moving the cache costs about one token's work: wait until it pays
            rows = going.nonzero().squeeze(1)
            model.keep(rows)
            alive, token = alive[rows], token[rows]
        logits = model.step(token)
    return [Sampled(row[:n], "stop" if e else "length", kept[:n] if keep_logprobs else None)
            for row, n, e, kept in zip(tokens.tolist(), lengths.tolist(), ended.tolist(), logprobs.tolist(), strict=True)]


def _draw(logits: Tensor, temperature: float, chance: Tensor, keep_logprobs: bool) -> tuple[Tensor, Tensor | None]:
    """One token a row from softmax(logits / temperature), and its log-probability.

    The token at which the cumulative distribution passes u·(its end), u uniform in [0, 1).
    """
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1:
        scaled = scaled / temperature if temperature else scaled
    probabilities = scaled.softmax(-1)  # (b, V)
    if temperature:
        passed = probabilities.cumsum(-1, dtype=torch.float64)
        token = torch.searchsorted(passed, chance[:, None] * passed[:, -1:], right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
    else:
        token = scaled.argmax(-1)
    return token, probabilities.gather(1, token[:, None]).squeeze(1).log() if keep_logprobs else None
