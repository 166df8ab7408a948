"""The Playground tab: one prompt, answered side by side by two states of a run's model.

The states are before training and the saved steps. The run's rubric scores the answers. A run that
comes into view gets a held-out prompt and its answers, unless something is training.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import gradio as gr

from grpo_core.errors import StudioError
from grpo_core.exporting.play_request import PlayRequest
from grpo_core.store import RunRow
from ui.components.html_panel import QUIET, html_panel
from ui.render import status
from ui.render.played import Asked, played, state_name
from ui.render.text import count, esc
from ui.server.calls import slow
from ui.server.refresh import apart
from ui.server.service import Service
from ui.server.views import Views
from ui.tabs.frame import (
    LATEST,
    SKIP,
    Frame,
    Tab,
    components_of,
    hidden_values,
    parse_tokens,
    token,
)

MAX_ANSWERS = 16  # on each side
MAX_CHARS = 20_000
MAX_ANSWER_CHARS = 2_000
# What a question asks for before the answers: the run's first held-out prompt unless somebody typed
# one, the next prompt, or none.
FIRST, NEXT = "first", "next"
ACCURACY = "heldout/accuracy"
NO_RUN = "Start a run on the Train tab; its saved states appear here."


@dataclass(frozen=True, slots=True)
class PlayInputs:
    """What an answer depends on: components on the page, in a request their values."""

    text: Any
    answer: Any
    left: Any
    right: Any
    num: Any
    temperature: Any
    taken: Any = "{}"  # the prompt that was taken last: {text, next, waits}


@dataclass(frozen=True, slots=True)
class _Tools:
    left: gr.Dropdown
    right: gr.Dropdown
    num: gr.Number
    temperature: gr.Textbox
    take: gr.Button
    go: gr.Button


def build_playground(frame: Frame, views: Views, service: Service) -> Tab:
    """Build the tab and connect its events. Call it inside gr.Blocks."""
    with gr.Column(elem_id="playground-box", elem_classes="card-box stack", min_width=0):
        about = html_panel(_about(None, []), elem_id="play-about")
        text, answer = _build_prompt()
        tools = _build_tools()
        answers = html_panel(elem_id="play-answers")
    ask, reply, taken, seen = hidden_values("state-play-", ask="", reply="", taken="{}", seen="{}")
    inputs = PlayInputs(
        text=text,
        answer=answer,
        left=tools.left,
        right=tools.right,
        num=tools.num,
        temperature=tools.temperature,
        taken=taken,
    )
    for button, take in ((tools.go, ""), (tools.take, NEXT)):
        button.click(None, frame.run, ask, js=f"run => studioAsk(run, {take!r})", **QUIET)
    frame.run.change(None, [frame.run, ask], [ask, answers], js="studioOtherRun", **QUIET)
    ask.change(None, ask, answers, js="studioWaits", **QUIET)
    answered = ask.change(
        slow(lambda *values: reply_to(views, service, values[0], PlayInputs(*values[1:]))),
        [ask, *components_of(inputs)],
        reply,
        **LATEST,
    )
    answered.success(
        None,
        [reply, ask, taken, frame.run],
        [text, answer, taken, ask, answers],
        js="studioAnswered",
        **QUIET,
    )
    answered.failure(None, None, answers, js="studioNoAnswer", **QUIET)
    show = ShowPlayground(views, service)
    shown, outputs = [frame.run, seen, ask, taken], [about, tools.left, tools.right, seen, ask]
    fill = frame.refresh.js("playground", show, shown)
    # Each new `seen` refreshes the tab once more, and that refresh may ask the first question.
    seen.change(None, shown, outputs, js=fill, **QUIET)
    in_view = f"(tab, ...given) => tab === 'playground' ? ({fill})(...given) : []"
    apart(frame.run.change)(None, [frame.tab, *shown], outputs, js=in_view, **QUIET)
    return Tab(shown, outputs, show)


def _build_prompt() -> tuple[gr.Textbox, gr.Textbox]:
    with gr.Row(elem_id="play-ask"):
        text = gr.Textbox(
            label="Prompt",
            lines=2,
            max_lines=10,
            max_length=MAX_CHARS,
            placeholder="Type a prompt, or take another one",
            elem_id="play-prompt",
            interactive=True,
            scale=3,
        )
        answer = gr.Textbox(
            label="Right answer",
            max_lines=1,
            max_length=MAX_ANSWER_CHARS,
            placeholder="for checks that compare with one",
            elem_id="play-answer",
            interactive=True,
            scale=1,
        )
    return text, answer


def _build_tools() -> _Tools:
    with gr.Row(elem_id="play-tools"):
        left, right = (
            gr.Dropdown(
                [("before training", 0)],
                value=0,
                label=label,
                elem_id=f"play-{label.lower()}",
                interactive=True,
                scale=0,
                min_width=160,
            )
            for label in ("Left", "Right")
        )
        return _Tools(
            left=left,
            right=right,
            num=gr.Number(
                4, label="Answers", elem_id="play-count", interactive=True, scale=0, min_width=90
            ),
            temperature=gr.Textbox(
                "1",
                label="Temperature",
                max_lines=1,
                elem_id="play-temperature",
                interactive=True,
                scale=0,
                min_width=90,
            ),
            take=gr.Button("Another prompt", scale=0, min_width=130),
            go=gr.Button("Answer", variant="primary", scale=0, min_width=100, elem_id="play-go"),
        )


# ---- what a person asks ----------------------------------------------------------------------


def reply_to(views: Views, service: Service, ask: Any, given: PlayInputs) -> str:
    """The reply to a question as JSON: {id, html}, or with a prompt {id, html, text, right, next}.

    After a prompt the page asks for its answers, unless `html` says why they wait.
    """
    asked = parse_tokens(ask)
    run = views.run(asked.get("run"))
    if run is None:
        said: dict[str, Any] = {"html": status.banner("There is no run yet.", NO_RUN)}
    elif asked.get("take") in (FIRST, NEXT):
        said = take_prompt(service, run.id, asked["take"], given)
    else:
        said = {"html": play(views, service, run, given)}
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


def play(views: Views, service: Service, run: RunRow, given: PlayInputs) -> str:
    """Both sides as cards, or a message that says which field is wrong."""
    steps = [step for step in (given.left, given.right) if _is_step(step)]
    is_count = isinstance(given.num, (int, float)) and 1 <= given.num <= MAX_ANSWERS
    num_answers = int(given.num) if is_count else 0
    try:
        temperature = float(given.temperature)
    except (TypeError, ValueError):
        temperature = -1.0
    if not isinstance(given.text, str) or not given.text.strip():
        return _problem("Prompt", "Type a prompt, or take another one.")
    if len(steps) < 2:
        return _problem("Left and Right", "Choose two states of the model.")
    if not num_answers:
        return _problem("Answers", f"Use a number from 1 to {MAX_ANSWERS}.")
    if not 0 <= temperature <= 10:
        return _problem("Temperature", "Use a number from 0 (only the greedy answer) to 10.")
    text, answer = given.text[:MAX_CHARS], str(given.answer or "")[:MAX_ANSWER_CHARS]
    number = _number(parse_tokens(given.taken).get("next")) - 1
    states = list(dict.fromkeys(steps))  # one column where both sides are the same state
    request = PlayRequest(
        text, answer, states, num_answers, temperature, number if number >= 0 else None
    )
    try:
        result = service.play(run.id, request)
    except StudioError as error:
        return status.banner("There is no answer.", str(error))
    accuracy = dict(views.curves(run).metrics.get(ACCURACY, ()))
    return played(result, Asked(run.name, temperature, accuracy))


def _number(value: Any) -> int:
    return value if _is_step(value) else 0


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9


def _problem(field: str, hint: str) -> str:
    return f'<p class="problem" role="alert">{esc(field)}: {esc(hint)}</p>'


# ---- what is shown ---------------------------------------------------------------------------


def _about(run: RunRow | None, steps: list[int]) -> str:
    if run is None:
        return status.empty("Ask a model before and after its training", NO_RUN)
    if run.example:
        return (
            '<p class="help">This is the recorded example. Its trained weights are not shipped, '
            "so only the model before training answers. Start a run on the Train tab to compare "
            "before with after.</p>"
        )
    if not steps:
        return (
            f'<p class="help">“{esc(run.name)}” has no saved state yet, so there is only the '
            "model before training. States are saved every few steps (Checkpoint every) and at "
            "the end.</p>"
        )
    return (
        f'<p class="help">“{esc(run.name)}”: {count(len(steps), "saved state")}. '
        "The greedy answer takes the likeliest token each time. The others are sampled, with the "
        "same random numbers on both sides.</p>"
    )


class ShowPlayground:
    """Keeps the states on offer equal to the saved ones, and asks a first question of each run."""

    def __init__(self, views: Views, service: Service):
        self.views, self.service = views, service

    def __call__(self, run_id: Any, seen: Any, ask: Any, taken: Any) -> list[Any]:
        run = self.views.run(run_id)
        steps = [row.step for row in self.views.store.checkpoints(run.id)] if run else []
        now, waits = token([run and run.id, steps]), parse_tokens(taken).get("waits") is True
        was = parse_tokens(seen)
        if was.get("states") == now:
            return [SKIP] * 4 + [self._question(run, steps, ask, waits)]
        choices = [(state_name(s), s) for s in [0, *steps]]
        # Another run: choose its first and its last state. A new state of the same run leaves the
        # choice as it is, once somebody had an answer.
        is_other = was.get("run") != (run and run.id)
        left: dict[str, Any] = {"value": 0} if is_other else {}
        right: dict[str, Any] = {}
        if is_other or waits or len(steps) == 1:
            right["value"] = steps[-1] if steps else 0
        return [
            _about(run, steps),
            gr.update(choices=choices, **left),
            gr.update(choices=choices, **right),
            json.dumps({"states": now, "run": run and run.id}),
            SKIP,
        ]

    def _question(self, run: RunRow | None, steps: list[int], ask: Any, waits: bool) -> Any:
        """The first question of a run that has a saved state, or the one that waited."""
        if run is None or not steps:
            return SKIP
        if parse_tokens(ask).get("run") != run.id:
            take = FIRST
        elif waits and not self.service.reason_to_wait(run.id):
            take = ""
        else:
            return SKIP
        return json.dumps({"run": run.id, "id": token([run.id, steps, take]), "take": take})
