"""Commands to a run that really trains: pause, step, knobs, breakpoints, edited rewards."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import asdict, replace

import pytest
from processes import until
from trained_runs import configured, record, started_paused, wait_for

import grpo_core.training.rollout_batch as draw
import grpo_core.training.timing as clock
from grpo_core.config import nest, parse
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.exporting.play_request import PlayRequest, State
from grpo_core.preflight.service import PreflightService, ServiceOptions
from grpo_core.runs.execution import Job, execute
from grpo_core.runs.manager import RunManager
from grpo_core.training.breakpoints import parse_breakpoints
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import GroupsScored, Paused, Phase, PhaseStarted, RunStatus, StepCompleted
from ui.render.status import status_line


@pytest.mark.slow
def test_pause_takes_effect_within_a_token_and_changes_no_number(manager, tiny_settings):
    config = configured(tiny_settings, **{"train.steps": 40, "train.checkpoint_every": 0})
    alone = manager.start(config)
    wait_for(manager, alone, RunStatus.FINISHED)
    run_id = manager.start(config)
    for at in (2, 5, 9):
        while manager.store.run(run_id).steps_done < at:
            time.sleep(0.002)
        tabs = [threading.Thread(target=manager.pause, args=(run_id,)) for _ in range(10)]
        for tab in tabs:
            tab.start()
        wait_for(manager, run_id, RunStatus.PAUSED)
        steps = manager.store.run(run_id).steps_done
        time.sleep(0.2)
        assert manager.store.run(run_id).steps_done == steps
        for tab in [threading.Thread(target=manager.resume, args=(run_id,)) for _ in range(10)]:
            tab.start()
    wait_for(manager, run_id, RunStatus.FINISHED)
    assert record(manager.store, run_id) == record(manager.store, alone)


def test_step_goes_one_optimiser_step_or_one_phase_and_waits_again(manager, tiny_settings):
    run_id = started_paused(manager, configured(tiny_settings))
    assert manager.store.run(run_id).steps_done == 0
    manager.step(run_id)
    wait_for(manager, run_id, RunStatus.PAUSED, steps_done=1)
    for done in (2, 3):
        manager.step(run_id)
        wait_for(manager, run_id, RunStatus.PAUSED, steps_done=done)
    seen = []
    for _ in range(3):
        before = manager.store.run(run_id).error
        manager.step(run_id, "phase")
        while (error := manager.store.run(run_id).error) in (None, before):
            time.sleep(0.01)
        seen.append(error.split(".")[0])
    assert seen == [
        "Before sampling of step 4",
        "Before scoring of step 4",
        "Before updating of step 4",
    ]
    with pytest.raises(StudioError, match="by phase or by step"):
        manager.step(run_id, "mile")
    manager.stop(run_id)
    wait_for(manager, run_id, RunStatus.STOPPED)


def test_knobs_take_effect_next_step_and_resume_is_exact(manager, tiny_settings):
    store, config = manager.store, configured(tiny_settings, **{"train.warmup_steps": 0})
    run_id = started_paused(manager, config, "step = 3")
    for name, value in (
        ("train.learning_rate", 1e-3),
        ("algorithm.kl_coef", 0.5),
        ("train.temperature", 0.7),
    ):
        manager.set_knob(run_id, name, value)
    with pytest.raises(InvalidConfig, match=r"train\.temperature"):
        manager.set_knob(run_id, "train.temperature", -1)
    with pytest.raises(StudioError, match="cannot be changed while a run goes on"):
        manager.set_knob(run_id, "train.seed", 1)
    manager.resume(run_id)
    wait_for(manager, run_id, RunStatus.FINISHED)
    steps = {s["step"]: s for s in store.steps(run_id)}
    assert [steps[s]["learning_rate"] for s in (3, 4, 6)] == [1e-4, 1e-3, 1e-3]
    assert [steps[s]["kl_coef"] for s in (3, 4, 6)] == [0.02, 0.5, 0.5]
    settings = [i for i in store.interventions(run_id) if i.kind == "setting"]
    assert {(i.step, i.field): i.value for i in settings} == {
        (4, "train.learning_rate"): 1e-3,
        (4, "algorithm.kl_coef"): 0.5,
        (4, "train.temperature"): 0.7,
    }
    before = record(store, run_id)
    store.rewind(
        run_id, 2
    )  # as if it had been killed before the knobs were turned: they are turned again in their step
    store.set_status(run_id, RunStatus.INTERRUPTED)
    manager.resume(run_id)
    wait_for(manager, run_id, RunStatus.FINISHED)
    assert record(store, run_id) == before


@pytest.mark.parametrize(
    "settings",
    [{}, {"algorithm.advantage": "value"}, {"rubric.scale": True}],
    ids=["group", "critic", "scaled"],
)
def test_an_edited_reward_acts_as_if_the_rubric_had_given_it(
    manager, tiny_settings, settings, monkeypatch
):
    store, config = manager.store, configured(tiny_settings, **settings)
    run_id = started_paused(manager, config)
    group = store.group(store.group_ids(run_id, 1)[1])
    manager.edit_reward(run_id, 1, 1, 2, 3.5)
    until(lambda: store.group(store.group_ids(run_id, 1)[1]).rollouts[2].edited)
    edited = store.group(store.group_ids(run_id, 1)[1])
    assert store.run(run_id).status is RunStatus.PAUSED  # and still before the update
    rewards = [3.5 if r.position == 2 else r.reward for r in group.rollouts]
    assert [r.reward for r in edited.rollouts] == rewards
    assert [r.edited for r in edited.rollouts] == [False, False, True, False]
    if not settings:
        mean, std = statistics.mean(rewards), statistics.stdev(rewards)
        assert [r.advantage for r in edited.rollouts] == pytest.approx(
            [(r - mean) / (std + 1e-4) for r in rewards], abs=1e-9
        )
    manager.resume(run_id)
    wait_for(manager, run_id, RunStatus.FINISHED)
    by_hand = record(store, run_id)

    # the same run under a rubric that gives this very reward: no control, no edit
    score, wanted = draw.score, (group.prompt_id, 2)

    def generous(*arguments):
        groups, notes = score(*arguments)
        given = []
        for prompt, siblings in groups:
            if prompt.id == wanted[0] and generous.step == 1:
                edited = replace(siblings[wanted[1]], reward=3.5, edited=True)
                siblings = (*siblings[: wanted[1]], edited, *siblings[wanted[1] + 1 :])
            given.append((prompt, siblings))
        return given, notes

    monkeypatch.setattr(draw, "score", generous)
    other = store.create_run(config, "rubric", status=RunStatus.LOADING)
    generous.step = 0

    def listen(event):
        if isinstance(event, PhaseStarted) and event.phase is Phase.SAMPLING:
            generous.step = event.step

    assert execute(store, Job(other, config, RunControl()), train, listen) is RunStatus.FINISHED, (
        store.run(other).error
    )
    by_rubric = record(store, other)
    assert by_rubric["steps"] == by_hand["steps"]
    assert by_rubric["groups"] == by_hand["groups"]

    # and resumed from before the edit, it is made again
    monkeypatch.undo()
    store.rewind(run_id, -1)
    store.set_status(run_id, RunStatus.INTERRUPTED)
    manager.resume(run_id)
    wait_for(manager, run_id, RunStatus.FINISHED)
    assert record(store, run_id) == by_hand


def test_rewards_of_no_waiting_step_cannot_be_edited(manager, tiny_settings):
    run_id = started_paused(manager, configured(tiny_settings))
    for step, group, completion in ((2, 0, 0), (1, 5, 0), (1, 0, 9), (1, -1, 0)):
        with pytest.raises(StudioError, match="step"):
            manager.edit_reward(run_id, step, group, completion, 1.0)
    manager.stop(run_id)
    wait_for(manager, run_id, RunStatus.STOPPED)
    with pytest.raises(StudioError, match="is stopped"):
        manager.pause(run_id)


def test_checkpoint_now_saves_the_last_whole_step_even_while_the_run_waits(manager, tiny_settings):
    run_id = started_paused(
        manager, configured(tiny_settings, **{"train.checkpoint_every": 0}), "step = 4"
    )
    manager.checkpoint(run_id)
    until(lambda: manager.store.checkpoints(run_id))
    assert [c.step for c in manager.store.checkpoints(run_id)] == [3]
    assert manager.store.run(run_id).status is RunStatus.PAUSED
    manager.stop(run_id)
    wait_for(manager, run_id, RunStatus.STOPPED)


def test_a_run_resumes_and_branches_by_the_manager_too(manager, tiny_settings):
    store, config = manager.store, configured(tiny_settings)
    whole = manager.start(config)
    wait_for(manager, whole, RunStatus.FINISHED)
    run_id = started_paused(manager, config, "step = 4")
    child = manager.branch(whole, 2, {"train.learning_rate": 1e-3}, "faster")
    manager.stop(run_id)
    wait_for(manager, run_id, RunStatus.STOPPED)
    wait_for(manager, child, RunStatus.FINISHED)
    manager.resume(run_id)
    wait_for(manager, run_id, RunStatus.FINISHED)
    assert record(store, run_id) == record(store, whole)
    branch = store.run(child)
    assert (branch.name, branch.parent_run_id, branch.parent_step, branch.steps_done) == (
        "faster",
        whole,
        2,
        6,
    )
    with pytest.raises(StudioError, match="has finished"):
        manager.resume(whole)


def test_breakpoints_are_kept_for_a_resume_by_another_server(manager, tiny_settings):
    run_id = manager.start(configured(tiny_settings), conditions="step = 2")
    wait_for(manager, run_id, RunStatus.PAUSED)
    manager.set_breakpoints(run_id, "step=5, kl > 1e6")
    manager.close()  # stops it after step 1
    assert wait_for(manager, run_id, RunStatus.STOPPED).steps_done == 1
    other = RunManager(manager.store, train)
    other.resume(run_id)
    run = wait_for(other, run_id, RunStatus.PAUSED)
    assert run.steps_done == 4
    assert run.breakpoints == "step = 5, kl > 1000000"
    assert "pauses when step = 5, kl &gt; 1000000" in status_line(run, [], 0, None, time.time())
    other.set_breakpoints(run_id, "")
    other.stop(run_id)
    wait_for(other, run_id, RunStatus.STOPPED)
    other.resume(run_id)
    wait_for(other, run_id, RunStatus.FINISHED)
    other.close()


def test_no_time_passes_for_a_run_that_waits_wherever_it_does(tiny_settings, monkeypatch):
    ahead = 0.0

    def wait_an_hour(event):
        nonlocal ahead
        if isinstance(event, Paused):

            def return_later():
                nonlocal ahead
                ahead += 3600
                control.step("phase")

            threading.Timer(0.05, return_later).start()
        elif isinstance(event, StepCompleted):
            done.append(event.metrics)

    monkeypatch.setattr(clock, "perf_counter", lambda: time.perf_counter() + ahead)
    control, done = RunControl(), []
    control.step("phase")
    train(parse(nest({**tiny_settings, "train.eval_every": 1})), wait_an_hour, control)
    assert (
        ahead == 3600 * 14
    )  # before loading, before 3 × (sampling, scoring, updating), before 4 evaluations
    spent = [
        (name, value)
        for m in done
        for name, value in asdict(m).items()
        if name.endswith("_seconds")
    ]
    assert len(spent) == 3 * 6
    assert all(0 <= value < 1800 for _, value in spent), spent


def test_a_paused_run_lends_its_policies_to_the_playground_unchanged(manager, tiny_settings):
    store, config = manager.store, configured(tiny_settings, **{"train.learning_rate": 0.03})
    alone = manager.start(config)
    wait_for(manager, alone, RunStatus.FINISHED)
    run_id = started_paused(manager, config, "step = 4")
    desk = PreflightService(store, ServiceOptions(in_use=lambda: manager.running))
    played = desk.play(
        run_id, PlayRequest("Q: 1+2=?", "3", [State(run_id, 0), State(run_id, 2)], 4, 1.0)
    )
    before, after = ([r.completion.text for r in side.sampled] for side in played.sides)
    assert len(before) == len(after) == 4
    assert before != after  # two different policies were asked
    assert store.run(run_id).status is RunStatus.PAUSED
    manager.resume(run_id)
    wait_for(manager, run_id, RunStatus.FINISHED)
    assert record(store, run_id) == record(store, alone)


def test_breakpoints_are_parsed_leniently_and_the_rest_refused_with_a_hint():
    assert [str(b) for b in parse_breakpoints(" kl > .2, verdict = phantom,step=40 ,, ")] == [
        "kl > 0.2",
        "verdict = phantom",
        "step = 40",
    ]
    assert parse_breakpoints("") == ()
    for text in (
        "kl",
        "kl > much",
        "kl > nan",
        "nope > 1",
        "verdict > 1",
        "verdict = nope",
        "kl >",
        "<script>",
        "kl = = 2",
        "a" * 3000,
        "kl > 1," * 300,  # what is beyond a limit must not be dropped
    ):
        with pytest.raises(InvalidConfig, match="break = "):
            parse_breakpoints(text)


def test_a_breakpoint_tests_verdicts_steps_and_metrics(tiny_settings):
    control, seen = RunControl(), []
    control.set_breakpoints(parse_breakpoints("kl > 1e-9"))

    def emit(event):
        seen.append(event)
        if type(event).__name__ == "Paused":
            control.resume()

    train(parse(nest(tiny_settings)), emit, control)
    # The KL of step 1 is 0. The KL of step 2 is known after its update, so the run waits before
    # the update of step 3.
    steps = [e.step for e in seen if isinstance(e, GroupsScored)]
    names = [type(e).__name__ for e in seen]
    assert steps == [1, 2, 3]
    assert names.count("Paused") == 1
    assert names[names.index("Paused") - 1] == "GroupsScored"
    assert names[names.index("Paused") + 1] == "Resumed"
