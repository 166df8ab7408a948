"""The Playground, previews and checks act in the environment of a task, turn by turn."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from grpo_core.config import nest, parse
from grpo_core.environments.registry import add_environments
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.exporting import answers
from grpo_core.exporting.play_request import PlayRequest, PlayStopped, PlayWatch, State
from grpo_core.models.model_cache import ModelCache
from grpo_core.preflight.service import PreflightService
from grpo_core.store import Store
from grpo_core.types import RunStatus, TurnRole
from tests.environments.conftest import ASKED
from tests.processes import until

NUM = 7  # sampled answers beside the greedy one


def config(model, **more):
    settings = {
        "model.name": str(model),
        "task.name": "products",
        "task.heldout_size": 8,
        "train.group_size": 4,
        "train.max_new_tokens": 80,
    }
    return parse(nest({**settings, **more}))


@pytest.fixture(scope="module")
def played(calling_model, tmp_path_factory):
    """A store with a run of the model that calls a calculator, and its service."""
    store = Store(tmp_path_factory.mktemp("played") / "runs.sqlite")
    run_id = store.create_run(config(calling_model), "calls", status=RunStatus.FINISHED)
    return store, run_id, PreflightService(store)


def request(run_id, **more) -> PlayRequest:
    return PlayRequest(ASKED, "12", [State(run_id, 0)], NUM, 1.0, **more)


def completions(result):
    [side] = result.sides
    return [r.completion for r in (side.greedy, *side.sampled)]


def actions(completion) -> int:
    return sum(t.role is TurnRole.ACTION for t in completion.turns)


def timeless(completion):
    """Its turns, without the seconds that tools took."""
    return [(t.role, t.text, t.tool, t.arguments, t.error) for t in completion.turns]


def test_answers_call_tools_and_are_scored_without_their_observations(played):
    _, run_id, service = played
    [side] = service.play(run_id, request(run_id)).sides
    calls = [t for r in side.sampled for t in r.completion.turns if t.tool]
    assert any(t.tool == "calculate" and t.text == "12" for t in calls)
    for r in (side.greedy, *side.sampled):
        said = r.completion.graded.text
        assert r.scores["accuracy"] == float("<answer>12</answer>" in said)


def test_each_step_adds_one_turn_to_the_same_answers(played):
    _, run_id, service = played
    whole = completions(service.play(run_id, request(run_id)))
    most = max(map(actions, whole))
    assert most == 3, "the case must have trajectories of three turns"
    for turns in range(1, most + 1):
        for part, all_of_it in zip(
            completions(service.play(run_id, request(run_id, turns=turns))), whole, strict=True
        ):
            assert actions(part) == min(turns, actions(all_of_it))
            done = timeless(part)
            if part.finish_reason:
                assert done == timeless(all_of_it)
            else:  # it waits for the answer to its call
                assert (part.turns[-1].text, part.turns[-1].seconds) == ("", None)
                assert done[:-1] == timeless(all_of_it)[: len(done) - 1]


def test_answers_that_pause_are_not_scored(played):
    _, run_id, service = played
    [side] = service.play(run_id, request(run_id, turns=1)).sides
    assert any(not r.completion.finish_reason for r in side.sampled)
    assert all(r.scores == {} for r in (side.greedy, *side.sampled))


def watched(store, run_id, given, monkeypatch, partial=None):
    monkeypatch.setattr(answers, "LOOK_SECONDS", -1.0)  # every token is looked at
    watch, seen = PlayWatch(), []
    watch.partial = partial
    show = watch.show
    watch.show = lambda shown: (seen.append(completions(shown)), show(shown))
    models = ModelCache(lambda wanted: torch.device("cpu"))
    return answers.play(store, models, run_id, given, watch), seen


def test_calls_are_seen_before_their_observations(played, monkeypatch):
    store, run_id, _ = played
    whole, seen = watched(store, run_id, request(run_id), monkeypatch)
    assert seen[-1] == completions(whole)
    with_calls = next(i for i, c in enumerate(seen[-1]) if actions(c) > 1)
    grown = [c[with_calls] for c in seen if len(c) > with_calls]
    tails = [c.turns[-1] for c in grown if c.turns]
    waiting = [t for t in tails if t.role is TurnRole.OBSERVATION]
    assert waiting
    assert all((t.text, t.seconds, t.tool) == ("", None, "calculate") for t in waiting)
    assert all(not c.finish_reason for c in grown if c.turns[-1] in waiting)
    assert len({c.text for c in grown}) > 5


def test_a_step_keeps_the_turns_that_are_on_show(played, monkeypatch):
    store, run_id, service = played
    first = service.play(run_id, request(run_id, turns=1))
    _, seen = watched(store, run_id, request(run_id, turns=2), monkeypatch, first)
    for c, before in zip(zip(*seen, strict=True), completions(first), strict=True):
        assert all(actions(now) >= actions(before) for now in c)


def test_stop_ends_a_tool_that_hangs(calling_model, tmp_path, store):
    file = tmp_path / "sleeps.py"
    file.write_text(
        "import time\n"
        "class Sleeps:\n"
        "    def reset(self, **row): ...\n"
        "    def wait(self, text: str) -> str:\n"
        '        """\n        Wait.\n\n        Args:\n            text: Any.\n        """\n'
        "        time.sleep(600)\n"
    )
    add_environments([str(file)])
    settings = {"task.environment": "Sleeps", "rollout.tool_seconds": 600}
    run_id = store.create_run(config(calling_model, **settings), "r", status=RunStatus.FINISHED)
    service = PreflightService(store)
    caught = []

    def ask():
        with pytest.raises(PlayStopped) as stopped:
            service.play(run_id, request(run_id), "q")
        caught.append(stopped.value)

    thread = threading.Thread(target=ask)
    thread.start()

    def is_calling() -> bool:
        found = service.look_at_play("q")
        return found is not None and any(
            c.turns and c.turns[-1].role is TurnRole.OBSERVATION for c in completions(found[1])
        )

    until(is_calling)
    stopped_at = time.monotonic()
    service.stop_play("q")
    thread.join(120)
    assert time.monotonic() - stopped_at < 60
    [error] = caught
    assert any(c.turns[-1].tool == "wait" for c in completions(error.partial))


def test_preview_groups_act_in_the_environment(played, calling_model):
    _, _, service = played
    trial = service.try_rubric(config(calling_model, **{"train.group_size": 8}), 2)
    turns = [t for g in trial.groups for r in g.rollouts for t in r.completion.turns]
    assert {t.role for t in turns} == set(TurnRole)
    assert all(r.reward is not None for g in trial.groups for r in g.rollouts)


def test_check_model_answers_in_the_environment(played, calling_model):
    _, _, service = played
    plain = service.check_model(config(calling_model, **{"task.environment": "none"}))[1]
    acting = service.check_model(config(calling_model))[1]
    assert "<result>" in acting or acting == plain  # a greedy answer need not call


def test_a_preview_shows_what_reset_adds(played, calling_model, bad_environment):
    _, _, service = played
    asked = config(calling_model, **{"task.environment": bad_environment})
    for prompt in service.preview(asked, 2).prompts:
        assert " Begin with " in prompt.text
    with pytest.raises(InvalidConfig, match=r"no such environment.*--environments"):
        service.preview(config(calling_model, **{"task.environment": "Unknown"}), 1)


def test_a_prompt_that_leaves_no_room_is_refused_in_one_line(played):
    _, run_id, service = played
    long = PlayRequest("Q: " + "1" * 200, "", [State(run_id, 0)], 1, 1.0)
    with pytest.raises(StudioError, match=r"leaves no room for the answer.*Shorten it"):
        service.play(run_id, long)
