"""Runs of several workers: the devices that they take, on one machine and in a Ray cluster."""

from __future__ import annotations

import json
import threading
import time

import pytest

from grpo_core.child_process import Child
from grpo_core.config import nest, parse
from grpo_core.config.devices import candidates, free_devices, only_devices, shares
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.runs.device_queue import Machine
from grpo_core.runs.manager import RunManager
from grpo_core.runs.ray_cluster import RayCluster, cluster_of
from grpo_core.runs.run_log import tail
from grpo_core.runs.zerogpu import one_device
from grpo_core.store import Store
from grpo_core.training.timing import RunTimer
from grpo_core.types import WAITING, ModelLoaded, Phase, PhaseStarted, RunStatus

FOUR = ("cuda:0", "cuda:1", "cuda:2", "cuda:3", "cpu")


class Trainer:
    """Trains until it is told to end; records the device names that each run was given."""

    def __init__(self):
        self.ends, self.given = threading.Semaphore(0), []

    def __call__(self, config, emit, control):
        control.points.timer = RunTimer(emit)
        self.given.append(config.model.device)
        emit(PhaseStarted(Phase.LOADING, 0, config.train.steps))
        emit(ModelLoaded({"device_name": config.model.device}))
        while not self.ends.acquire(timeout=0.01):
            control.points.check_interrupt()


@pytest.fixture
def trainer():
    return Trainer()


@pytest.fixture
def make(tmp_path, trainer):
    made = []

    def make(machine):
        made.append(RunManager(Store(tmp_path / "runs.sqlite"), trainer, machine=machine))
        return made[-1]

    yield make
    for manager in made:
        manager.close()


def config(workers=1, device="auto", **settings):
    given = {"train.workers": workers, "train.prompts_per_step": 32, "model.device": device}
    return parse(nest({**given, **settings}))


def until(wanted, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- one machine ---------------------------------------------------------------------------------


def test_a_run_takes_a_device_for_each_worker(make, trainer):
    manager = make(Machine("four", FOUR))
    pair, three, one = (manager.start(config(n)) for n in (2, 3, 1))
    until(lambda: len(trainer.given) == 1)
    # `three` keeps the two free cards: `one` came later and does not overtake it for ever.
    assert manager.running == {"cuda:0": pair, "cuda:1": pair}
    on_cpu = manager.start(config(2, "cpu"))
    until(lambda: len(trainer.given) == 2)
    assert manager.running["cpu"] == on_cpu
    manager.stop(pair)
    until(lambda: len(trainer.given) == 4)
    assert sorted(manager.running.items()) == [
        ("cpu", on_cpu), ("cuda:0", three), ("cuda:1", three), ("cuda:2", three), ("cuda:3", one)
    ]  # fmt: skip
    assert sorted(trainer.given) == ["cpu", "cuda:0,cuda:1", "cuda:0,cuda:1,cuda:2", "cuda:3"]
    assert manager.store.run(three).config["model"]["device"] == "auto"


def test_named_cards_are_those_that_a_run_gets(make, trainer):
    manager = make(Machine("four", FOUR))
    run_id = manager.start(config(2, "cuda:3, cuda:1"))
    until(lambda: trainer.given == ["cuda:3,cuda:1"])
    assert manager.running == {"cuda:3": run_id, "cuda:1": run_id}
    assert only_devices({"GRPO_DEVICE": "cuda:3,cuda:1"}) == ("cuda:3", "cuda:1")


@pytest.mark.parametrize(
    ("workers", "device", "refusal"),
    [
        (5, "auto", "train.workers = 5: this run can use 4 devices here. Use at most 4."),
        (2, "cuda:1", "train.workers = 2: there is one device here. Use at most 1."),
        (2, "cuda:1,cuda:4", "model.device = 'cuda:1,cuda:4': there is no such device here."),
        (2, "cuda:1,cpu", "model.device = 'cuda:1,cpu': the devices of a run must be of one kind."),
    ],
)
def test_too_many_workers_are_refused_before_a_run_exists(make, workers, device, refusal):
    manager = make(Machine("four", FOUR))
    with pytest.raises(InvalidConfig) as refused:
        manager.start(config(workers, device))
    assert str(refused.value).startswith(refusal)
    assert manager.store.runs() == []
    assert manager.refusal([config(workers, device)]).startswith(refusal)


def test_workers_on_a_cpu_share_it_and_are_at_most_its_cores():
    names = candidates("auto", ("cpu",), 16, cores=16)
    assert free_devices(names, (), 16) == ("cpu",)
    assert free_devices(names, {"cpu"}, 16) is None
    with pytest.raises(InvalidConfig, match="17: this run can use 16 processor cores here"):
        candidates("auto", ("cpu",), 17, cores=16)
    assert candidates("auto", ("cpu",), 2, cores=1) == ("cpu",)


def test_a_full_card_is_passed_over_for_another(make, trainer):
    def check_room(config):
        if config.model.device == "cuda:1":
            raise StudioError("cuda:1 is full")

    manager = make(Machine("four", FOUR, check_room))
    run_id = manager.start(config(3))
    until(lambda: trainer.given)
    assert trainer.given == ["cuda:0,cuda:2,cuda:3"]
    manager.stop(run_id)
    until(lambda: not manager.running)
    lost = manager.start(config(4))
    until(lambda: manager.store.run(lost).status is RunStatus.FAILED)
    assert manager.store.run(lost).error == "cuda:1 is full"


def test_a_run_queued_on_a_larger_machine_fails_on_a_smaller_one(make, tmp_path):
    store = Store(tmp_path / "runs.sqlite")
    run_id = store.create_run(config(8), "of another machine")
    store.disown(run_id)
    make(Machine("four", FOUR))
    assert store.run(run_id).status is RunStatus.FAILED
    assert store.run(run_id).error.startswith("train.workers = 8: this run can use 4 devices")


def test_zerogpu_refuses_more_than_one_worker():
    one_device(config(1))
    with pytest.raises(InvalidConfig, match=r"train\.workers = 2: ZeroGPU lends one GPU\. Use 1"):
        one_device(config(2))


def test_the_trust_region_refuses_workers_and_says_what_to_do():
    with pytest.raises(InvalidConfig) as refused:
        config(2, **{"algorithm.objective": "trust_region", "train.learning_rate": None})
    assert [str(p) for p in refused.value.problems if p.field == "train.workers"] == [
        "train.workers = 2: the trust region's line search goes over all weights in one process. "
        "Use 1, or another objective."
    ]


def test_more_workers_than_prompts_of_a_step_are_refused():
    with pytest.raises(InvalidConfig, match=r"8: a step has fewer prompts.*Use at most"):
        config(8, **{"train.prompts_per_step": 7})


def test_what_each_worker_takes_of_a_step_is_said():
    assert shares(8, 1) == ""
    assert shares(8, 4) == "Each worker takes 2 of the 8 groups of a step."
    assert shares(10, 4).startswith("2 of 4 workers take 3 groups of a step and the others 2:")


# ---- a cluster -----------------------------------------------------------------------------------

HELPER = """
import json, sys
from pathlib import Path
from grpo_core.child_process import NoValue, serve

def look(address):
    nodes = Path(sys.argv[1], address).read_text()
    if not nodes:
        raise NoValue("nobody is there")
    return json.loads(nodes)

serve({"look": look}, 1 << 40)
"""


class PretendedCluster:
    """Nodes in a file, which a helper process reads as the real one asks Ray."""

    def __init__(self, folder, monkeypatch):
        monkeypatch.setattr("grpo_core.runs.ray_cluster.EVERY_SECONDS", 0.02)
        self._file = folder / "here"
        self.has(2, 2)
        self.watch = RayCluster("here", Child(["-c", HELPER, str(folder)]))
        self.machine = Machine(devices=("auto", "cpu"), cluster=self.watch)

    def has(self, *gpus):
        nodes = [
            {"name": f"node-{i}", "gpus": n, "cores": 8, "kind": "H200" if n else ""}
            for i, n in enumerate(gpus)
        ]
        self._file.with_suffix(".new").write_text(json.dumps(nodes) if nodes else "")
        self._file.with_suffix(".new").rename(self._file)

    def until(self, text):
        until(lambda: self.watch.seen.text == text)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    cluster = PretendedCluster(tmp_path, monkeypatch)
    yield cluster
    cluster.watch.close()


def test_the_devices_of_a_cluster_count_and_ray_chooses_among_them(make, trainer, cluster):
    manager = make(cluster.machine)
    first, second = manager.start(config(3)), manager.start(config(2))
    until(lambda: trainer.given == ["auto"])
    assert set(manager.running.values()) == {first}
    assert manager.store.run(second).status is RunStatus.QUEUED
    assert (manager.device, manager.has_many_devices) == ("Ray: 4 GPUs, 2 nodes", True)
    assert manager.device_details == "node-0: 2 × H200, 8 cores · node-1: 2 × H200, 8 cores"
    assert manager.devices == ("auto", "cpu")
    with pytest.raises(InvalidConfig, match="'cuda:0': Ray chooses the devices of this cluster"):
        manager.start(config(1, "cuda:0"))
    with pytest.raises(InvalidConfig, match=r"train\.workers = 5: this run can use 4 devices"):
        manager.start(config(5))
    manager.stop(second)


def test_a_run_waits_until_its_cluster_has_grown_and_says_so(make, trainer, cluster):
    manager = make(cluster.machine)
    first, second = manager.start(config(4)), manager.start(config(4))
    until(lambda: trainer.given == ["auto"])
    cluster.has(2)
    cluster.until("Ray: 2 GPUs, 1 node")
    manager.stop(first)
    until(lambda: not manager.running)
    manager.recover()
    [notice] = manager.store.alerts(second)
    assert notice.code == WAITING
    assert notice.message == (
        "It waits until the cluster has grown. train.workers = 4: this run can use 2 devices here. "
        "Use at most 2."
    )
    assert tail(manager.store.log_file(second))[-1]["what"] == notice.message
    cluster.has(2, 1, 1)
    cluster.until("Ray: 4 GPUs, 3 nodes")
    manager.recover()
    until(lambda: manager.running and set(manager.running.values()) == {second})
    manager.recover()
    assert manager.store.alerts(second) == []


def test_a_cluster_that_does_not_answer_is_said_before_a_start(make, cluster):
    manager = make(cluster.machine)
    cluster.has()
    # Before the first answer the cluster is not reachable either, for another reason.
    until(lambda: manager.device_details == "here: nobody is there")
    assert manager.device == "Ray: not reachable"
    with pytest.raises(StudioError, match="cluster cannot be used: here: nobody is there"):
        manager.start(config(1))
    assert manager.store.runs() == []


def test_a_cluster_of_processors_is_one_device(cluster):
    cluster.has(0, 0)
    cluster.until("Ray: 16 cores, 2 nodes")
    assert cluster.machine.candidates(config(16)) == ("cpu",)
    with pytest.raises(InvalidConfig, match="can use 16 processor cores"):
        cluster.machine.candidates(config(17))


def test_only_an_address_makes_a_cluster():
    assert cluster_of({}) == cluster_of({"GRPO_RAY": "local"}) == ""
    assert cluster_of({"GRPO_RAY": "head:6379"}) == "head:6379"
