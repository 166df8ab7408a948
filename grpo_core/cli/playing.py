"""The command play: saved states of a run answer a prompt, turn by turn in an environment."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, replace

from grpo_core.analysis.text import format_number
from grpo_core.cli.request import count, find_run
from grpo_core.cli.terminal import (
    AddCommand,
    add_environments_option,
    add_run_argument,
    printable,
)
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.exporting.play_request import PlayRequest, PlayResult, State
from grpo_core.store import Store
from grpo_core.types import Rollout, TurnRole


def add_commands(command: AddCommand) -> None:
    play = command(
        "play",
        play_command,
        "Let a run's model answer one prompt before and after its training, as the Playground does."
        " In an environment each turn is printed: action, tool call, observation.",
    )
    add_run_argument(play)
    play.add_argument("--text", help="the prompt (default: a held-out prompt of the run)")
    play.add_argument("--answer", default="", help="the right answer of --text")
    play.add_argument(
        "--number",
        type=count,
        default=1,
        metavar="N",
        help="which held-out prompt, from 1 (default 1)",
    )
    play.add_argument(
        "--step",
        type=int,
        action="append",
        metavar="N",
        help="a saved state, 0 for before training; may be repeated (default: 0 and the last)",
    )
    play.add_argument(
        "--answers",
        type=count,
        default=1,
        metavar="N",
        help="sampled answers beside the greedy one (default 1)",
    )
    play.add_argument(
        "--temperature", type=float, default=1.0, help="of sampling; 0: only the greedy answer"
    )
    play.add_argument(
        "--turns", type=count, metavar="N", help="pause after so many actions in an environment"
    )
    add_environments_option(play)


def play_command(arguments: argparse.Namespace) -> int:
    store = Store(arguments.db)
    run = find_run(store, arguments.run_id)
    if not 0 <= arguments.temperature <= 10:
        problem = FieldProblem(
            "--temperature", arguments.temperature, "it is not from 0 to 10", "Use 1, for example."
        )
        raise InvalidConfig([problem])
    steps = arguments.step
    if steps is None:
        steps = sorted({0, *(row.step for row in store.checkpoints(run.id)[-1:])})
    from grpo_core.preflight.service import PreflightService  # torch

    service = PreflightService(store)
    number = arguments.number - 1
    text, answer = arguments.text, arguments.answer
    if text is None:
        prompt = service.run_prompt(run.id, number)
        text, answer = prompt.text, prompt.answer
    request = PlayRequest(
        text,
        answer,
        [State(run.id, step) for step in dict.fromkeys(steps)],
        arguments.answers,
        arguments.temperature,
        number if arguments.text is None else None,
        arguments.turns,
    )
    result = service.play(run.id, request)
    if arguments.json:
        print(json.dumps(_plain(result)))
    else:
        print("\n".join(printable(line) for line in _lines(result)))
    return 0


def _plain(result: PlayResult) -> dict[str, object]:
    """The result as data for JSON, without token ids."""
    return {
        "prompt": result.prompt.text,
        "answer": result.prompt.answer,
        "outcome": result.outcome,
        "sides": [
            {
                "step": side.state.step,
                "begun": side.begun,
                "answers": [
                    asdict(replace(r, prompt_ids=(), completion_ids=(), action_mask=None))
                    for r in (side.greedy, *side.sampled)
                    if r is not None
                ],
            }
            for side in result.sides
        ],
    }


def _lines(result: PlayResult) -> Iterator[str]:
    yield result.prompt.text
    if result.prompt.answer:
        yield f"right answer: {result.prompt.answer}"
    for side in result.sides:
        yield ""
        yield f"after step {side.state.step:,}" if side.state.step else "before training"
        if side.begun:
            yield f"  the environment adds: {side.begun}"
        if side.greedy is not None:
            yield from _answer("greedy", side.greedy)
        for i, rollout in enumerate(side.sampled, 1):
            yield from _answer(f"sampled {i}", rollout)


def _answer(title: str, rollout: Rollout) -> Iterator[str]:
    completion = rollout.completion
    scores = ", ".join(f"{name} {format_number(s)}" for name, s in rollout.scores.items())
    ended = {"": "pauses", "length": "cut"}.get(str(completion.finish_reason), "ended")
    yield f"  {title}: {ended}, {completion.num_tokens} tokens" + (f", {scores}" if scores else "")
    for turn in completion.turns:
        said = turn.text
        if turn.role is TurnRole.OBSERVATION:
            said = f"{turn.tool or 'a call'}({turn.arguments}) → {turn.error or turn.text}"
            if turn.seconds is None and not turn.error:
                said = f"{turn.tool}({turn.arguments}) …"
        yield textwrap.indent(f"{turn.role}: {said}", "    ")
    if not completion.turns:
        yield textwrap.indent(completion.text, "    ")
