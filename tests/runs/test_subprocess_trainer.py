"""A run in a subprocess: the same rows, the same response to commands, and a dying process."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from processes import another_process, until
from trained_runs import configured, fill, record, started_paused, wait_for

from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.runs.manager import RunManager
from grpo_core.runs.subprocess_trainer import in_subprocess, warm_up
from grpo_core.store import Store
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import RunStatus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def warm():
    warm_up()


@pytest.fixture
def distant(tmp_path):
    """A manager whose runs train in processes of their own."""
    manager = RunManager(Store(tmp_path / "apart.sqlite"), in_subprocess(train))
    yield manager
    manager.close()


def children() -> set[int]:
    """Training processes of this one: forked from its fork server, whose command line they have.

    The fork server of a page's server, which other tests keep running, is not one of them.
    """
    parents = {
        int(p.name): int((p / "stat").read_text().rpartition(")")[2].split()[1])
        for p in Path("/proc").iterdir()
        if p.name.isdigit() and (p / "stat").exists()
    }

    def is_fork(process: int) -> bool:
        return b"forkserver" in Path(f"/proc/{process}/cmdline").read_bytes()

    return {
        child
        for child, parent in parents.items()
        if parents.get(parent) == os.getpid() and is_fork(parent) and is_fork(child)
    }


def test_a_subprocess_run_records_the_same_and_leaves_no_process(distant, manager, tiny_settings):
    config = configured(
        tiny_settings, **{"algorithm.kl_control": "adaptive", "algorithm.kl_target": 0.001}
    )
    there, here = distant.start(config), manager.start(config)
    wait_for(distant, there, RunStatus.FINISHED)
    wait_for(manager, here, RunStatus.FINISHED)
    assert record(distant.store, there) == record(manager.store, here)
    assert [c.step for c in distant.store.checkpoints(there)] == [
        c.step for c in manager.store.checkpoints(here)
    ]
    until(lambda: not children())


def test_pause_step_edit_and_knobs_reach_a_subprocess_run(distant, manager, tiny_settings):
    config = configured(tiny_settings, **{"train.warmup_steps": 0})

    def talk(to: RunManager) -> str:
        run_id = started_paused(to, config, "step = 2")
        with pytest.raises(StudioError, match="has no completion 9 in group 1"):
            to.edit_reward(run_id, 2, 0, 8, 1.0)
        to.edit_reward(run_id, 2, 1, 2, 3.5)
        until(lambda: to.store.group(to.store.group_ids(run_id, 2)[1]).rollouts[2].edited)
        assert to.store.run(run_id).status is RunStatus.PAUSED
        to.set_knob(run_id, "train.learning_rate", 1e-3)
        with pytest.raises(InvalidConfig, match=r"train\.temperature"):
            to.set_knob(run_id, "train.temperature", -1)
        to.step(run_id)
        wait_for(to, run_id, RunStatus.PAUSED, steps_done=2)
        to.stop(run_id)
        wait_for(to, run_id, RunStatus.STOPPED)
        to.resume(run_id)
        wait_for(to, run_id, RunStatus.FINISHED)
        return run_id

    there, here = talk(distant), talk(manager)
    assert distant.store.interventions(there) == manager.store.interventions(here) != []
    assert record(distant.store, there) == record(manager.store, here)


def test_a_pause_before_the_process_starts_reaches_it(distant, tiny_settings):
    run_id = distant.start(configured(tiny_settings))
    distant.pause(run_id)
    wait_for(distant, run_id, RunStatus.PAUSED)
    assert distant.store.run(run_id).steps_done == 0
    distant.resume(run_id)
    wait_for(distant, run_id, RunStatus.FINISHED)


def test_a_multithreaded_model_trains_in_a_subprocess_as_here(
    distant, manager, tiny_settings, tmp_path
):
    """A forked process waits forever for OpenMP threads of its parent; the fork server has none."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from scripts.bundled_model.make import make_tokenizer

    tokenizer = make_tokenizer()
    # A dict, because the stubs give these ids a wider type than the configuration accepts.
    special_tokens: dict[str, Any] = {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=384,
                intermediate_size=1024,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=128,
                **special_tokens,
            )
        )
    assert (
        sum(p.numel() for p in model.parameters()) > 2 * 2_000_000
    )  # so that share_cores() takes two
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    config = configured(tiny_settings, **{"model.name": str(tmp_path / "model"), "train.steps": 2})
    there, here = distant.start(config), manager.start(config)
    wait_for(distant, there, RunStatus.FINISHED, seconds=60)
    wait_for(manager, here, RunStatus.FINISHED, seconds=60)
    assert [len(g.rollouts) for g in distant.store.iter_groups(there)] == [
        len(g.rollouts) for g in manager.store.iter_groups(here)
    ]


def test_an_invalid_run_fails_with_its_reason_and_no_traceback(distant, tiny_settings, tmp_path):
    config = configured(tiny_settings)
    wrong = config.model_copy(
        update={"model": config.model.model_copy(update={"name": str(tmp_path / "nowhere")})}
    )
    run = wait_for(distant, distant.start(wrong), RunStatus.FAILED)
    assert "nowhere" in run.error
    assert "Traceback" not in run.error


@pytest.mark.faults
def test_a_killed_process_fails_its_run_soon_and_resumes_exactly(distant, manager, tiny_settings):
    config = configured(tiny_settings, **{"train.steps": 40})
    run_id = distant.start(config)
    until(lambda: distant.store.run(run_id).steps_done >= 5)
    [child] = children()
    asked = time.monotonic()
    os.kill(child, signal.SIGKILL)
    run = wait_for(distant, run_id, RunStatus.FAILED)
    assert time.monotonic() - asked < 20  # 2 on an idle machine
    assert "SIGKILL" in run.error
    assert "memory" in run.error
    assert "Resume" in run.error
    distant.resume(run_id)
    wait_for(distant, run_id, RunStatus.FINISHED)
    alone = manager.start(config)
    wait_for(manager, alone, RunStatus.FINISHED)
    assert record(distant.store, run_id) == record(manager.store, alone)


@pytest.mark.faults
def test_the_process_ends_when_its_recording_parent_is_killed(tmp_path, tiny_settings):
    (tmp_path / "config.json").write_text(
        configured(tiny_settings, **{"train.steps": 100_000}).model_dump_json()
    )
    db = tmp_path / "runs.sqlite"
    server = another_process(
        """
        import json, sys, time
        from grpo_core.runs.subprocess_trainer import in_subprocess
        from grpo_core.config import parse
        from grpo_core.runs.manager import RunManager
        from grpo_core.store import Store
        from grpo_core.training.trainer import train
        if __name__ == "__main__":
            manager = RunManager(Store(sys.argv[1]), in_subprocess(train))
            manager.start(parse(json.loads(open(sys.argv[2]).read())))
            time.sleep(600)
    """,
        db,
        tmp_path / "config.json",
        start_new_session=True,
    )
    group = server.pid
    try:
        until(lambda: db.exists() and (rows := Store(db).runs()) and rows[0].steps_done >= 3)
        server.kill()
        server.wait()

        def left() -> bool:
            return any(p.name.isdigit() and _session(p) == group for p in Path("/proc").iterdir())

        until(lambda: not left())
        later = RunManager(Store(db), in_subprocess(train))
        [run] = later.store.runs()
        assert run.status is RunStatus.INTERRUPTED
        later.close()
    finally:
        server.kill()


def _session(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[3])
    except OSError:
        return 0


@pytest.mark.faults
def test_a_full_disk_pauses_a_subprocess_run_without_loss(small_disk, tiny_settings, manager):
    config = configured(
        tiny_settings, **{"train.steps": 30, "train.checkpoint_every": 0, "train.token_records": 0}
    )
    alone = manager.start(config)
    wait_for(manager, alone, RunStatus.FINISHED)
    distant = RunManager(Store(small_disk / "runs.sqlite"), in_subprocess(train))
    run_id = started_paused(distant, config, "step = 3")
    ballast = fill(small_disk)
    distant.resume(run_id)
    until(
        lambda: (
            (r := distant.store.run(run_id)).status is RunStatus.PAUSED and "MiB" in (r.error or "")
        )
    )
    ballast.unlink()
    distant.resume(run_id)
    wait_for(distant, run_id, RunStatus.FINISHED)
    assert record(distant.store, run_id) == record(manager.store, alone)
    distant.close()


def test_resume_of_a_run_held_here_is_not_sent_to_its_process():
    control, words = RunControl(), []
    control.forward_to(words.append)
    held = threading.Thread(target=control.points.hold, args=("The disk is full.",))
    held.start()
    until(lambda: control.pause_reason)
    control.resume()
    held.join(60)
    assert not held.is_alive()
    assert words == []
    control.resume()
    assert words == [("resume", ())]
