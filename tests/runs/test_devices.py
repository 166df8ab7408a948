"""Several devices: the choice of one, runs side by side, and the room beside other programs."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest
import torch
from pretended_cards import GB, pretend_cards
from stuck_trainers import tells_its_device

from grpo_core.config import nest, parse
from grpo_core.config.devices import VARIABLE, candidates, free_devices, using_only
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.models import check_model
from grpo_core.models.device import describe_machine, device_names, pick_device
from grpo_core.preflight.room import check_room, choose_device
from grpo_core.runs.device_queue import DeviceQueue, Machine
from grpo_core.runs.execution import Job
from grpo_core.runs.manager import RunManager
from grpo_core.runs.resume import plan_branch
from grpo_core.runs.run_log import tail
from grpo_core.runs.subprocess_trainer import in_subprocess
from grpo_core.store import Store
from grpo_core.training.control import RunControl
from grpo_core.training.timing import RunTimer
from grpo_core.types import (
    Checkpointed,
    ModelLoaded,
    Phase,
    PhaseStarted,
    RunStatus,
    StepCompleted,
    StepMetrics,
)

TWO = ("cuda:0", "cuda:1", "cpu")


class Trainer:
    """Trains each device step by step when told to; records who trained where."""

    def __init__(self):
        self.go = {device: threading.Semaphore(0) for device in TWO}
        self.trained: list[str] = []

    def __call__(self, config, emit, control):
        device, control.points.timer = config.model.device, RunTimer(emit)
        self.trained.append(device)
        emit(PhaseStarted(Phase.LOADING, 0, config.train.steps))
        emit(ModelLoaded({"device": device, "device_name": device}))
        for step in range(1, config.train.steps + 1):
            while not self.go[device].acquire(timeout=0.01):
                control.points.check_interrupt()
            emit(StepCompleted(step, StepMetrics(reward_mean=float(step)), {}))


@pytest.fixture
def trainer():
    return Trainer()


@pytest.fixture
def manager(tmp_path, trainer):
    manager = RunManager(Store(tmp_path / "runs.sqlite"), trainer, machine=Machine("two", TWO))
    yield manager
    manager.close()


def config(device="auto", steps=2, **settings):
    return parse(nest({"model.device": device, "train.steps": steps, **settings}))


def until(manager, run_id, status, seconds=60.0):
    deadline = time.monotonic() + seconds
    while (now := manager.store.run(run_id).status) != status and time.monotonic() < deadline:
        time.sleep(0.01)
    assert now == status, manager.store.run(run_id).error


def until_idle(manager, seconds=5.0):
    deadline = time.monotonic() + seconds
    while manager.running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not manager.running


# ---- names ---------------------------------------------------------------------------------------


def test_auto_means_every_device_of_the_fastest_kind():
    assert candidates("auto", TWO) == ("cuda:0", "cuda:1")
    assert candidates("auto", ("cpu",)) == ("cpu",)
    assert candidates("cpu", TWO) == ("cpu",)


def test_auto_is_the_first_card_that_no_run_uses():
    """Row `policy.py:76` of the reading: always GPU 0."""
    cards = candidates("auto", TWO)
    assert free_devices(cards, ()) == ("cuda:0",)
    assert free_devices(cards, {"cuda:0"}) == ("cuda:1",)
    assert free_devices(cards, {"cuda:0", "cuda:1"}) is None  # never the slow CPU instead
    assert free_devices(candidates("cpu", TWO), {"cuda:0"}) == ("cpu",)


@pytest.mark.parametrize("named", ["cuda:2", "cuda", "gpu", "mps"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch, named):
    pretend_cards(monkeypatch, 2)
    with pytest.raises(InvalidConfig) as refused:
        check_model(config(named).model)
    assert str(refused.value) == (
        f"model.device = '{named}': there is no such device here. "
        "There are: auto, cuda:0, cuda:1, cpu."
    )


def test_a_server_refuses_it_before_a_run_exists(tmp_path, trainer):
    store = Store(tmp_path / "runs.sqlite")
    manager = RunManager(store, trainer, lambda c: check_model(c.model))
    with pytest.raises(InvalidConfig, match=r"model\.device = 'cuda:7'.*There are: auto, .*cpu"):
        manager.start(config("cuda:7"))
    assert store.runs() == []


def test_the_environment_keeps_a_process_on_one_device(monkeypatch):
    pretend_cards(monkeypatch, 2)
    assert device_names() == TWO
    assert pick_device() == torch.device("cuda:0")
    monkeypatch.setenv(VARIABLE, "cuda:1")  # as in the process of a run on it
    assert device_names() == ("cuda:1",)
    assert pick_device() == torch.device("cuda:1")
    monkeypatch.setenv(VARIABLE, "lent")
    assert device_names() == TWO


def test_a_command_keeps_its_process_on_the_runs_device_only_while_it_trains(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with using_only("cuda:1"):
        assert os.environ[VARIABLE] == "cuda:1"
    assert VARIABLE not in os.environ
    monkeypatch.setenv(VARIABLE, "cpu")
    with using_only("auto"):
        assert os.environ[VARIABLE] == "cpu"
    assert os.environ[VARIABLE] == "cpu"


def test_the_header_counts_the_cards(monkeypatch):
    pretend_cards(monkeypatch, 1)
    assert describe_machine() == "Pretended card, 80 GB"
    pretend_cards(monkeypatch, 2)
    assert describe_machine() == "2 GPUs: 2 × Pretended card, 80 GB"


def test_runs_of_older_versions_read_on():
    old = config().model_dump(mode="json")
    del old["model"]["device"], old["train"]["deterministic"]
    assert (parse(old).model.device, parse(old).train.deterministic) == ("auto", False)


# ---- side by side --------------------------------------------------------------------------------


def test_two_runs_on_two_cards_go_side_by_side_and_a_third_waits(manager, trainer):
    ids = [manager.start(config()) for _ in range(3)]
    until(manager, ids[0], RunStatus.RUNNING)
    until(manager, ids[1], RunStatus.RUNNING)
    assert manager.running == {"cuda:0": ids[0], "cuda:1": ids[1]}
    assert manager.store.run(ids[2]).status is RunStatus.QUEUED
    trainer.go["cuda:1"].release(4)
    until(manager, ids[1], RunStatus.FINISHED)
    until(manager, ids[2], RunStatus.FINISHED)  # on the card that became free
    assert manager.store.run(ids[0]).status is RunStatus.RUNNING
    assert [manager.store.run(i).config["model"]["device"] for i in ids] == ["auto"] * 3
    used = [manager.store.run(i).env["device_name"] for i in ids]
    assert used == ["cuda:0", "cuda:1", "cuda:1"]
    assert sorted(trainer.trained) == used  # the first two begin in any order


def test_a_run_that_waits_for_its_card_holds_up_no_other(manager, trainer):
    first, second = manager.start(config("cuda:0")), manager.start(config("cuda:0"))
    on_cpu = manager.start(config("cpu"))
    until(manager, on_cpu, RunStatus.RUNNING)
    assert manager.store.run(second).status is RunStatus.QUEUED
    assert manager.running == {"cuda:0": first, "cpu": on_cpu}


def test_pause_resume_and_stop_reach_one_run_and_not_the_other(manager, trainer):
    first, second = manager.start(config()), manager.start(config())
    until(manager, first, RunStatus.RUNNING)
    until(manager, second, RunStatus.RUNNING)
    manager.pause(second)
    until(manager, second, RunStatus.PAUSED)
    trainer.go["cuda:0"].release(2)
    until(manager, first, RunStatus.FINISHED)
    assert manager.store.run(second).status is RunStatus.PAUSED
    manager.resume(second)
    until(manager, second, RunStatus.RUNNING)
    third = manager.start(config())
    until(manager, third, RunStatus.RUNNING)
    manager.stop(second)
    until(manager, second, RunStatus.STOPPED)
    assert manager.store.run(third).status is RunStatus.RUNNING
    manager.resume(second)  # the card that it had is free again
    until(manager, second, RunStatus.RUNNING)
    assert manager.running == {"cuda:0": third, "cuda:1": second}


def test_a_resumed_run_waits_for_its_own_last_thread():
    queue = DeviceQueue(Machine("two", TWO))
    old, again, other = (Job(i, config(), RunControl()) for i in ("a", "a", "b"))
    queue.waiting.extend([old, again, other])
    assert queue.start_next() == (old, ("cuda:0",))
    assert queue.start_next() == (other, ("cuda:1",))  # not `again`: its old thread is not done
    assert queue.start_next() is None
    queue.release(old)
    assert queue.start_next() == (again, ("cuda:0",))


def test_a_queued_run_is_stopped_beside_two_that_go_on(manager):
    ids = [manager.start(config()) for _ in range(3)]
    manager.stop(ids[2])
    assert manager.store.run(ids[2]).status is RunStatus.STOPPED
    until(manager, ids[0], RunStatus.RUNNING)
    until(manager, ids[1], RunStatus.RUNNING)


def test_closing_stops_both_and_leaves_the_queue_to_the_next_server(manager, trainer):
    ids = [manager.start(config()) for _ in range(3)]
    until(manager, ids[0], RunStatus.RUNNING)
    until(manager, ids[1], RunStatus.RUNNING)
    manager.close()
    statuses = [manager.store.run(i).status for i in ids]
    assert statuses == [RunStatus.STOPPED, RunStatus.STOPPED, RunStatus.QUEUED]
    trainer.go["cpu"].release(2)
    later = RunManager(manager.store, trainer, machine=Machine("none", ("cpu",)))
    until(later, ids[2], RunStatus.FINISHED)
    assert trainer.trained[-1] == "cpu"


def test_each_run_logs_its_own_messages(manager, trainer):
    first, second = manager.start(config()), manager.start(config())
    until(manager, first, RunStatus.RUNNING)
    until(manager, second, RunStatus.RUNNING)
    trainer.go["cuda:1"].release(2)
    until(manager, second, RunStatus.FINISHED)
    said = [
        json.dumps([e["what"] for e in tail(manager.store.log_file(i))]) for i in (first, second)
    ]
    assert ("step 2" in said[0], "step 2" in said[1]) == (False, True)


def test_a_branch_may_go_on_on_another_device(tmp_path, trainer):
    store = Store(tmp_path / "runs.sqlite")
    folder = tmp_path / "step"

    def saves(config, emit, control):
        from grpo_core.checkpoint_files import MANIFEST
        from grpo_core.rubric import RunningStd
        from grpo_core.training.checkpoint import Snapshot, file_hash, save

        path = save(folder, Snapshot(1, {"w": torch.ones(1)}, {}, RunningStd(), False, None))
        emit(Checkpointed(1, str(path), 1, file_hash(path / MANIFEST), ()))

    manager = RunManager(store, saves)
    run_id = manager.start(config("cpu"))
    until(manager, run_id, RunStatus.FINISHED)
    changed, _ = plan_branch(store, run_id, 1, {"model.device": "cuda:1"})
    assert changed.model.device == "cuda:1"
    with pytest.raises(InvalidConfig, match="a branch keeps the model"):
        plan_branch(store, run_id, 1, {"model.lora_rank": 4})


def test_two_processes_train_each_on_its_own_device(tmp_path):
    manager = RunManager(
        Store(tmp_path / "runs.sqlite"),
        in_subprocess(tells_its_device),
        machine=Machine("two", TWO),
    )
    ids = [manager.start(config()) for _ in range(3)]
    try:
        for run_id in ids[:2]:
            until(manager, run_id, RunStatus.RUNNING, 60)
        envs = [manager.store.run(i).env for i in ids[:2]]
        assert [e["device_name"] for e in envs] == ["cuda:0", "cuda:1"]
        assert envs[0]["process"] != envs[1]["process"]
        assert VARIABLE not in os.environ  # the server's own process may use all
        manager.pause(ids[0])
        until(manager, ids[0], RunStatus.PAUSED)
        manager.stop(ids[1])
        until(manager, ids[1], RunStatus.STOPPED)
        until(manager, ids[2], RunStatus.RUNNING, 60)
        assert manager.store.run(ids[2]).env["device_name"] == "cuda:1"
        assert manager.store.run(ids[0]).status is RunStatus.PAUSED
        manager.resume(ids[0])
        until(manager, ids[0], RunStatus.RUNNING)
    finally:
        manager.close()


# ---- room ----------------------------------------------------------------------------------------


def test_a_card_that_other_programs_fill_is_refused_before_the_start(monkeypatch, tmp_path):
    """Two runs at once on one card share its memory by estimate, or the second is refused."""
    pretend_cards(monkeypatch, 2, free=[GB // 2, 70 * GB])
    with pytest.raises(InvalidConfig) as refused:
        check_room(config("cuda:0"))
    assert (
        "model.device = 'cuda:0': the run needs at least 0.6 GB, and 0.5 GB of 80.0 GB are free"
        in (str(refused.value))
    )
    check_room(config("cuda:1"))  # fits beside the 10 GB that another program uses there
    check_room(config("cpu"))


def test_the_command_line_takes_an_idle_card_and_one_with_room(monkeypatch):
    pretend_cards(monkeypatch, 3, free=[50 * GB, 79 * GB, 79 * GB])
    assert choose_device(config()) == "cuda:1"  # a run of another process uses the first
    assert choose_device(config("cuda:0")) == "cuda:0"  # they share it
    pretend_cards(monkeypatch, 2, free=[GB // 2, 50 * GB])
    assert choose_device(config()) == "cuda:1"
    pretend_cards(monkeypatch, 2, free=GB // 2)
    with pytest.raises(InvalidConfig, match="are free on cuda:0"):
        choose_device(config())


def test_what_this_process_keeps_on_a_card_counts_as_used(monkeypatch):
    """Row `environment.py:39` of the reading: the server counts its own cache as free."""
    pretend_cards(monkeypatch, 1, free=GB // 2)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40 * GB)
    with pytest.raises(InvalidConfig, match=r"0\.5 GB of 80\.0 GB are free"):
        check_room(config("cuda:0"))


class Room:
    """A check of room by a table of what is free on each device, in any unit."""

    def __init__(self, **free):
        self.free = free

    def __call__(self, config):
        if not self.free[config.model.device.replace(":", "")]:
            raise InvalidConfig([])


def test_auto_passes_over_a_card_without_room(tmp_path, trainer):
    machine = Machine("two", TWO, Room(cuda0=False, cuda1=True))
    manager = RunManager(Store(tmp_path / "runs.sqlite"), trainer, machine=machine)
    run_id = manager.start(config())
    until(manager, run_id, RunStatus.RUNNING)
    assert manager.running == {"cuda:1": run_id}
    manager.close()


def test_a_start_without_room_on_any_card_makes_no_run(tmp_path, trainer):
    machine = Machine("two", TWO, Room(cuda0=False, cuda1=False))
    store = Store(tmp_path / "runs.sqlite")
    manager = RunManager(store, trainer, lambda c: manager.check_room(c), machine)
    with pytest.raises(StudioError):
        manager.start(config())
    assert store.runs() == []


def test_a_queued_run_is_checked_when_its_turn_comes(tmp_path, trainer):
    room = Room(cuda0=True)
    machine = Machine("one", ("cuda:0",), room)
    manager = RunManager(
        Store(tmp_path / "runs.sqlite"), trainer, lambda c: manager.check_room(c), machine
    )
    first = manager.start(config())
    until(manager, first, RunStatus.RUNNING)
    second, third = manager.start(config()), manager.start(config())
    room.free["cuda0"] = False  # another program came
    manager.stop(first)
    until(manager, second, RunStatus.FAILED)
    until(manager, third, RunStatus.FAILED)
    assert trainer.trained == ["cuda:0"]
    until_idle(manager)


def test_a_resumed_run_is_checked_for_room_too(tmp_path, trainer):
    room = Room(cuda0=True)
    manager = RunManager(
        Store(tmp_path / "runs.sqlite"),
        trainer,
        lambda c: manager.check_room(c),
        Machine("one", ("cuda:0",), room),
    )
    run_id = manager.start(config())
    until(manager, run_id, RunStatus.RUNNING)
    manager.stop(run_id)
    until(manager, run_id, RunStatus.STOPPED)
    until_idle(manager)
    room.free["cuda0"] = False
    with pytest.raises(InvalidConfig):
        manager.resume(run_id)
    assert manager.store.run(run_id).status is RunStatus.STOPPED
    room.free["cuda0"] = True
    manager.resume(run_id)
    until(manager, run_id, RunStatus.RUNNING)
    manager.close()
