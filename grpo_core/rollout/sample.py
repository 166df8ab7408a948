"""Sample groups: each prompt is read once, its cache is expanded to the group, finished rows leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_core.learner.logprobs import forward, positions
from grpo_core.policy import Policy


@dataclass(frozen=True, slots=True)
class Sampled:
    """The ids of one completion, its end token included; finish_reason "stop" or "length"."""

    token_ids: list[int]
    finish_reason: str
    logprobs: list[float] | None = None  # of each token as it was drawn, in nats, when asked for


@torch.inference_mode()
def sample_groups(policy: Policy, prompts: Sequence[Sequence[int]], group_size: int, max_new_tokens: int, temperature: float,
                  generator: torch.Generator, breathe: Callable[[], None] = lambda: None, keep_logprobs: bool = False) -> list[Sampled]:
    """Draw `group_size` completions of each of P prompts; row p·G + g is completion g of prompt p.

    Tokens are drawn by the Gumbel-max trick, argmax(logits/T - log(-log u)), from `generator` alone: the process's own random
    state is neither read nor moved. `breathe` is called before each token and may raise to abandon.
    """
    model, device = policy.model, policy.device
    longest = max(map(len, prompts))
    ids = torch.tensor([[policy.pad_id] * (longest - len(p)) + list(p) for p in prompts], device=device)  # (P, L)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    out = forward(model, input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=True, logits_to_keep=1)

    cache = out.past_key_values
    cache.batch_repeat_interleave(group_size)
    logits = out.logits[:, -1].repeat_interleave(group_size, 0)  # (B, V)
    mask = mask.repeat_interleave(group_size, 0)
    place = mask.sum(1, keepdim=True)  # (B, 1): position of the next token

    num_rows = len(prompts) * group_size
    tokens = torch.full((num_rows, max_new_tokens), policy.pad_id, device=device)
    logprobs = torch.zeros((num_rows, max_new_tokens) if keep_logprobs else (num_rows, 0), device=device)
    lengths = torch.full((num_rows,), max_new_tokens, device=device)
    ended = torch.zeros(num_rows, dtype=torch.bool, device=device)
    alive = torch.arange(num_rows, device=device)  # which row of the whole each row of the batch is
    end_ids = torch.tensor(sorted(policy.end_ids), device=device)
    for t in range(max_new_tokens):
        breathe()
        token = _draw(logits, temperature, generator)  # (b,)
        tokens[alive, t] = token
        if keep_logprobs:
            logprobs[alive, t] = (logits.float() / temperature).log_softmax(-1).gather(1, token[:, None]).squeeze(1)
        stops = torch.isin(token, end_ids)
        done = alive[stops & ~ended[alive]]
        lengths[done] = t + 1
        ended[done] = True
        if t + 1 == max_new_tokens or bool(ended.all()):
            break
        going = ~ended[alive]
        if 4 * int(going.sum()) <= 3 * len(alive):  # moving the cache costs about one token's work: wait until it pays
            keep = going.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            alive, token, mask, place = alive[keep], token[keep], mask[keep], place[keep]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        logits = forward(model, input_ids=token[:, None], attention_mask=mask, position_ids=place, past_key_values=cache,
                         use_cache=True, logits_to_keep=1).logits[:, -1]
        place = place + 1
    return [Sampled(row[:n], "stop" if e else "length", kept[:n] if keep_logprobs else None)
            for row, n, e, kept in zip(tokens.tolist(), lengths.tolist(), ended.tolist(), logprobs.tolist(), strict=True)]


def _draw(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One token a row from softmax(logits / temperature): argmax of the scaled logits plus Gumbel noise."""
    noise = torch.empty_like(logits, dtype=torch.float32).exponential_(generator=generator)  # -log u
    return (logits.float() / temperature - noise.log()).argmax(-1)
