"""Sample groups: read each prompt once for all of its completions; drop finished rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.models import Policy
from grpo_core.models.device import is_out_of_memory, release_memory
from grpo_core.models.token_ids import FITTING, beyond_table, num_embeddings
from grpo_core.models.weights import first_not_finite
from grpo_core.rollout.decode_batches import decode_batches
from grpo_core.rollout.decoders import decoder
from grpo_core.types import Completion, Rollout

log = logging.getLogger("grpo_studio")

# Tokens between two looks at which rows have ended. On a GPU each look waits for the device; rows
# that have ended meanwhile sample on, and what they sample is dropped.
LOOK_EVERY = {"cpu": 1, "cuda": 8}

# Called with the index of a prompt and all of its completions, as soon as the last one has ended.
OnGroupDone = Callable[[int, list[Rollout]], None]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How completions are sampled. temperature 0: always the likeliest token."""

    group_size: int  # G
    max_new_tokens: int  # T
    temperature: float
    keep_logprobs: bool = False


@dataclass(frozen=True, slots=True)
class SamplingHooks:
    """Called while sampling. `check_interrupt`, before each token, may raise to end it."""

    check_interrupt: Callable[[], None] = lambda: None
    on_group_done: OnGroupDone | None = None


@torch.inference_mode()
def sample_groups(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    generator: torch.Generator,
    hooks: SamplingHooks = SamplingHooks(),
) -> list[Rollout]:
    """Sample G completions of each of P prompts; row p·G + g is completion g of prompt p.

    Every row has its own random numbers, all from `generator`. So a row depends neither on its
    neighbours nor on when they end, and the process's own random state is neither read nor moved.
    Raises InvalidConfig for a prompt with ids that the model's embedding table lacks, and
    StudioError if a logit is not finite.
    """
    _check_ids(policy, prompts)
    size = params.group_size
    # One number a token, in float64: 24 bits would never draw a token of probability 1e-8.
    uniforms = torch.rand(
        len(prompts),
        size,
        params.max_new_tokens,
        generator=generator,
        device=policy.device,
        dtype=torch.float64,
    )
    groups: dict[int, list[Rollout]] = {}
    waiting = [*decode_batches(policy, prompts, size, params.max_new_tokens)]
    while waiting:
        members = waiting.pop(0)
        batch = _DecodeBatch(policy, [prompts[p] for p in members], params)
        done = _for_members(hooks.on_group_done, members)
        try:
            batch.decode(uniforms[members].flatten(0, 1), hooks.check_interrupt, done)
        except (RuntimeError, MemoryError) as error:
            # Groups that were reported stay as they are; rows draw the same tokens again.
            groups |= {members[i]: siblings for i, siblings in batch.reported.items()}
            left = [p for p in members if p not in groups]
            if not is_out_of_memory(error) or len(left) < 2:
                raise
            waiting = [left[: len(left) // 2], left[len(left) // 2 :], *waiting]
        else:
            groups |= zip(members, batch.groups(), strict=True)
            continue
        # Outside the handler: the traceback would keep the failed batch's tensors alive.
        del batch
        log.warning("Out of memory: sampling %d prompts at once.", len(waiting[0]))
        release_memory()
    return [rollout for p in range(len(prompts)) for rollout in groups[p]]


def _check_ids(policy: Policy, prompts: Sequence[Sequence[int]]) -> None:
    highest = max((max(ids, default=0) for ids in prompts), default=0)
    if highest >= num_embeddings(policy.model):
        problem = beyond_table(policy.model, policy.tokenizer, highest)
        name = policy.tokenizer.name_or_path
        raise InvalidConfig([FieldProblem("model.name", name, problem, FITTING)])


def _not_finite(policy: Policy) -> StudioError:
    """What is said where a model gives logits from which nothing can be drawn."""
    if weight := first_not_finite(policy.model):
        cause = f"The first weight that is not finite is {weight}. Load the model again, or lower"
    elif policy.model.dtype == torch.float32:
        cause = "All weights are finite, so the model overflows. Lower"
    else:
        cause = (
            "All weights are finite, so the model overflows. Set model.dtype to float32, or lower"
        )
    return StudioError(f"The model's logits are not finite. {cause} the learning rate.")


def _for_members(report: OnGroupDone | None, members: list[int]) -> OnGroupDone | None:
    """`report` for a decode batch: called with the index among its prompts, not among all."""
    if report is None:
        return None
    return lambda i, siblings: report(members[i], siblings)


class _DecodeBatch:
    """The B rows of prompts that are decoded together, and what each has written so far."""

    def __init__(
        self, policy: Policy, prompts: Sequence[Sequence[int]], params: SamplingParams
    ) -> None:
        self.policy, self.prompts, self.params = policy, prompts, params
        num_rows, length, device = (
            len(prompts) * params.group_size,
            params.max_new_tokens,
            policy.device,
        )
        self.tokens = torch.full((num_rows, length), policy.pad_id, device=device)  # (B, T)
        kept_length = length if params.keep_logprobs else 0
        self.logprobs = torch.zeros((num_rows, kept_length), device=device)
        self.lengths = torch.full((num_rows,), length, device=device)
        self.ended = torch.zeros(num_rows, dtype=torch.bool, device=device)
        self.end_ids = torch.tensor(sorted(policy.end_ids), device=device)
        self.reported: dict[int, list[Rollout]] = {}  # groups that `done` was called with

    def decode(
        self, uniforms: Tensor, check_interrupt: Callable[[], None], done: OnGroupDone | None
    ) -> None:
        """Sample until every row has ended or is full. uniforms (B, T), one for each token.

        done: called with each group as soon as its last row has ended.
        """
        params, device = self.params, self.policy.device
        look_every = LOOK_EVERY.get(device.type, 8)
        model = decoder(self.policy)
        check_interrupt()
        logits = model.read(self.prompts, params.group_size, params.max_new_tokens)  # (B, V)
        alive = torch.arange(len(self.tokens), device=device)  # the row of each row still decoded
        finite = torch.ones((), dtype=torch.bool, device=device)
        for t in range(params.max_new_tokens):
            check_interrupt()
            token, logprob, top = _draw(
                logits, params.temperature, uniforms[alive, t], params.keep_logprobs
            )
            finite &= top.isfinite().all()
            self._write(t, alive, token, logprob)
            if t + 1 == params.max_new_tokens:
                break
            if (t + 1) % look_every == 0:
                if done is not None:
                    self._report_ended(done)
                going = ~self.ended[alive]
                num_going = int(going.sum())
                if not num_going:
                    break
                if num_going <= model.moves_at * len(alive):
                    rows = going.nonzero().squeeze(1)
                    model.keep(rows)
                    alive, token = alive[rows], token[rows]
            logits = model.step(token)
        if not finite:  # read once, because reading it at each token would wait for the GPU
            raise _not_finite(self.policy)
        if done is not None:
            self._report_ended(done, is_over=True)

    def _write(self, t: int, alive: Tensor, token: Tensor, logprob: Tensor | None) -> None:
        """Note the tokens of step t, and which rows have ended with them; never waits for a GPU."""
        self.tokens[alive, t] = token
        if logprob is not None:
            self.logprobs[alive, t] = logprob.float()
        before = self.ended[alive]
        newly_ended = torch.isin(token, self.end_ids) & ~before
        self.lengths[alive] = torch.where(newly_ended, t + 1, self.lengths[alive])
        self.ended[alive] = before | newly_ended

    def _report_ended(self, done: OnGroupDone, is_over: bool = False) -> None:
        """Call `done` with each group, once: as soon as all its rows have ended, or if is_over."""
        have_ended = self.ended.view(-1, self.params.group_size).all(1).tolist()
        for p, has_ended in enumerate(have_ended):
            if p not in self.reported and (has_ended or is_over):
                self.reported[p] = self._rollouts(p)
                done(p, self.reported[p])

    def groups(self) -> list[list[Rollout]]:
        """The completions of every prompt, as text too."""
        return [self.reported.get(p) or self._rollouts(p) for p in range(len(self.prompts))]

    def _rollouts(self, p: int) -> list[Rollout]:
        """The completions of one prompt, as text too."""
        size, prompt_ids = self.params.group_size, self.prompts[p]
        rows = slice(p * size, (p + 1) * size)
        columns = (self.tokens, self.lengths, self.ended, self.logprobs)
        opening = self.policy.opening(prompt_ids)
        rollouts = []
        for ids, length, ended, logprobs in zip(*(c[rows].tolist() for c in columns), strict=True):
            ids = ids[:length]
            reason = "stop" if ended else "length"
            rollouts.append(
                Rollout(
                    Completion(opening + self.policy.decode(ids), reason, length),
                    prompt_ids=prompt_ids,
                    completion_ids=ids,
                    sampling_logprobs=logprobs[:length] if self.params.keep_logprobs else None,
                )
            )
        return rollouts


def _draw(
    logits: Tensor, temperature: float, uniform: Tensor, keep_logprobs: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """One token a row from softmax(logits / temperature), and its log-probability. logits (b, V).

    Also returns the largest logits (b,): they are not finite if any logit is nan or inf.

    The token is the first at which the cumulative distribution exceeds `uniform` in [0, 1). It is
    found in two steps, first the block of the vocabulary, then the token in the block, so that the
    whole vocabulary is summed but never accumulated.
    """
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if not temperature:
        token = scaled.argmax(-1)
        top = scaled.gather(1, token[:, None])
        if not keep_logprobs:
            return token, None, top
        return token, scaled.log_softmax(-1).gather(1, token[:, None]).squeeze(1), top
    # In place, e^(logit - the largest): nobody else uses these logits, and a second tensor of
    # their size is slow to allocate.
    if temperature != 1:
        scaled.div_(temperature)
    top = scaled.amax(-1, keepdim=True)
    weights = scaled.sub_(top).exp_()
    token, total = _invert_cdf(weights, uniform)
    if not keep_logprobs:
        return token, None, top
    return token, (weights.gather(1, token[:, None]).squeeze(1) / total).log(), top


BLOCK = 256  # tokens of the vocabulary that are summed together


def _invert_cdf(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Where the running sum of weights first exceeds uniform times the total, and the total.

    weights (b, V), uniform (b,) in [0, 1). Returns (b,) and (b,).
    """
    num_rows, size = weights.shape
    full = size - size % BLOCK
    if full == size:
        sums = weights.view(num_rows, -1, BLOCK).sum(-1)
    else:
        blocks = weights[:, :full].unflatten(1, (-1, BLOCK)).sum(-1)
        sums = torch.cat([blocks, weights[:, full:].sum(-1, keepdim=True)], 1)
    ends = sums.double().cumsum(-1)  # (b, number of blocks)
    target = uniform[:, None] * ends[:, -1:]
    block = torch.searchsorted(ends, target, right=True).clamp(max=ends.shape[1] - 1)  # (b, 1)
    ids = block * BLOCK + torch.arange(BLOCK, device=weights.device)  # (b, 256)
    inside = torch.where(ids < size, weights.gather(1, ids.clamp(max=size - 1)), 0.0)
    inside = inside.double().cumsum(-1)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    # Rounding may leave the target just beyond the block's own sum: then take its last token.
    rest = (target - before).clamp(max=inside[:, -1:] * (1 - 1e-12))
    column = torch.searchsorted(inside, rest, right=True).clamp(max=BLOCK - 1)
    # Sums that are not finite lead anywhere, also beyond the last token.
    return ids.gather(1, column).squeeze(1).clamp(max=size - 1), ends[:, -1]
