"""A public server: limits of its operator, allowed folders, and copies of the store."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import get_args

import pytest

from grpo_core.checkpoint_files import used_bytes
from grpo_core.config import RunConfig, fields_by_name, nest, parse
from grpo_core.errors import InvalidConfig, StoreError, StudioError
from grpo_core.preflight.service import PreflightService, ServiceOptions
from grpo_core.runs.limits import Limits, Visitors, from_environment
from grpo_core.runs.work import work
from grpo_core.store import Recorder, Store
from grpo_core.store.snapshot import Snapshots
from grpo_core.types import Evaluated


def refused(limits: Limits, waiting: int = 0, **settings) -> set[str]:
    try:
        limits.check(parse(nest({k.replace("__", "."): v for k, v in settings.items()})), waiting)
    except InvalidConfig as error:
        return {p.field for p in error.problems}
    return set()


def test_every_limit_names_its_field_and_none_is_set_by_default():
    no_limits = from_environment({}, None)
    assert refused(no_limits, 99, train__steps=10**6, model__name="/anywhere") == set()
    limits = from_environment(
        {
            "GRPO_MAX_STEPS": "80",
            "GRPO_MAX_NEW_TOKENS": "48",
            "GRPO_MAX_ROLLOUTS": "64",
            "GRPO_MAX_HELDOUT": "200",
            "GRPO_MAX_WAITING": "2",
            "GRPO_MODELS": "bundled, owner/small",
        },
        None,
    )
    # the default run is at every limit: 80 steps of 8 x 8, 48 tokens, 200 held out
    assert refused(limits) == set()
    assert refused(
        limits,
        train__steps=81,
        train__max_new_tokens=49,
        train__group_size=9,
        task__heldout_size=201,
        model__name="owner/big",
    ) == {
        "train.steps",
        "train.max_new_tokens",
        "train.group_size",
        "task.heldout_size",
        "model.name",
    }
    assert refused(limits, 2) == {"train.steps"}
    assert refused(limits, train__eval_samples=2) == {"task.heldout_size"}
    with pytest.raises(InvalidConfig, match="GRPO_MAX_STEPS = 'many'"):
        from_environment({"GRPO_MAX_STEPS": "many"}, None)


def test_turns_and_tool_calls_are_limited_where_there_is_an_environment():
    limits = from_environment({"GRPO_MAX_TURNS": "8", "GRPO_MAX_TOOL_SECONDS": "5"}, None)
    beyond = {"rollout__max_turns": 9, "rollout__tool_seconds": 5.5}
    assert refused(limits, task__name="products") == set()  # the defaults
    assert refused(limits, task__name="products", **beyond) == {
        "rollout.max_turns",
        "rollout.tool_seconds",
    }
    assert refused(limits, **beyond) == set()  # sums has no environment


def test_a_public_server_reads_files_below_the_allowed_folders_only(tmp_path):
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    for folder in (allowed, outside):
        folder.mkdir()
        (folder / "p.csv").write_text("question,answer\n1,1\n")
    (allowed / "link.csv").symlink_to(outside / "p.csv")
    limits = Limits(roots=(allowed,))
    assert refused(limits, task__path=str(allowed / "p.csv")) == set()
    for path in (
        outside / "p.csv",
        allowed / ".." / "outside" / "p.csv",
        allowed / "link.csv",
        "/etc/passwd",
        "../../etc/passwd",
        "~/x.csv",
    ):
        assert refused(limits, task__path=str(path)) == {"task.path"}, path
    assert refused(
        limits, task__path=str(allowed / "p.csv"), task__heldout_source=str(outside / "p.csv")
    ) == {"task.heldout_source"}
    assert refused(limits, model__name=str(outside)) == {"model.name"}
    assert refused(limits, model__name="/nowhere") == {"model.name"}
    assert refused(limits, model__name="Qwen/Qwen3-0.6B", task__path="openai/gsm8k") == set()
    criteria = [
        {"name": "m", "check": "reward_model", "weight": 1, "params": {"model": str(outside)}}
    ]
    assert refused(limits, rubric__criteria=criteria) == {"rubric.criteria.0.params.model"}


def test_scoring_a_text_reads_no_file_outside_either(tmp_path, monkeypatch):
    from ui.components import form
    from ui.tabs.form_fields import default_values
    from ui.tabs.score_text import score_text

    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path / "cache"))
    secret = tmp_path / "secret.csv"
    secret.write_text(
        "question,answer\nthe secret question,1\n" + "".join(f"q{i},1\n" for i in range(30))
    )
    fields = [
        {"task.name": "file", "task.path": str(secret)}.get(n, v)
        for n, v in zip(form.NAMES, default_values(), strict=True)
    ]
    assert "whose answer is 1" in score_text("x", fields)  # seen, and in the cache
    monkeypatch.setenv("GRPO_STUDIO_ROOTS", str(tmp_path / "elsewhere"))
    assert "Choose a task first" in score_text("x", fields)
    monkeypatch.setenv(
        "GRPO_STUDIO_ROOTS", os.pathsep.join([str(tmp_path / "elsewhere"), str(tmp_path)])
    )
    assert "whose answer is 1" in score_text("x", fields)


def test_the_preflight_service_checks_the_limits_before_it_reads_a_file(tmp_path):
    service = PreflightService(options=ServiceOptions(check=Limits(roots=(tmp_path,)).check))
    config = parse(nest({"task.path": "/etc/hosts"}))
    for question in (
        service.preview,
        service.check_model,
        service.preflight,
        service.try_rubric,
        service.probe,
        lambda c: service.score_texts(c, ["a", "b"]),
    ):
        with pytest.raises(InvalidConfig, match="does not read files there"):
            question(config)


def test_a_snapshot_is_whole_renewed_on_change_and_restores_a_missing_file(tmp_path):
    db, bucket = tmp_path / "local" / "runs.sqlite", tmp_path / "bucket"
    snapshots = Snapshots(db, bucket, seconds=0)
    assert snapshots.restore() is False
    store = Store(db)
    run_id = store.create_run(parse(nest({})), "kept")
    assert snapshots.renew() is True
    assert snapshots.renew() is False  # nothing changed
    with Recorder(store, run_id) as record:
        record(Evaluated(0, {"heldout/accuracy": 0.5}))
        assert snapshots.renew() is True  # while a run is recorded
    store.close()
    for file in db.parent.iterdir():
        file.unlink()
    assert Snapshots(db, bucket).restore() is True
    again = Store(db)
    assert [(r.name, r.heldout_before) for r in again.runs()] == [("kept", 0.5)]
    again.close()
    assert Snapshots(db, bucket).restore() is False  # an existing store is never overwritten
    with sqlite3.connect(bucket / "runs.sqlite") as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert sorted(os.listdir(bucket)) == ["runs.sqlite"]


def test_a_damaged_snapshot_is_not_taken_for_the_store(tmp_path):
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    (bucket / "runs.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    with pytest.raises(StoreError, match="is damaged"):
        Snapshots(tmp_path / "runs.sqlite", bucket).restore()
    assert os.listdir(tmp_path) == ["bucket"]


# ---- what a run may use ----------------------------------------------------------------------


def test_a_visitors_runs_are_limited_and_the_refusal_gives_a_time():
    now = [1000.0]
    visitors = Visitors(2, clock=lambda: now[0])
    visitors.admit("address 10.0.0.1")
    now[0] += 3600
    visitors.admit("address 10.0.0.1")
    refusal = r"may start 2 runs a day \(GRPO_MAX_RUNS_PER_VISITOR\). Come back in 23.0 hours"
    with pytest.raises(InvalidConfig, match=refusal):
        visitors.admit("address 10.0.0.1")
    visitors.admit("address 10.0.0.2")
    visitors.admit(None)  # the server itself, for its queue
    now[0] += 23 * 3600 + 1  # the first run is a day ago
    visitors.admit("address 10.0.0.1")
    for _ in range(9):
        Visitors(None).admit("anybody")
    assert "10.0.0" not in repr(vars(visitors))


def test_time_and_disk_limits_name_the_value_and_what_to_do():
    limits = from_environment({"GRPO_MAX_MINUTES": "10", "GRPO_MAX_DISK_MIB": "100"}, None)
    assert limits.reason_to_stop(600, 100 * 2**20) is None
    assert limits.reason_to_stop(601, 0) == (
        "This server lets a run take 10 minutes (GRPO_MAX_MINUTES). Its state is saved: "
        "press Resume for the same time again, or run your own copy."
    )
    disk_is_full = (
        "The runs and files of this server use 150 MiB; the limit is 100 MiB (GRPO_MAX_DISK_MIB). "
        "Delete old runs on the Runs tab, then start or resume."
    )
    assert limits.reason_to_stop(0, 150 * 2**20) == disk_is_full
    limits.check_disk(100 * 2**20)
    with pytest.raises(StudioError, match="use 150 MiB; the limit is 100 MiB"):
        limits.check_disk(150 * 2**20)
    assert Limits().reason_to_stop(10**9, 10**15) is None


def test_a_run_beyond_a_limit_is_stopped_and_says_why(tmp_path, monkeypatch):
    from processes import until

    from grpo_core.runs import execution
    from grpo_core.runs.manager import RunManager

    monkeypatch.setattr(execution, "HEARTBEAT_SECONDS", 0.02)

    def train(config, emit, control):
        while True:
            control.points.check_interrupt()

    store = Store(tmp_path / "r.sqlite")
    asked: list[float] = []
    manager = RunManager(
        store,
        train,
        limit=lambda seconds: (
            asked.append(seconds) or ("Too long. Go home." if len(asked) > 3 else None)
        ),
    )
    run_id = manager.start(parse(nest({})))
    until(lambda: store.run(run_id).status == "stopped")
    assert store.run(run_id).error == "Too long. Go home."
    assert asked == sorted(asked)
    again = manager.start(parse(nest({})))  # a run that a person stops has no reason
    until(lambda: store.run(again).status != "queued")
    manager.stop(again)
    until(lambda: store.run(again).status == "stopped")
    manager.close()
    (store.checkpoint_folder(run_id)).mkdir(parents=True)
    (store.checkpoint_folder(run_id) / "state").write_bytes(bytes(5000))
    assert store.used_bytes() >= store.file_bytes() + 5000
    store.close()


def test_a_missing_bucket_is_reported_and_the_server_goes_on(tmp_path):
    db, bucket = tmp_path / "runs.sqlite", tmp_path / "bucket"
    bucket.write_text("no folder")
    snapshots = Snapshots(db, bucket, seconds=0)
    store = Store(db)
    store.create_run(parse(nest({})), "kept")
    assert (
        snapshots.state() == f"No copy in {bucket} yet: the first is made within 0 s of a change."
    )
    assert snapshots.renew() is False
    assert "could not be renewed" in snapshots.state()
    bucket.unlink()
    assert snapshots.renew() is True  # as soon as it is back
    assert snapshots.state() == f"Copied to {bucket} 0 s ago."
    store.close()


def test_a_killed_server_whose_disk_is_lost_goes_on_from_the_bucket(tmp_path):
    from processes import another_process

    from grpo_core.types import RunStatus

    disk, bucket = tmp_path / "disk", tmp_path / "bucket"
    server = another_process(
        """
        import sys
        from pathlib import Path
        sys.path.insert(0, "tests/ui")
        from recorded import record_step
        from grpo_core.config import nest, parse
        from grpo_core.store import Recorder, Store
        from grpo_core.store.snapshot import Snapshots
        db = Path(sys.argv[1]) / "runs.sqlite"
        db.parent.mkdir()
        snapshots, store = Snapshots(db, Path(sys.argv[2]), seconds=0), Store(db)
        run_id = store.create_run(parse(nest({"train.steps": 100000})), "a run")
        store.set_status(run_id, "running")
        with Recorder(store, run_id) as record:
            for step in range(1, 100000):
                record_step(record, step)
                if step % 3 == 0 and snapshots.renew():
                    print(step, flush=True)
        """,
        disk,
        bucket,
    )
    assert server.stdout is not None
    copied = [int(server.stdout.readline()) for _ in range(4)]
    server.kill()  # perhaps during a copy
    copied += [int(line) for line in server.stdout.read().splitlines() if line.isdecimal()]
    server.wait()
    for file in disk.iterdir():
        file.unlink() if file.is_file() else os.rmdir(file)
    assert Snapshots(disk / "runs.sqlite", bucket).restore() is True
    store = Store(disk / "runs.sqlite")
    [run_id] = store.recover()
    run = store.run(run_id)
    assert run.status is RunStatus.INTERRUPTED
    # The copy is complete up to its last step. The server may have been killed after it renamed a
    # copy and before it printed the step; then there are three more.
    assert run.steps_done in (copied[-1], copied[-1] + 3)
    assert [s["step"] for s in store.steps(run_id)] == list(range(1, run.steps_done + 1))
    store.close()
    with sqlite3.connect(disk / "runs.sqlite") as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# Numbers that change how much is computed, and what the bound on the work counts of them.
MULTIPLY_WORK = {
    "task.heldout_size",
    "algorithm.updates_per_batch",
    "algorithm.dynamic_sampling",
    "train.steps",
    "train.prompts_per_step",
    "train.group_size",
    "train.max_new_tokens",
    "train.eval_every",
    "train.eval_samples",
}
# Whole numbers of formulas, of memory, of the disk (which has its own limit), of rows read.
OTHERS = {
    "task.size",  # bounded by the time to make prompts
    "task.seed",
    "task.level",
    "model.lora_rank",
    "rollout.max_turns",  # of completions whose tokens count, observations among them
    "task.max_rows",
    "algorithm.kl_horizon",
    "algorithm.ref_every",
    "train.seed",
    "train.workers",  # bounded by the devices that are there
    "train.warmup_steps",
    "train.micro_batch_tokens",
    "train.checkpoint_every",
    "train.eval_records",
    "train.checkpoint_keep",
    "train.checkpoint_keep_every",
    "train.token_records",
    "train.after_records",  # at most a forward pass of a batch whose backward pass counts
}


def test_every_whole_number_counts_as_work_or_is_known_not_to():
    whole = {
        name: next(getattr(m, "le", None) for m in field.metadata if hasattr(m, "le"))
        for name, field in fields_by_name().items()
        if int in (field.annotation, *get_args(field.annotation))
    }
    assert set(whole) == MULTIPLY_WORK | OTHERS
    for name, most in whole.items():
        section, key = name.split(".")
        value = 1 if key == "eval_every" else most
        config = RunConfig()
        part = getattr(config, section).model_copy(update={key: value})
        asked = work(config.model_copy(update={section: part}))
        assert (asked != work(config)) == (name in MULTIPLY_WORK), name


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"algorithm__updates_per_batch": 2}, "algorithm.updates_per_batch"),  # 160 updates
        ({"algorithm__dynamic_sampling": 1}, "algorithm.dynamic_sampling"),  # 128 completions
        ({"train__eval_every": 1}, "train.eval_every"),  # 81 evaluations instead of 5
        ({"train__eval_samples": 2}, "task.heldout_size"),
    ],
)
def test_settings_that_multiply_work_count_against_the_limits(settings, field):
    limits = from_environment(
        {"GRPO_MAX_STEPS": "80", "GRPO_MAX_ROLLOUTS": "64", "GRPO_MAX_HELDOUT": "200"}, None
    )
    assert refused(limits) == set()
    assert refused(limits, **settings) == {field}
    # what fits when it is multiplied out is allowed
    small = {"train__steps": 40, "train__group_size": 4, "task__heldout_size": 10}
    assert refused(limits, **settings, **small) == set()


def test_all_that_visitors_made_counts_as_disk(tmp_path, monkeypatch):
    import app

    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    store = Store(tmp_path / "r.sqlite")
    used = app._used_bytes(store, Limits(disk_mib=5))
    before = used()
    made = (
        "r.sqlite.checkpoints/a/b",
        "r.sqlite.logs/a.jsonl",
        "r.sqlite.v5.bak",
        "cache/grpo-studio/uploads/f.jsonl",
        "cache/grpo-studio/prompts/f.arrow",
        "gradio/x/f.jsonl",
    )
    for name in made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(2**20))
    (tmp_path / "r.sqlite2").write_bytes(bytes(2**20))  # of another store
    (tmp_path / "cache" / "grpo-studio" / "link").symlink_to(tmp_path / "r.sqlite2")
    assert used() - before == 6 * 2**20
    assert app._used_bytes(store, Limits())() == 0
    check = app._check_reading(Limits(disk_mib=5), used)
    with pytest.raises(StudioError, match="use 6 MiB; the limit is 5 MiB"):
        check(RunConfig())


def test_a_folder_that_is_removed_while_it_is_counted_does_not_count(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    (tmp_path / "kept").write_bytes(bytes(7))
    scandir = os.scandir

    def without_gone(path):
        if Path(path).name == "gone":
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", without_gone)
    assert used_bytes([tmp_path]) == 7
