"""A resumed run equals the uninterrupted one in every recorded bit."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from trained_runs import configured, record

from grpo_core.checkpoint_files import MANIFEST, BadCheckpoint, file_hash, saved_steps, superfluous
from grpo_core.config import flatten, nest, parse
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.rubric import RunningStd
from grpo_core.runs.execution import Job, execute
from grpo_core.runs.resume import plan_branch, plan_resume
from grpo_core.store import Store
from grpo_core.training.checkpoint import Snapshot, load, pack, save, unpack
from grpo_core.training.control import RunControl, Start
from grpo_core.training.trainer import train
from grpo_core.types import Phase, PhaseStarted, RunStatus, StepCompleted


def job(store: Store, run_id: str, config, start: Start | None = None) -> Job:
    return Job(run_id, config, RunControl(store.checkpoint_folder(run_id), start))


def whole_run(store: Store, config) -> str:
    run_id = store.create_run(config, "whole", status=RunStatus.LOADING)
    status = execute(store, job(store, run_id, config), train)
    assert status is RunStatus.FINISHED, store.run(run_id).error
    return run_id


class Killed(BaseException):
    """Ends a run as the death of its process would."""


def cut_short(store: Store, config, when) -> str:
    """A run that ends without any message after the first event for which `when` holds."""
    run_id = store.create_run(config, "cut short", status=RunStatus.LOADING)

    def listen(event):
        if when(event):
            raise Killed

    execute(store, job(store, run_id, config), train, listen)
    store.set_status(run_id, RunStatus.INTERRUPTED)
    return run_id


def resume(store: Store, run_id: str) -> int:
    config, start = plan_resume(store, run_id)
    status = execute(store, job(store, run_id, config, start), train)
    assert status is RunStatus.FINISHED, store.run(run_id).error
    return start.step


# name -> settings that keep something beside weights and optimiser from step to step
KEPT = {
    "plain": {},
    "two updates a batch": {"algorithm.updates_per_batch": 2},
    "adaptive KL": {
        "algorithm.kl_control": "adaptive",
        "algorithm.kl_target": 0.001,
        "algorithm.kl_horizon": 10,
    },
    "entropy target": {"algorithm.entropy_target": 4.0, "algorithm.entropy_coef": 0.01},
    "moving reference": {"algorithm.ref_every": 2},
    "reward scale": {"rubric.scale": True},
    "trust region": {"algorithm.objective": "trust_region", "algorithm.kl_coef": 0.0},
    "critic": {"algorithm.advantage": "value"},
    "LoRA": {"model.lora_rank": 4},
}


@pytest.mark.parametrize("kept", KEPT)
def test_an_interrupted_run_resumes_bit_for_bit(store, tiny_settings, kept):
    config = configured(tiny_settings, **KEPT[kept])
    whole = whole_run(store, config)
    cut = cut_short(
        store,
        config,
        lambda e: isinstance(e, PhaseStarted) and e == PhaseStarted(Phase.UPDATING, 4, 6),
    )
    assert (
        store.last_step_with_groups(cut) == 4
    )  # more was recorded than the checkpoint of step 2 knows
    assert resume(store, cut) == 2
    assert record(store, cut) == record(store, whole)
    states = [load(c.path, c.sha256) for run in (whole, cut) for c in store.checkpoints(run)[-1:]]
    assert states[0].step == states[1].step == 6
    assert all(torch.equal(w, states[1].weights[n]) for n, w in states[0].weights.items())
    assert plain(states[0].learner) == plain(states[1].learner)


def plain(value):
    """Nested data with tensors as lists, so that == compares every bit of it."""
    match value:
        case Tensor():
            return value.tolist()
        case dict():
            return {k: plain(v) for k, v in value.items()}
        case list() | tuple():
            return [plain(v) for v in value]
    return value


@pytest.mark.slow
@pytest.mark.parametrize("phase", list(Phase)[1:])
def test_a_stop_in_any_phase_saves_a_step_and_resumes_exactly(store, tiny_settings, phase):
    config = configured(
        tiny_settings, **{"train.checkpoint_every": 3, "algorithm.updates_per_batch": 2}
    )
    whole = whole_run(store, config)
    run_id = store.create_run(config, "stopped", status=RunStatus.LOADING)
    control = RunControl(store.checkpoint_folder(run_id))

    def listen(event):
        if isinstance(event, PhaseStarted) and event.phase == phase and event.step >= 2:
            control.stop()

    assert execute(store, Job(run_id, config, control), train, listen) is RunStatus.STOPPED
    saved = store.checkpoints(run_id)[-1].step
    assert saved >= 1
    assert saved >= store.run(run_id).steps_done - 1
    assert resume(store, run_id) == saved
    assert record(store, run_id) == record(store, whole)


@pytest.mark.slow
def test_only_a_branch_with_changes_differs_from_its_parent(store, tiny_settings):
    config = configured(tiny_settings)
    whole = whole_run(store, config)
    for changes, same in (
        ({}, True),
        ({"train.learning_rate": 0.01}, False),
        ({"algorithm.kl_coef": 5.0}, False),
    ):
        config, start = plan_branch(store, whole, 2, changes)
        run_id = store.create_run(config, "branch", status=RunStatus.LOADING, parent=(whole, 2))
        execute(store, job(store, run_id, config, start), train)
        assert [s["step"] for s in store.steps(run_id)] == [3, 4, 5, 6]
        assert (record(store, run_id) == record(store, whole, after=2)) is same
        if changes.get("algorithm.kl_coef"):
            assert {s["kl_coef"] for s in store.steps(run_id)} == {5.0}
    assert (store.run(run_id).parent_run_id, store.run(run_id).parent_step) == (whole, 2)


@pytest.mark.slow
def test_a_branch_is_refused_what_its_checkpoint_cannot_give(store, tiny_settings):
    whole = whole_run(store, configured(tiny_settings))
    for changes, field in (
        ({"model.name": "bundled"}, "model.name"),
        ({"algorithm.advantage": "value"}, "algorithm.advantage"),
        ({"train.steps": 2}, "train.steps"),
    ):
        with pytest.raises(InvalidConfig, match=field):
            plan_branch(store, whole, 2, changes)
    with pytest.raises(StudioError, match=r"no saved state of step 3. Saved: 2, 4, 6"):
        plan_branch(store, whole, 3, {})
    with pytest.raises(StudioError, match="has finished"):
        plan_resume(store, whole)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "manifest"])
def test_a_damaged_checkpoint_is_found_and_the_one_before_is_used(store, tiny_settings, damage):
    config = configured(tiny_settings)
    whole = whole_run(store, config)
    cut = cut_short(store, config, lambda e: isinstance(e, StepCompleted) and e.step == 5)
    newest = store.checkpoints(cut)[-1].path
    assert newest.name == "step-00000004"
    file = newest / (MANIFEST if damage == "manifest" else "policy.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-100])
    elif damage == "gone":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(BadCheckpoint):
        load(newest, store.checkpoints(cut)[-1].sha256)
    assert resume(store, cut) == 2
    assert record(store, cut) == record(store, whole)


@pytest.mark.slow
def test_halved_micro_batches_stay_halved_in_a_resumed_run(store, tiny_settings, monkeypatch):
    import grpo_core.training.trainer as trainer

    class Device:
        """Has memory for 60 tokens at a time. One group is at most 44, the batch of two is more."""

        tight = True

        def load(self, *arguments, load=trainer.load_policy):
            policy = load(*arguments)
            policy.model.get_input_embeddings().register_forward_pre_hook(self.allocate)
            return policy

        def allocate(self, embedding, inputs):
            if self.tight and torch.is_grad_enabled() and inputs[0].numel() > 60:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    device = Device()
    monkeypatch.setattr(trainer, "load_policy", device.load)
    config = configured(tiny_settings)
    device.tight = False
    roomy = whole_run(store, config)
    device.tight = True
    whole = whole_run(store, config)
    assert (
        max(s["micro_batch_tokens"] for s in store.steps(whole))
        <= 60
        < min(s["micro_batch_tokens"] for s in store.steps(roomy))
    )
    cut = cut_short(store, config, lambda e: isinstance(e, StepCompleted) and e.step == 3)
    device.tight = False
    assert resume(store, cut) == 2
    assert record(store, cut) == record(store, whole) != record(store, roomy)


@pytest.mark.slow
def test_without_any_checkpoint_a_run_begins_anew_and_is_the_same_run(store, tiny_settings):
    config = configured(tiny_settings, **{"train.checkpoint_every": 0})
    whole = whole_run(store, config)
    cut = cut_short(store, config, lambda e: isinstance(e, StepCompleted) and e.step == 3)
    assert store.checkpoints(cut) == []
    assert resume(store, cut) == 0
    assert record(store, cut) == record(store, whole)


@pytest.mark.slow
def test_checkpoints_are_listed_with_size_and_old_ones_are_deleted(store, tiny_settings):
    config = configured(
        tiny_settings,
        **{"train.checkpoint_every": 1, "train.checkpoint_keep_every": 4, "task.heldout_size": 0},
    )
    run_id = whole_run(store, config)
    rows = store.checkpoints(run_id)
    assert [r.step for r in rows] == [4, 5, 6]  # the last two, and every fourth
    assert list(saved_steps(store.checkpoint_folder(run_id))) == [4, 5, 6]
    for r in rows:
        assert r.bytes == sum(p.stat().st_size for p in r.path.iterdir())
        assert r.sha256 == file_hash(r.path / MANIFEST)
    assert store.delete(run_id) >= sum(r.bytes for r in rows)
    assert not store.checkpoint_folder(run_id).exists()


@pytest.mark.slow
def test_the_last_the_best_and_every_nth_are_kept():
    heldout = {10: 0.2, 20: 0.9, 30: 0.4, 40: None, 50: 0.5}
    assert superfluous(heldout, 1, 0) == (10, 30, 40)  # 50 is the last, 20 the best
    assert superfluous(heldout, 2, 30) == (10,)  # 40 and 50, 20, 30
    assert superfluous({10: 0.5, 20: 0.5, 30: 0.1}, 1, 0) == (10,)  # of equals the later


class Sizes(NamedTuple):
    row: int
    packed: int


@pytest.mark.slow
def test_plain_state_comes_back_as_it_was():
    tensor = torch.tensor([1.0, math.inf, -0.0])
    state = {
        "a": {0: tensor, 1: (0.9, 0.99), 2: Sizes(3, 4)},
        "b": [None, True, 3, "x", math.inf, 0.1 + 0.2],
        "c": {},
    }
    tensors = {}
    again = unpack(json.loads(json.dumps(pack(state, tensors))), tensors)
    assert again == state
    assert isinstance(again["a"][1], tuple)
    assert Sizes(*again["a"][2]) == Sizes(3, 4)  # a named tuple comes back as a plain one
    with pytest.raises(TypeError, match="cannot keep"):
        pack(object(), {})


@pytest.mark.slow
def test_a_checkpoint_that_could_not_be_finished_leaves_the_one_before_alone(tmp_path, monkeypatch):
    snapshot = Snapshot(1, {"w": torch.ones(3)}, {"optimizer": {}}, RunningStd(), False, None)
    first = save(tmp_path, snapshot)
    before = {p.name: p.read_bytes() for p in first.iterdir()}
    for step in range(1, 3):
        # JSON refuses the set after the weights are written, at the moment at which a full disk
        # would fail.
        tensors = {"optimizer": {"x": torch.ones(2)}}
        broken: Any = {1}
        with pytest.raises(TypeError):
            save(
                tmp_path,
                Snapshot(step, {"w": torch.ones(3)}, tensors, RunningStd(), broken, None),
            )
        assert {p.name for p in tmp_path.iterdir()} == {first.name}
        assert {p.name: p.read_bytes() for p in first.iterdir()} == before


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused_in_one_line(store, tiny_settings):
    whole = whole_run(store, configured(tiny_settings))
    row = store.checkpoints(whole)[0]
    config = parse(nest({**flatten(configured(tiny_settings)), "model.name": "bundled"}))
    with pytest.raises(BadCheckpoint, match="of another model"):
        train(config, lambda event: None, RunControl(None, Start(2, row.path, row.sha256)))


@pytest.mark.slow
def test_a_failed_run_saves_no_further_checkpoint(store, tiny_settings):
    config = configured(tiny_settings)

    def listen(event):
        if isinstance(event, StepCompleted) and event.step == 3:
            raise ZeroDivisionError

    run_id = store.create_run(config, "fails", status=RunStatus.LOADING)
    assert execute(store, job(store, run_id, config), train, listen) is RunStatus.FAILED
    assert [c.step for c in store.checkpoints(run_id)] == [2]
    assert resume(store, run_id) == 2  # but it can be resumed like any other
