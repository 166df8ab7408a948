"""How the Playground, Preview groups and the set-up show what acts in an environment."""

from __future__ import annotations

import json

import pytest
from recorded import HOSTILE, FakeService, record_run

from grpo_core.config import nest, parse
from grpo_core.exporting.play_request import PlayResult, Side, State
from grpo_core.types import Completion, Prompt, Rollout, RunStatus, Turn, TurnRole
from ui.render.played import Asked, played
from ui.tabs.play_answers import PlayInputs, look, play, reply_to
from ui.tabs.playground import ShowPlayground
from ui.tabs.workbench import tried

CALL = '{"expression": "3*4"}'
WAITS = Turn(TurnRole.OBSERVATION, "", 0, 0, "calculate", CALL)
ANSWERED = Turn(TurnRole.OBSERVATION, "12", 5, 3, "calculate", CALL, "", 0.25)
ASKED = Asked("r", "a run", 1.0, {"r": "a run"}, {})


def action(text: str) -> Turn:
    return Turn(TurnRole.ACTION, text, 0, 5)


def acting(*turns: Turn, ended: str = "stop", said: str = "", **scores: float) -> Rollout:
    text = "".join(t.text for t in turns)
    return Rollout(Completion(text, ended, 7, turns, said), scores, sum(scores.values()) or None)


def result(*rollouts: Rollout, begun: str = "", steps: tuple[int, ...] = (0,)) -> PlayResult:
    sides = [Side(State("r", step), rollouts[0], rollouts[1:], begun) for step in steps]
    return PlayResult(Prompt("p", "3*4=?", "12", "products"), "accuracy", tuple(sides))


WHOLE = acting(action("<tool>3*4</tool>"), ANSWERED, action("so 12"), said="so 12", accuracy=1.0)
PAUSED = acting(action("<tool>3*4</tool>"), WAITS, ended="")


def inputs(**more) -> PlayInputs:
    values = {"text": "Q", "answer": "", "left_run": "", "left": 0, "right_run": "", "right": 0}
    return PlayInputs(**{**values, "num": 1, "temperature": "1", **more})


def test_an_answer_shows_action_call_and_observation():
    page = played(result(WHOLE, WHOLE), ASKED)
    for shown in ("&lt;tool&gt;3*4&lt;/tool&gt;", "calculate", "3*4", "12", "0.25 s", "so 12"):
        assert shown in page
    assert page.count("2 turns · 7 tokens") == 2
    assert "<b>2</b> tool calls" in page
    assert "data-waits" not in page


def test_an_answer_that_pauses_says_so_and_offers_the_next_turn():
    page = played(result(PAUSED, WHOLE), ASKED)
    assert 'data-waits="on"' in page
    assert "<b>1 of 2</b> go on: press Next turn" in page
    assert "1 turn · pauses" in page
    assert "No tokens were left" not in page
    assert page.count('data-do="keep"') == 1  # only what has ended can be kept


def test_a_call_under_way_is_seen_while_it_is_written():
    page = played(result(PAUSED), ASKED, "writing")
    assert "calls a tool…" in page
    assert "data-waits" not in page
    page = played(result(acting(action("<to"), ended="")), ASKED, "writing")
    assert "writing…" in page


def test_only_what_differs_between_the_sides_is_marked():
    other = acting(action("<tool>3*5</tool>"), ANSWERED, action("so 12"), accuracy=1.0)
    sides = (Side(State("r", 0), other, ()), Side(State("r", 9), WHOLE, ()))
    page = played(PlayResult(Prompt("p", "Q", "", "products"), "accuracy", sides), ASKED)
    assert "<del>5</del>" in page
    assert "<ins>4</ins>" in page
    assert page.count("<del>") == page.count("<ins>") == 1


def test_what_is_kept_is_what_the_policy_said():
    assert 'data-text="so 12"' in played(result(WHOLE), ASKED)


def test_what_the_environment_adds_to_the_prompt_is_shown():
    page = played(result(WHOLE, begun=" You have a few guesses."), ASKED)
    assert "the environment adds" in page
    assert "You have a few guesses." in page
    assert "environment adds" not in played(result(WHOLE), ASKED)


@pytest.mark.parametrize("payload", HOSTILE)
def test_text_of_tools_and_environments_is_shown_as_text(payload):
    observed = Turn(TurnRole.OBSERVATION, payload, 5, 3, payload, payload, payload, 0.1)
    rollout = acting(action(payload), observed, action("x"), said=payload, accuracy=1.0)
    pages = [played(result(rollout, begun=payload), ASKED)]
    group = type("Group", (), {"prompt": Prompt("p", "Q", "1", "t"), "rollouts": [rollout]})
    trial = {"groups": [group], "seconds": {"accuracy": 0.1}, "notes": {}, "tied": {}}
    pages.append(tried(type("Trial", (), trial)))
    for page in pages:
        assert payload not in page or "<" not in payload
        assert page.count("<script") == 0


def test_preview_groups_show_turns():
    group = type("Group", (), {"prompt": Prompt("p", "Q", "1", "t"), "rollouts": [WHOLE]})
    trial = {"groups": [group], "seconds": {"accuracy": 0.1}, "notes": {}, "tied": {}}
    page = tried(type("Trial", (), trial))
    assert 'class="turns"' in page
    assert "calculate" in page


def test_a_step_asks_for_so_many_turns(views, store):
    run_id = record_run(store)
    for turns, asked in ((2, 2), (0, None), (-1, None), ("x", None), (10**6, 1000)):
        service = FakeService(result(PAUSED))
        ask = json.dumps({"run": run_id, "id": "q", "take": "", "turns": turns})
        reply_to(views, service, ask, inputs())
        [(_, (_, request, question), _)] = service.asked
        assert (request.turns, question) == (asked, "q")


def test_the_answers_under_way_are_those_of_the_same_step(views, store):
    run_id = record_run(store)
    ask = json.dumps({"run": run_id, "id": "q", "take": "", "turns": 2})
    values = [getattr(inputs(), name) for name in PlayInputs.__slots__]
    [html] = look(views, FakeService((3, result(PAUSED))), 0, ask, *values)
    assert 'data-revision="3"' in html
    assert "calls a tool…" in html


def test_next_turn_is_offered_where_there_is_an_environment(views, store):
    show = ShowPlayground(views, FakeService())
    for task, offered in (("products", True), ("sums", False)):
        settings = {"task.name": task, "task.heldout_size": 0}
        run_id = store.create_run(parse(nest(settings)), task, status=RunStatus.FINISHED)
        about = show(run_id, "{}", "", "{}", None, None)[0]
        assert ("in-turns" in about) == offered
    settings = {"task.name": "products", "task.environment": "none"}
    run_id = store.create_run(parse(nest(settings)), "off", status=RunStatus.FINISHED)
    assert "in-turns" not in show(run_id, "{}", "", "{}", None, None)[0]


def test_a_stopped_answer_says_that_it_was_stopped(views, store):
    from grpo_core.exporting.play_request import PlayStopped

    stopped = PlayStopped("The answers were stopped.")
    stopped.partial = result(PAUSED)
    run = views.run(record_run(store))
    page = play(views, FakeService(stopped), run, inputs())
    assert "You stopped the answers" in page
    assert "1 turn · stopped" in page
