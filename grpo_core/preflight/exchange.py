"""What Preflight says of an environment, from a real exchange: template, tools, times, tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from grpo_core.config import RunConfig
from grpo_core.environments.instances import Call
from grpo_core.environments.tool_chat import ToolChat
from grpo_core.environments.trajectories import World, started
from grpo_core.environments.worlds import Worlds
from grpo_core.models import Reader
from grpo_core.models.chat_template import ChatRefused, Message, ids_of, render
from grpo_core.preflight.finding import Finding
from grpo_core.tasks import environment_of, load_task, train_prompts
from grpo_core.types import Group, Rollout, Turn, TurnRole

SHOWN = 160  # characters of a tool's answer
# Values for a tool that the first step did not call, by JSON type.
MADE_UP: Mapping[str, Any] = {
    "string": "1",
    "integer": 1,
    "number": 1.0,
    "boolean": True,
    "array": [],
    "object": {},
}


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the first step and a made-up call showed."""

    rollouts: Sequence[Rollout]
    calls: Sequence[Turn]  # of the first step
    probe: Turn  # the made-up call


def exchange_findings(config: RunConfig, reader: Reader, groups: Sequence[Group]) -> list[Finding]:
    """Findings about the environment of a task; none without one. groups: of the first step.

    Calls one tool for real, on a fresh instance. Raises StudioError for an environment that does
    not start, and InvalidConfig for a chat template that cannot show a tool's answer.
    """
    task = load_task(config.task)
    [prompt] = train_prompts(task, config.train.seed, 1, 1)
    if not (name := environment_of(task, prompt)):
        return []
    with closing(Worlds(reader, lambda: None)) as worlds:
        world = worlds.of(name, config.rollout)
        tools = list(world.instances.environment.schemas)
        if not tools:
            text = f"The environment {name} has no tools: a completion has one turn."
            return [Finding("green", "Tools", text)]
        started(world, [prompt], 1, ["preflight"])
        probe = _probe(world)
        rollouts = [r for g in groups for r in g.rollouts]
        calls = [t for r in rollouts for t in r.completion.turns if t.role is TurnRole.OBSERVATION]
        seen = _Seen(rollouts, calls, probe)
        return [
            _shown(world.chat, tools, calls),
            *_history(world.chat, reader, probe),
            *_calls(config, seen),
            _budget(config, seen, _tokens_of(world.chat, reader, probe)),
        ]


def _probe(world: World) -> Turn:
    """Call the first tool with made-up arguments, as its schema describes them."""
    [(tool, schema), *_] = world.instances.environment.schemas.items()
    parameters = schema.get("parameters", {})
    wanted = parameters.get("required", [])
    kinds = parameters.get("properties", {})
    arguments = {name: MADE_UP.get(str(kinds.get(name, {}).get("type")), "1") for name in wanted}
    [answer] = world.instances.call([Call(0, tool, arguments, 0)])
    text = world.chat.answer_text(str(answer.value), answer.error)
    written = json.dumps(arguments)
    return Turn(TurnRole.OBSERVATION, text, 0, 0, tool, written, answer.error, answer.seconds)


def _shown(chat: ToolChat, tools: Sequence[str], calls: Sequence[Turn]) -> Finding:
    """Whether the model is told of its tools, or shows that it knows them."""
    names = ", ".join(tools)
    if chat.in_template:
        return Finding("green", "Tools", f"The chat template shows the model its tools: {names}.")
    if chat.is_chat:
        text = (
            f"The chat template has no place for tools, so a system message describes {names}. "
            "A model that was not trained to call tools may never call one."
        )
    else:
        text = "The model reads no chats: it must know by itself to call a tool as <tool>…</tool>."
    return Finding("green" if calls else "amber", "Tools", text)


def _history(chat: ToolChat, reader: Reader, probe: Turn) -> Iterator[Finding]:
    """Whether the template writes earlier turns as they were once later ones follow."""
    if not chat.is_chat:
        text = "The ids of each turn begin with those of the turn before: texts are only appended."
        yield Finding("green", "Turns", text)
        return
    try:
        chats = [ids_of(reader.tokenizer, text) for text in _growing(chat, reader, probe)]
    except ChatRefused as error:
        text = f"The chat template refuses an exchange of several turns: {error}."
        yield Finding("amber", "Turns", text)
        return
    broken = next(
        (n for n, (a, b) in enumerate(pairwise(chats), 1) if b[: len(a)] != a),
        None,
    )
    if broken is None:
        text = (
            f"On an exchange of {len(chats)} turns the ids of each turn begin with those of the "
            "turn before."
        )
        yield Finding("green", "Turns", text)
        return
    here, later = chats[broken - 1], chats[broken]
    at = next((i for i, (a, b) in enumerate(zip(here, later, strict=False)) if a != b), len(later))
    was, now = (_excerpt(reader, ids[max(0, at - 2) : at + 12]) for ids in (here, later))
    text = (
        f"The chat template rewrites turn {broken} once turn {broken + 1} follows: {was} becomes "
        f"{now}. Training appends ids and keeps the turn as it was sampled. A program that "
        "renders the whole chat anew, as most servers do, feeds the model other ids."
    )
    yield Finding("amber", "Turns", text)


def _growing(chat: ToolChat, reader: Reader, probe: Turn) -> list[str]:
    """A chat as the template writes it before the first, second and third action."""
    messages: list[Message] = [{"role": "user", "content": "What is it?"}]
    tools = chat.tools if chat.in_template else ()
    texts = [render(reader.tokenizer, messages, True, tools)]
    for number in range(2):
        said = f"<think>\nStep {number}.\n</think>\n\n"
        call = probe.tool, json.loads(probe.arguments)
        messages += chat.exchange(said, call, [(probe.tool, probe.text)])
        texts.append(render(reader.tokenizer, messages, True, tools))
    return texts


def _excerpt(reader: Reader, ids: Sequence[int]) -> str:
    return repr(str(reader.tokenizer.decode(list(ids))))[:SHOWN]


def _calls(config: RunConfig, seen: _Seen) -> Iterator[Finding]:
    """Whether the model calls its tools, whether they work, and how long calls take."""
    probe, calls = seen.probe, seen.calls
    if probe.error:
        text = (
            f"{probe.tool} with the made-up arguments {probe.arguments[:SHOWN]} answered with an "
            f"error: {probe.error[:SHOWN]}"
        )
        works = any(not c.error for c in calls)
        yield Finding("green" if works else "amber", "Tool works", text)
    else:
        text = (
            f"{probe.tool} with the made-up arguments {probe.arguments[:SHOWN]} answered "
            f"{probe.text[:SHOWN]!r} in {_time(probe.seconds)}."
        )
        yield Finding("green", "Tool works", text)
    if not calls:
        text = (
            f"None of the {len(seen.rollouts)} completions of the first step called a tool. A "
            "model that never calls one cannot learn to: ask for calls in the prompt, or choose a "
            "model that knows them."
        )
        yield Finding("amber", "Tool calls", text)
        return
    failed = sum(bool(c.error) for c in calls)
    seconds = [c.seconds for c in calls if c.seconds is not None] or [0.0]
    limit = config.rollout.tool_seconds
    slow = max(seconds) > limit / 2
    text = (
        f"{len(calls)} calls in the first step, {failed} of them answered with an error; "
        f"{_time(fmean(seconds))} a call, the longest {_time(max(seconds))} of {limit:g} s allowed."
    )
    is_fine = 2 * failed <= len(calls) and not slow
    yield Finding("green" if is_fine else "amber", "Tool calls", text)


def _time(seconds: float | None) -> str:
    return f"{seconds:.2f} s" if seconds and seconds >= 0.01 else "less than 0.01 s"


def _tokens_of(chat: ToolChat, reader: Reader, probe: Turn) -> tuple[float, float]:
    """Tokens of the made-up call and of its observation, as this model reads them."""
    call = chat.written(probe.tool, json.loads(probe.arguments))
    observation = chat.observation_ids([(probe.tool, probe.text)])
    return len(ids_of(reader.tokenizer, call)) + 1, len(observation)


def _budget(config: RunConfig, seen: _Seen, made_up: tuple[float, float]) -> Finding:
    """Whether the token budget holds several turns."""
    acts, reads = made_up
    calling = [r for r in seen.rollouts if len(r.completion.turns) > 1]
    if calling:  # the model's own turns
        turns = [t for r in calling for t in r.completion.turns]
        actions = [t.num_tokens for t in turns if t.role is TurnRole.ACTION]
        observations = [t.num_tokens for t in turns if t.role is TurnRole.OBSERVATION]
        acts, reads = fmean(actions), fmean(observations)
    budget, most = config.train.max_new_tokens, config.rollout.max_turns
    # n actions and the n - 1 observations between them.
    fitting = int((budget + reads) // max(1.0, acts + reads))
    text = (
        f"An action takes about {acts:.0f} tokens and an observation {reads:.0f}: "
        f"{budget:,} new tokens hold about {fitting} turns, and {most} are allowed."
    )
    if fitting < 2:
        return Finding(
            "red", "Token budget", f"{text} No tool's answer can be used: raise Max new tokens."
        )
    if most < 2:
        text += " No tool's answer can be used: raise Turns at most."
        return Finding("red", "Token budget", text)
    return Finding("green", "Token budget", text)
