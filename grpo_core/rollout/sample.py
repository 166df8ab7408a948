"""Sample groups: read each prompt once for all of its completions; drop finished rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import cast

import torch
from torch import Tensor

from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.models import Policy
from grpo_core.models.device import is_out_of_memory, release_memory
from grpo_core.models.merged_adapters import adapters_merged
from grpo_core.models.token_ids import FITTING, beyond_table, num_embeddings
from grpo_core.models.weights import first_not_finite
from grpo_core.rollout.decode_batches import decode_batches
from grpo_core.rollout.decoders import Decoder, FixedDecoder, decoder
from grpo_core.rollout.draw import Rows
from grpo_core.rollout.steps import records, step_taker
from grpo_core.rollout.stop_text import StopText
from grpo_core.types import Completion, Rollout

log = logging.getLogger("grpo_studio")

# Tokens between two looks at which rows have ended. On a GPU each look waits for the device; rows
# that have ended meanwhile sample on, and what they sample is dropped.
LOOK_EVERY = {"cpu": 1, "cuda": 8}

# Where random numbers come from: one generator for all prompts in turn, or one for each of them.
Draws = torch.Generator | Sequence[torch.Generator]
# Called with the index of a prompt and all of its completions, as soon as the last one has ended.
OnGroupDone = Callable[[int, list[Rollout]], None]
# Called at each look at a decode batch, with a function that reads what its rows have written:
# row p·G + g -> a completion without finish reason. Rows of other batches are not among them.
OnLook = Callable[[Callable[[], dict[int, Completion]]], None]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How completions are sampled. temperature 0: always the likeliest token.

    stop: a completion also ends with the first token after which its text holds this; "": none.
    """

    group_size: int  # G
    max_new_tokens: int  # T
    temperature: float
    keep_logprobs: bool = False
    stop: str = ""


@dataclass(frozen=True, slots=True)
class SamplingHooks:
    """Called while sampling. `check_interrupt`, before each token, may raise to end it.

    on_calls: as on_look, when tools are about to be called, which may take long.
    """

    check_interrupt: Callable[[], None] = lambda: None
    on_group_done: OnGroupDone | None = None
    on_look: OnLook | None = None
    on_calls: OnLook | None = None


def sample_groups(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    draws: Draws,
    hooks: SamplingHooks = SamplingHooks(),
) -> list[Rollout]:
    """Sample G completions of each of P prompts; row p·G + g is completion g of prompt p.

    Every row has its own random numbers, all from `draws`. So a row depends neither on its
    neighbours nor on when they end, and the process's own random state is neither read nor moved.
    Raises InvalidConfig for a prompt with ids that the model's embedding table lacks, and
    StudioError if a logit is not finite.
    """
    uniforms = random_numbers(len(prompts), params, draws)
    with sampling(policy, uniforms.numel()):
        return sample_with(policy, prompts, params, uniforms, hooks)


def random_numbers(num_prompts: int, params: SamplingParams, draws: Draws) -> Tensor:
    """One number in [0, 1) for every token that may be drawn, (P, G, T).

    In float64: 24 bits would never draw a token of probability 1e-8.
    """
    generators = [draws] * num_prompts if isinstance(draws, torch.Generator) else draws
    size = (params.group_size, params.max_new_tokens)
    of_prompts = [
        torch.rand(size, generator=g, device=g.device, dtype=torch.float64)
        for g, _ in zip(generators, range(num_prompts), strict=True)
    ]
    return torch.stack(of_prompts)


@contextmanager
def sampling(policy: Policy, num_tokens: int) -> Iterator[None]:
    """Within it `sample_with` can be called, for so many tokens in all.

    Raises StudioError if a logit is not finite.
    """
    try:
        with adapters_merged(policy.model, num_tokens), torch.inference_mode():
            yield
    except _NotFinite:
        # Now the adapters are apart again: merged, a broken one would break the weight below it.
        raise _not_finite(policy) from None


class _NotFinite(ArithmeticError):
    """Nothing can be drawn from the model's logits."""


def sample_with(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    uniforms: Tensor,
    hooks: SamplingHooks = SamplingHooks(),
    limits: Sequence[int] | None = None,
) -> list[Rollout]:
    """`sample_groups` with given random numbers (P, G, T), in decode batches.

    limits: tokens of each prompt's completions at most; None: max_new_tokens. A batch that runs out
    of memory goes on with half as many prompts at once.
    """
    check_ids(policy, prompts)
    size = params.group_size
    groups: dict[int, list[Rollout]] = {}
    waiting = [*decode_batches(policy, prompts, size, params.max_new_tokens)]
    while waiting:
        members, at_once = waiting.pop(0)
        most = limits and [limits[p] for p in members]
        batch = DecodeBatch(policy, [prompts[p] for p in members], params, uniforms[members], most)
        done = _for_members(hooks.on_group_done, members)
        look = _looks_at_members(hooks.on_look, members, size)
        try:
            batch.decode(replace(hooks, on_group_done=done, on_look=look), at_once=at_once)
        except (RuntimeError, MemoryError) as error:
            # Groups that were reported stay as they are; rows draw the same tokens again.
            groups |= {members[i]: siblings for i, siblings in batch.reported.items()}
            left = [p for p in members if p not in groups]
            at_once = min(at_once, len(left))
            if not is_out_of_memory(error) or at_once < 2:
                raise
            at_once = (at_once + 1) // 2
            waiting.insert(0, (left, at_once))
        else:
            groups |= {members[i]: siblings for i, siblings in batch.groups().items()}
            if left := [p for p in members if p not in groups]:
                waiting.insert(0, (left, min(at_once, len(left))))
            continue
        # Outside the handler: the traceback would keep the failed batch's tensors alive.
        del batch
        log.warning("Out of memory: sampling %d prompts at once.", at_once)
        release_memory()
    return [rollout for p in range(len(prompts)) for rollout in groups[p]]


def check_ids(policy: Policy, prompts: Sequence[Sequence[int]]) -> None:
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


def _looks_at_members(look: OnLook | None, members: list[int], size: int) -> OnLook | None:
    """`look` for a decode batch: its rows by their number among all."""
    if look is None:
        return None

    def at(read: Callable[[], dict[int, Completion]]) -> None:
        look(lambda: {members[r // size] * size + r % size: c for r, c in read().items()})

    return at


class DecodeBatch:
    """The B rows of prompts that are decoded together. uniforms (P, G, T), one for each token.

    Where memory has no room for all, waiting prompts begin in the place of rows that have ended.
    At step t the rows of a prompt that began at step s have drawn t - s tokens.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        uniforms: Tensor,
        limits: Sequence[int] | None = None,
    ) -> None:
        """limits: tokens of each prompt's completions at most; None: max_new_tokens."""
        self.policy, self.prompts, self.params = policy, prompts, params
        self.rows = Rows(
            uniforms.flatten(0, 1),
            params.temperature,
            sorted(policy.end_ids),
            policy.pad_id,
            params.keep_logprobs,
        )
        most = limits or [params.max_new_tokens] * len(prompts)
        self._limits = [n for n in most for _ in range(params.group_size)]  # of each row
        self.reported: dict[int, list[Rollout]] = {}  # groups that have ended
        self._since = dict.fromkeys(range(len(prompts)), 0)  # prompts that have begun, and when
        self._waiting: list[int] = []
        self._stops = StopText(policy, params.stop, self.rows) if params.stop else None

    def decode(
        self, hooks: SamplingHooks, source: Decoder | None = None, at_once: int | None = None
    ) -> None:
        """Sample until every row has ended or is full. source: a decoder to use; None: a new one.

        at_once: prompts that memory has room for; None: all. Others that did not begin after all
        are not among `groups`. hooks.on_group_done: called with the index of each group.
        """
        check_interrupt, params = hooks.check_interrupt, self.params
        first = at_once or len(self.prompts)
        self._since = dict.fromkeys(range(first), 0)
        self._waiting = [*range(first, len(self.prompts))]
        if source is None:
            longest = max(map(len, self.prompts)) + params.max_new_tokens
            source = decoder(self.policy, longest, records(self.policy))
        check_interrupt()
        prompts = self.prompts[:first]
        logits = source.read(prompts, params.group_size, params.max_new_tokens)  # (b, V)
        check_interrupt()
        self.draw_all(source, logits, hooks)

    def draw_all(self, source: Decoder, logits: Tensor, hooks: SamplingHooks) -> None:
        """`decode` from a decoder that has read the first prompts. logits (b, V): what it found."""
        rows, model, device = self.rows, self.policy.model, self.policy.device
        alive = [*range(len(logits))]  # the row of each row still decoded
        rows.keep(torch.arange(len(alive), device=device))
        rows.draw(logits)
        del logits
        take_step = step_taker(model, source, rows)
        look_every = LOOK_EVERY.get(device.type, 8)
        t, end, at_once = 1, self.params.max_new_tokens, len(alive)
        while t < end:
            if t % look_every == 0:
                going = self._look(t, alive, hooks)
                if not going:
                    break
                if len(going) <= source.moves_at * len(alive):
                    kept = torch.tensor(going, device=device)
                    source.keep(kept)
                    rows.keep(kept)
                    alive = [alive[i] for i in going]
                    if joined := self._join(source, at_once - len(alive), t):
                        alive += joined
                        end = t - 1 + self.params.max_new_tokens
                    take_step = step_taker(model, source, rows)
            hooks.check_interrupt()
            take_step()
            t += 1
        if not rows.finite:  # read once, because reading it at each token would wait for the GPU
            raise _NotFinite
        if self._stops is not None:
            self._stops.look(self.params.max_new_tokens)
        if hooks.on_group_done is not None:  # else `groups` makes their texts
            self._report(hooks.on_group_done, self._unreported())

    def _look(self, t: int, alive: Sequence[int], hooks: SamplingHooks) -> list[int]:
        """Tell what has happened. Returns the places in `alive` of rows that go on."""
        if self._stops is not None:
            self._stops.look(t)
        size, ended = self.params.group_size, self.rows.ended.tolist()

        def is_over(row: int) -> bool:
            return ended[row] or t - self._since[row // size] >= self._limits[row]

        if hooks.on_group_done is not None or len(self._since) < len(self.prompts):
            over = [
                p for p in self._unreported() if all(map(is_over, range(p * size, (p + 1) * size)))
            ]
            self._report(hooks.on_group_done, over)
        if hooks.on_look is not None:
            hooks.on_look(partial(self._written, t))
        return [i for i, row in enumerate(alive) if not is_over(row)]

    def _join(self, source: Decoder, free: int, t: int) -> list[int]:
        """Begin waiting prompts in place of `free` rows that have ended. Returns their rows."""
        size, most = self.params.group_size, self.params.max_new_tokens
        fresh = self._waiting[: free // size]
        if not fresh or not source.can_join or self._stops is not None:
            return []
        prompts = [self.prompts[p] for p in fresh]
        try:
            logits = cast("FixedDecoder", source).join(prompts, most)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logits = None
        if logits is None:  # outside the handler, as in sample_with
            log.warning("Out of memory: waiting prompts begin when all others have ended.")
            self._waiting = []
            release_memory()
            return []
        del self._waiting[: len(fresh)]
        self._since |= dict.fromkeys(fresh, t - 1)
        rows = [row for p in fresh for row in range(p * size, (p + 1) * size)]
        self.rows.begin(rows, logits)
        return rows

    def _report(self, done: OnGroupDone | None, ended: Sequence[int]) -> None:
        """Keep each group as soon as all of its rows have ended, and call `done` with it once."""
        for p, rollouts in self._rollouts(ended).items():
            self.reported[p] = rollouts
            if done is not None:
                done(p, rollouts)

    def _written(self, t: int) -> dict[int, Completion]:
        """What each row that has begun has written at step t."""
        tokens, lengths = self.rows.tokens[:, :t].tolist(), self.rows.lengths.tolist()
        size, found = self.params.group_size, {}
        for p, since in self._since.items():
            opening = self.policy.opening(self.prompts[p])
            for row in range(p * size, (p + 1) * size):
                length = min(lengths[row], self._limits[row], t - since)
                text = opening + self.policy.decode(tokens[row][:length])
                found[row] = Completion(text, "", length)
        return found

    def groups(self) -> dict[int, list[Rollout]]:
        """The completions of every prompt that has begun, as text too."""
        found = self._rollouts(self._unreported()) | self.reported
        return {p: found[p] for p in self._since}

    def _unreported(self) -> list[int]:
        return [p for p in self._since if p not in self.reported]

    def _rollouts(self, groups: Sequence[int]) -> dict[int, list[Rollout]]:
        """The completions of these prompts, as text too.

        They are read from the device together, because each reading waits for it.
        """
        if not groups:
            return {}
        size, written = self.params.group_size, self.rows
        rows = [row for p in groups for row in range(p * size, (p + 1) * size)]
        index = torch.tensor(rows, device=written.tokens.device)
        columns = (written.tokens, written.lengths, written.ended, written.logprobs)
        values = zip(*(column[index].tolist() for column in columns), strict=True)
        rollouts: dict[int, list[Rollout]] = {p: [] for p in groups}
        for p in groups:
            opening = self.policy.opening(self.prompts[p])
            most = self._limits[p * size]
            for ids, drawn, ended, logprobs in islice(values, size):
                length = min(drawn, most)  # what it wrote beyond, until somebody looked, is dropped
                text = opening + self.policy.decode(ids[:length])
                rollouts[p].append(
                    Rollout(
                        Completion(text, "stop" if ended and drawn <= most else "length", length),
                        prompt_ids=self.prompts[p],
                        completion_ids=ids[:length],
                        sampling_logprobs=logprobs[:length] if self.params.keep_logprobs else None,
                    )
                )
        return rollouts
