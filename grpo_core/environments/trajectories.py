"""Completions of several turns: the policy acts, its tools answer, it acts again.

Row p·G + g is trajectory g of prompt p. All rows act together, then all their calls run together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Protocol

from torch import Tensor

from grpo_core.environments.calls import Parsed, ToolCall, arguments_as_text
from grpo_core.environments.instances import Answer, Call, Instances
from grpo_core.environments.openenv_child import NO_ROOM
from grpo_core.environments.tool_chat import ToolChat
from grpo_core.errors import StudioError
from grpo_core.models import Policy
from grpo_core.rollout import (
    Draws,
    SamplingHooks,
    SamplingParams,
    TurnSampler,
    random_numbers,
    sampling,
)
from grpo_core.rubric.sandbox.plugins import columns, messages_of
from grpo_core.types import Completion, Prompt, Rollout, Turn, TurnRole


class Sampler(Protocol):
    """What acts in a world: see TurnSampler."""

    def first(self) -> list[Rollout]: ...

    def next(
        self, rows: Sequence[int], texts: Sequence[Sequence[int]], limits: Sequence[int]
    ) -> list[Rollout]: ...


# Called as TurnSampler is.
Turns = Callable[[Policy, Sequence[Sequence[int]], SamplingParams, Tensor, SamplingHooks], Sampler]


@dataclass(frozen=True, slots=True)
class World:
    """What a policy acts in. max_turns: actions of a trajectory at most.

    pauses_after: sample so many actions and leave the trajectories that go on unfinished, without
    a finish reason; with the same random numbers and one more they go on alike.
    turns: who samples.
    """

    chat: ToolChat
    instances: Instances
    max_turns: int
    pauses_after: int | None = None
    turns: Turns = TurnSampler


@dataclass(slots=True)
class _Trajectory:
    """A row while it grows. before: what the policy reads: the prompt and all turns so far."""

    prompt_ids: Sequence[int]
    key: str  # of its random numbers
    has_tools: bool
    ids: list[int] = field(default_factory=list)
    actions: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    text: str = ""
    said: str = ""
    finish_reason: str = "length"  # until its last action ends by itself
    num_calls: int = 0

    @property
    def before(self) -> list[int]:
        return [*self.prompt_ids, *self.ids]

    def act(self, action: Rollout, parsed: Parsed) -> None:
        """Add what the policy wrote. Its text begins with the block that the prompt opened."""
        ids, completion = action.completion_ids, action.completion
        turn = Turn(TurnRole.ACTION, completion.text, len(self.ids), len(ids))
        self.turns.append(turn)
        self._add(ids, completion.text, True, action.sampling_logprobs)
        self.said += parsed.said
        self.finish_reason = completion.finish_reason or ""

    def observe(self, ids: Sequence[int], text: str, answers: Sequence[Turn]) -> None:
        """Add the answers to its calls; `ids` of all of them together stand at the first."""
        first = replace(answers[0], first_token=len(self.ids), num_tokens=len(ids))
        end = len(self.ids) + len(ids)
        self.turns += [first, *(replace(t, first_token=end, num_tokens=0) for t in answers[1:])]
        self._add(ids, text, False, None)

    def _add(
        self, ids: Sequence[int], text: str, acts: bool, logprobs: Sequence[float] | None
    ) -> None:
        self.ids += ids
        self.actions += [acts] * len(ids)
        self.logprobs += logprobs or [0.0] * len(ids)
        self.text += text

    def completion(
        self, writes: Completion | None = None, waits: Sequence[Turn] = ()
    ) -> Completion:
        """The trajectory so far. writes: of its next action; waits: observations still to come."""
        text, num_tokens, turns = self.text, sum(self.actions), [*self.turns, *waits]
        if writes is not None:
            written = writes.num_tokens or 0
            turns.append(Turn(TurnRole.ACTION, writes.text, len(self.ids), written))
            text, num_tokens = text + writes.text, num_tokens + written
        is_going_on = writes is not None or bool(waits)
        reason = "" if is_going_on else self.finish_reason
        return Completion(
            text, reason, num_tokens, tuple(turns), self.said, has_tools=self.has_tools
        )

    def rollout(self, keep_logprobs: bool) -> Rollout:
        return Rollout(
            self.completion(),
            prompt_ids=self.prompt_ids,
            completion_ids=self.ids,
            sampling_logprobs=self.logprobs if keep_logprobs else None,
            action_mask=self.actions,
        )


def started(
    world: World, prompts: Sequence[Prompt], group_size: int, keys: Sequence[str]
) -> list[Prompt]:
    """Make an instance for each row; the prompts, with what reset added to them.

    keys: one a prompt, of the random numbers that reset may draw. Siblings share it, so that they
    start alike. Raises StudioError where they do not, or where no instance starts.
    """
    rows = [row_of(p) for p in prompts for _ in range(group_size)]
    seeds = [seed_of(key) for key in keys for _ in range(group_size)]
    answers = world.instances.start(rows, seeds)
    name = world.instances.environment.name
    # A server without room for all lets some start; the others would have nothing to act in.
    no_room = next((a.error for a in answers if a.error.startswith(NO_ROOM)), "")
    if no_room or (answers and all(a.error for a in answers)):
        raise StudioError(
            f"the environment {name} does not start: {no_room or answers[0].error}. "
            "Correct its reset, or choose another environment."
        )
    begun = []
    for p, prompt in enumerate(prompts):
        siblings = answers[p * group_size : (p + 1) * group_size]
        texts = {a.value for a in siblings if not a.error}
        if len(texts) > 1:
            raise StudioError(
                f"reset of the environment {name} returns different texts for the completions of "
                "one prompt, which then cannot be compared. Let it depend on the row, or on "
                "random numbers of the modules random or numpy.random."
            )
        added = texts.pop() if texts else None
        begun.append(replace(prompt, text=prompt.text + added) if added else prompt)
    return begun


def sample_trajectories(
    policy: Policy,
    prompts: Sequence[tuple[str, Sequence[int]]],
    params: SamplingParams,
    draws: Draws,
    world: World,
    hooks: SamplingHooks,
) -> list[Rollout]:
    """G trajectories for each of P prompts, whose instances are `started`.

    prompts: key of the random numbers that tools may draw, and ids. A trajectory ends with an
    action that calls no tool, with `max_turns` actions, or with max_new_tokens tokens, observations
    among them. The random number of a token depends on its row and place alone.
    """
    uniforms = random_numbers(len(prompts), params, draws)  # (P, G, T)
    # Adapters are merged for the own sampler alone.
    num_tokens = uniforms.numel() if world.turns is TurnSampler else 0
    with sampling(policy, num_tokens):
        rollouts = _Play(policy, prompts, params, world, hooks, uniforms).run()
    return _with_rewards(world.instances, rollouts)


class _Play:
    """The rows of one call of sample_trajectories."""

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[tuple[str, Sequence[int]]],
        params: SamplingParams,
        world: World,
        hooks: SamplingHooks,
        uniforms: Tensor,
    ) -> None:
        self._policy, self._world = policy, world
        self._params, self._hooks = params, hooks
        self._sampler = world.turns(
            policy,
            [ids for _, ids in prompts],
            replace(params, stop=world.chat.stop),
            uniforms,
            SamplingHooks(hooks.check_interrupt, on_look=hooks.on_look and self._look),
        )
        has_tools = bool(world.instances.environment.tools)
        self._rows = [
            _Trajectory(ids, f"{key}/{g}", has_tools)
            for key, ids in prompts
            for g in range(params.group_size)
        ]
        self._reported: set[int] = set()
        self._live: Sequence[int] = range(len(self._rows))  # rows that act now

    def run(self) -> list[Rollout]:
        actions = self._sampler.first()
        for turn in range(1, self._world.max_turns + 1):
            calling = self._act(self._live, actions)
            if turn == self._world.max_turns:
                self._live = self._cut(calling)
            elif turn == self._world.pauses_after:
                self._live = self._paused(calling)
            else:
                self._live = self._observe(calling)
            self._report(self._live)
            if not self._live:
                break
            texts = [self._rows[i].before for i in self._live]
            room = [self._params.max_new_tokens - len(self._rows[i].ids) for i in self._live]
            actions = self._sampler.next(self._live, texts, room)
        return [self._rollout(row) for row in self._rows]

    def _look(self, read: Callable[[], dict[int, Completion]]) -> None:
        """Show all trajectories, and what those that act have written of their action."""
        assert self._hooks.on_look is not None

        def all_rows() -> dict[int, Completion]:
            writing = {self._live[k]: action for k, action in read().items()}
            waiting = Completion("", "", 0)
            return {
                i: row.completion(writing.get(i, waiting) if i in self._live else None)
                for i, row in enumerate(self._rows)
            }

        self._hooks.on_look(all_rows)

    def _look_at_calls(self, calling: Mapping[int, Sequence[ToolCall]]) -> None:
        """Show the calls before their answers come."""
        if self._hooks.on_calls is not None:
            self._hooks.on_calls(
                lambda: {
                    i: row.completion(waits=_unanswered(calling.get(i, ())))
                    for i, row in enumerate(self._rows)
                }
            )

    def _act(self, live: Sequence[int], actions: Sequence[Rollout]) -> dict[int, list[ToolCall]]:
        """Add the actions to their rows; the calls of each row that calls."""
        calling = {}
        for i, action in zip(live, actions, strict=True):
            row = self._rows[i]
            parsed = self._world.chat.parse(row.before, action)
            row.act(action, parsed)
            if parsed.calls and row.finish_reason == "stop":
                calling[i] = list(parsed.calls)
        return calling

    def _cut(self, calling: Mapping[int, Sequence[ToolCall]]) -> list[int]:
        """End rows that call a tool in their last turn. Nobody goes on."""
        for i in calling:
            self._rows[i].finish_reason = "length"
        return []

    def _paused(self, calling: Mapping[int, Sequence[ToolCall]]) -> list[int]:
        """Leave rows that call a tool as they are. Nobody goes on."""
        for i, calls in calling.items():
            self._rows[i].finish_reason = ""
            self._rows[i].turns += _unanswered(calls)
        return []

    def _observe(self, calling: Mapping[int, Sequence[ToolCall]]) -> list[int]:
        """Run all calls at once and add their answers; the rows that go on."""
        self._look_at_calls(calling)
        made: dict[tuple[int, int], Call] = {}
        for i, calls in calling.items():
            row = self._rows[i]
            for k, call in enumerate(calls):
                if not call.error:
                    seed = seed_of(f"{row.key}/{row.num_calls + k}")
                    made[i, k] = Call(i, call.tool, call.arguments, seed)
            row.num_calls += len(calls)
        answers = dict(zip(made, self._world.instances.call([*made.values()]), strict=True))
        return [
            i
            for i, calls in calling.items()
            if self._answer(
                self._rows[i],
                [
                    (call, answers.get((i, k), Answer(None, call.error, 0.0)))
                    for k, call in enumerate(calls)
                ],
            )
        ]

    def _answer(self, row: _Trajectory, answers: Sequence[tuple[ToolCall, Answer]]) -> bool:
        """Add the answers to a row's calls; whether it has room for another action."""
        chat = self._world.chat
        waiting = _unanswered([call for call, _ in answers])
        turns = [
            replace(turn, text=chat.answer_text(a.value, a.error), error=a.error, seconds=a.seconds)
            for turn, (_, a) in zip(waiting, answers, strict=True)
        ]
        ids = chat.observation_ids([(turn.tool, turn.text) for turn in turns])
        if len(row.ids) + len(ids) >= self._params.max_new_tokens:
            row.finish_reason = "length"
            row.observe([], "", turns)  # it is shown, but the policy has no room to read it
            return False
        row.observe(ids, self._policy.decode(ids), turns)
        return True

    def _report(self, live: Sequence[int]) -> None:
        """Call `on_group_done` with each group once none of its rows is live."""
        size = self._params.group_size
        going = {i // size for i in live}
        for p in range(len(self._rows) // size):
            if p not in going and p not in self._reported:
                self._reported.add(p)
                if self._hooks.on_group_done is not None:
                    rows = self._rows[p * size : (p + 1) * size]
                    self._hooks.on_group_done(p, [self._rollout(row) for row in rows])

    def _rollout(self, row: _Trajectory) -> Rollout:
        return row.rollout(self._params.keep_logprobs)


def _unanswered(calls: Sequence[ToolCall]) -> list[Turn]:
    """Calls as turns whose observations are still to come: without text and seconds."""
    return [
        Turn(TurnRole.OBSERVATION, "", 0, 0, call.tool, arguments_as_text(call), call.error)
        for call in calls
    ]


def _with_rewards(instances: Instances, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts with what get_reward returns, where the environment has one."""
    is_paused = any(not r.completion.finish_reason for r in rollouts)
    if is_paused or not instances.environment.has_reward:
        return list(rollouts)
    return [
        replace(
            r,
            completion=replace(r.completion, environment_reward=a.value, environment_error=a.error),
        )
        for r, a in zip(rollouts, instances.rewards(len(rollouts)), strict=True)
    ]


def row_of(prompt: Prompt) -> dict[str, Any]:
    """What reset gets: the columns of the prompt's row by name, and the prompt, as TRL passes."""
    is_chat = bool(prompt.meta.get("chat"))
    row = {name: values[0] for name, values in columns([prompt], [is_chat]).items()}
    return row | {"prompt": messages_of(prompt) if is_chat else prompt.text}


def seed_of(key: str) -> int:
    """The seed of a key: the same in every process."""
    return int.from_bytes(blake2b(key.encode(), digest_size=6).digest(), "big")
