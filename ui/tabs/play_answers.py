"""What the Playground answers: prompts, answers while they are written, and when they are whole."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from grpo_core.errors import StudioError
from grpo_core.exporting.play_request import PlayRequest, PlayStopped, State
from grpo_core.store import RunRow
from ui.render import provenance, status
from ui.render.played import Asked, played
from ui.render.text import esc
from ui.server.service import Service
from ui.server.views import Views
from ui.tabs.frame import SKIP, parse_tokens

MAX_ANSWERS = 16  # on each side
MAX_CHARS = 20_000
MAX_TURNS = 1_000
MAX_ANSWER_CHARS = 2_000
# What a question asks for before the answers: the run's first held-out prompt unless somebody typed
# one, the next prompt, or none.
FIRST, NEXT = "first", "next"
ACCURACY = "heldout/accuracy"
NO_RUN = "Start a run on the Train tab; its saved states appear here."
STOP = -1  # what the page sends instead of a revision to stop the answers


@dataclass(frozen=True, slots=True)
class PlayInputs:
    """What an answer depends on: components on the page, in a request their values."""

    text: Any
    answer: Any
    left_run: Any
    left: Any
    right_run: Any
    right: Any
    num: Any
    temperature: Any
    taken: Any = "{}"  # the prompt that was taken last: {text, next, waits}


def reply_to(views: Views, service: Service, ask: Any, given: PlayInputs) -> str:
    """The reply to a question as JSON: {id, html}, or with a prompt {id, html, text, right, next}.

    After a prompt the page asks for its answers, unless `html` says why they wait.
    """
    asked = parse_tokens(ask)
    run = views.run(asked.get("run"))
    if run is None:
        said: dict[str, Any] = {"html": status.banner("There is no run yet.", NO_RUN)}
    elif run.source is not None:
        said = {"html": status.banner("There is no answer.", provenance.why_not_here(run))}
    elif asked.get("take") in (FIRST, NEXT):
        said = take_prompt(service, run.id, asked["take"], given)
    else:
        said = {"html": play(views, service, run, given, ask)}
    return json.dumps({"id": asked.get("id"), **said})


def take_prompt(service: Service, run_id: str, which: str, given: PlayInputs) -> dict[str, Any]:
    """A held-out prompt of the run, or the one that somebody typed, and why its answers wait."""
    taken = parse_tokens(given.taken)
    is_typed = bool(given.text) and given.text != taken.get("text")
    number = _number(taken.get("next")) if which == NEXT else 0
    try:
        if is_typed and which == FIRST:
            said = {"text": given.text, "right": given.answer, "next": 0}
        else:
            prompt = service.run_prompt(run_id, number)
            said = {"text": prompt.text, "right": prompt.answer, "next": number + 1}
        reason = service.reason_to_wait(run_id)
    except StudioError as error:
        return {"html": status.banner("No prompt was taken.", str(error))}
    waits = f'<p class="note" role="status">{esc(reason)} Press Answer to ask now.</p>'
    return {**said, "html": waits if reason else ""}


def play(views: Views, service: Service, run: RunRow, given: PlayInputs, ask: Any = "") -> str:
    """Both sides as cards, or a message that says which field is wrong."""
    request = _request(views, run, given, ask)
    if isinstance(request, str):
        return request
    asked = _asked(views, run, request)
    try:
        return played(service.play(run.id, request, _question(ask)), asked)
    except PlayStopped as stopped:
        said = '<p class="note" role="status">You stopped the answers.</p>'
        return said + (played(stopped.partial, asked, "stopped") if stopped.partial else "")
    except StudioError as error:
        return status.banner("There is no answer.", str(error))


def look(views: Views, service: Service, revision: Any, ask: Any, *values: Any) -> list[Any]:
    """The answers as far as they are written, if they are newer than what the page shows.

    revision: of what the page shows; STOP ends the answers.
    """
    question, given = _question(ask), PlayInputs(*values)
    if revision == STOP:
        service.stop_play(question)
        return [SKIP]
    run, found = views.run(parse_tokens(ask).get("run")), service.look_at_play(question)
    request = None if run is None or found is None else _request(views, run, given, ask)
    if run is None or found is None or not isinstance(request, PlayRequest):
        return [SKIP]
    newer, partial = found
    if newer == revision:
        return [SKIP]
    shown = played(partial, _asked(views, run, request), "writing")
    return [f'<div data-revision="{newer}" aria-busy="true">{shown}</div>']


def side_run(views: Views, chosen: Any, run: RunRow) -> RunRow:
    """The run of one side: the chosen one, or the run in view if there is none such."""
    return (views.run(chosen) if chosen else None) or run


def _request(views: Views, run: RunRow, given: PlayInputs, ask: Any) -> PlayRequest | str:
    """What to ask, or a message that says which field is wrong.

    ask: may say after which turn to pause.
    """
    sides = ((given.left_run, given.left), (given.right_run, given.right))
    for of, _ in sides:
        if why := provenance.why_not_here(side_run(views, of, run)):
            return _problem("Left and Right", why)
    states = [State(side_run(views, of, run).id, step) for of, step in sides if _is_step(step)]
    is_count = isinstance(given.num, (int, float)) and 1 <= given.num <= MAX_ANSWERS
    num_answers = int(given.num) if is_count else 0
    try:
        temperature = float(given.temperature)
    except (TypeError, ValueError):
        temperature = -1.0
    if not isinstance(given.text, str) or not given.text.strip():
        return _problem("Prompt", "Type a prompt, or take another one.")
    if len(states) < 2:
        return _problem("Left and Right", "Choose two states of the model.")
    if not num_answers:
        return _problem("Answers", f"Use a number from 1 to {MAX_ANSWERS}.")
    if not 0 <= temperature <= 10:
        return _problem("Temperature", "Use a number from 0 (only the greedy answer) to 10.")
    text, answer = given.text[:MAX_CHARS], str(given.answer or "")[:MAX_ANSWER_CHARS]
    number = _number(parse_tokens(given.taken).get("next")) - 1
    states = list(dict.fromkeys(states))  # one column where both sides are the same state
    turns = min(_number(parse_tokens(ask).get("turns")), MAX_TURNS) or None
    taken = number if number >= 0 else None
    return PlayRequest(text, answer, states, num_answers, temperature, taken, turns)


def _asked(views: Views, run: RunRow, request: PlayRequest) -> Asked:
    names: dict[str, str] = {}
    accuracy: dict[State, float | None] = {}
    for state in request.states:
        of = views.run(state.run_id) or run
        names[state.run_id] = of.name
        accuracy[state] = dict(views.curves(of).metrics.get(ACCURACY, ())).get(state.step)
    return Asked(run.id, run.name, request.temperature, names, accuracy)


def _question(ask: Any) -> str:
    question = parse_tokens(ask).get("id")
    return question if isinstance(question, str) else ""


def _number(value: Any) -> int:
    return value if _is_step(value) else 0


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9


def _problem(field: str, hint: str) -> str:
    return f'<p class="problem" role="alert">{esc(field)}: {esc(hint)}</p>'
