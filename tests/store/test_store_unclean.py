"""A file whose last writer was killed is checked before anything is written to it again."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from stored import group, raw, recorded, rollout

from grpo_core.cli import main
from grpo_core.config import RunConfig
from grpo_core.errors import StoreError
from grpo_core.store import Recorder, Store, unclean
from grpo_core.types import GroupsScored, ModelLoaded, RunStatus, StepCompleted, StepMetrics


def killed(store: Store, folder: Path, name: str = "killed.db") -> Path:
    """The files of a store as a killed process leaves them: a live run, and a log with rows."""
    run_id = store.create_run(RunConfig(), "killed")
    with Recorder(store, run_id) as record:
        record(ModelLoaded({}))
        for step in range(1, 20):
            record(GroupsScored(step, tuple(group(rollout("x" * 900)) for _ in range(4))))
            record(StepCompleted(step, StepMetrics(loss=1.0), {"a": 1.0}))
        with closing(sqlite3.connect(store.path)) as conn:
            conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()  # most pages are in the file
        record(StepCompleted(20, StepMetrics(loss=1.0), {"a": 1.0}))
        for end in ("", "-wal", "-shm"):
            shutil.copyfile(f"{store.path}{end}", folder / f"{name}{end}")
    store.set_status(run_id, RunStatus.STOPPED)
    return folder / name


def damage(path: Path, page: int) -> None:
    with path.open("r+b") as file:
        file.seek(page * 4096)
        file.write(random.Random(page).randbytes(2048))


def root_page(path: Path, table: str) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as conn:
        sql = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        return conn.execute(sql, (table,)).fetchone()[0] - 1


@pytest.mark.parametrize("table", ["groups", "rollouts", "idx_groups_run_id_kind_step_position"])
def test_a_damaged_page_after_a_kill_makes_the_file_read_only(store, tmp_path, table):
    path = killed(store, tmp_path)
    damage(path, root_page(path, table))
    before = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    found = Store(path)
    with pytest.raises(StoreError, match="is damaged and was not closed properly") as refusal:
        found.recover()
    line = str(refusal.value)
    assert line.isprintable()
    assert f"python -m grpo_core doctor --db '{path}'" in line
    assert found.trouble == line
    [run] = found.runs()
    # Nothing can be written, so the row says "running"; but no process works on the run.
    assert (run.status, found.cursor(run.id).status) == (RunStatus.INTERRUPTED,) * 2
    for write in (
        lambda: found.create_run(RunConfig(), "new"),
        lambda: found.rename(run.id, "x"),
        lambda: found.delete(run.id),
    ):
        with pytest.raises(StoreError, match="It is only read"):
            write()
    assert (path.read_bytes(), Path(f"{path}-wal").read_bytes()) == before
    assert not found.is_free()


def test_an_undamaged_file_of_a_killed_process_goes_on(store, tmp_path):
    path = killed(store, tmp_path)
    found = Store(path)
    [run_id] = found.recover()
    assert found.run(run_id).status is RunStatus.INTERRUPTED
    assert len(found.steps(run_id)) == 20
    assert not found.trouble


def test_a_live_run_without_a_log_is_an_unclean_end_too(store, tmp_path):
    path = killed(store, tmp_path)
    with closing(sqlite3.connect(path)) as conn:  # moves the log into the file and removes it
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert not Path(f"{path}-wal").exists()
    damage(path, root_page(path, "rollouts"))
    with pytest.raises(StoreError, match="is damaged"):
        Store(path).recover()


def test_a_file_that_was_closed_properly_is_not_checked(store, monkeypatch):
    recorded(store, StepCompleted(1, StepMetrics(loss=1.0), {}))
    store.runs()  # an idle reading connection keeps the log's file

    def checked(*_: object) -> str:
        raise AssertionError

    monkeypatch.setattr("grpo_core.store.connection.first_damage", checked)
    for _ in range(3):
        assert store.recover() == []
    assert not Path(f"{store.path}-wal").exists() or not Path(f"{store.path}-wal").stat().st_size


def test_a_check_that_takes_too_long_ends_in_time(store, monkeypatch, caplog):
    recorded(store, *(GroupsScored(s, tuple(group() for _ in range(8))) for s in range(1, 40)))
    monkeypatch.setattr(unclean, "CALLBACK_EVERY", 1)
    with closing(sqlite3.connect(store.path)) as conn:
        assert unclean.first_damage(conn, seconds=0) == ""
    assert "doctor checks all of it" in caplog.text


def test_a_restored_copy_is_used_without_a_restart(store, tmp_path):
    path = killed(store, tmp_path)
    killed(store, tmp_path, "copy.db")
    damage(path, root_page(path, "rollouts"))
    found = Store(path)
    with pytest.raises(StoreError):
        found.recover()
    found.close()
    for end in ("", "-wal", "-shm"):
        (tmp_path / f"copy.db{end}").replace(tmp_path / f"killed.db{end}")
    assert len(found.recover()) == 1
    assert {run.status for run in found.runs()} == {RunStatus.STOPPED, RunStatus.INTERRUPTED}


def test_doctor_reports_a_damaged_file_and_exits_with_1(store, tmp_path, capsys):
    path = killed(store, tmp_path)
    damage(path, root_page(path, "rollouts"))
    unknown = tmp_path / "killed.db.checkpoints" / "20200101-000000-abcd"
    unknown.mkdir(parents=True)  # of a run whose row cannot be read
    assert main(["doctor", "--fix", "--db", str(path)]) == 1
    assert unknown.exists()
    out = capsys.readouterr().out
    assert "the store is damaged" in out
    assert "Traceback" not in out


def test_text_that_is_no_utf8_or_json_is_damage(store):
    run_id = recorded(store, GroupsScored(1, (group(),)))
    store.close()
    with closing(sqlite3.connect(store.path)) as conn:
        conn.execute("UPDATE rollouts SET scores = '{'")
        conn.commit()
    with pytest.raises(StoreError, match="is damaged"):
        store.group(store.group_ids(run_id, 1)[0])
    with closing(sqlite3.connect(store.path)) as conn:
        conn.execute("UPDATE runs SET name = CAST(x'ff41' AS TEXT), config = '{'")
        conn.commit()
    with pytest.raises(StoreError, match="is damaged"):
        store.runs()
    assert raw(store, "SELECT COUNT(*) FROM runs") == [(1,)]
