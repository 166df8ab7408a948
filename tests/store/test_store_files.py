"""Files of every kind under the store: damaged, foreign, older, newer, locked, too large."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlite_utils import Database
from stored import group, raw, recorded, rollout

from grpo_core.errors import NotFound, StoreBusy, StoreError
from grpo_core.store import Store, schema
from grpo_core.types import (
    GroupsScored,
    StepCompleted,
    StepMetrics,
)

ROOT = Path(__file__).parents[2]


# ---- files of every kind -------------------------------------------------------------------------


def refused(path: Path | str) -> str:
    """The message with which a file is refused; its bytes are as before."""
    before = Path(path).read_bytes() if os.path.isfile(path) else None
    with pytest.raises(StoreError) as error:
        Store(path)
    assert (Path(path).read_bytes() if before is not None else None) == before
    message = str(error.value)
    assert message.isprintable()
    assert message.startswith(f"--db {str(path)!r}")
    assert message.count("--db") >= 2, message  # what is wrong with which, and the way out
    return message


def test_random_bytes_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    for seed in range(20):
        (tmp_path / "noise").write_bytes(random.Random(seed).randbytes(seed * 577 + 1))
        assert "is not a GRPO Studio file" in refused(tmp_path / "noise")
    (tmp_path / "notes\n.txt").write_text("SQLite format 3? No, notes.")
    assert "is not a GRPO Studio file" in refused(tmp_path / "notes\n.txt")


def test_a_damaged_file_is_never_written(store: Store, tmp_path: Path) -> None:
    recorded(
        store,
        *(
            GroupsScored(step, tuple(group(rollout("x" * 1300)) for _ in range(8)))
            for step in range(1, 30)
        ),
    )
    whole = store.path.read_bytes()
    for cut in (20, 100, 4096, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        (tmp_path / "cut.db").write_bytes(whole[:cut])
        assert (
            "is damaged" in (message := refused(tmp_path / "cut.db"))
            or "is not a GRPO Studio file" in message
        )
    messages = []
    for page in range(1, len(whole) // 4096):
        damaged = bytearray(whole)
        damaged[page * 4096 : page * 4096 + 2048] = random.Random(page).randbytes(2048)
        (tmp_path / "damaged.db").write_bytes(damaged)
        try:
            found = Store(tmp_path / "damaged.db")
            for run in found.runs():
                (
                    list(found.iter_groups(run.id)),
                    found.groups(run.id, search="nothing"),
                    found.steps(run.id),
                )
        except StoreError as error:
            messages.append(str(error))
        assert (tmp_path / "damaged.db").read_bytes() == damaged
    assert len(messages) > 50  # most damage is noticed; what is not lies in the midst of a text
    assert all("is damaged" in message and message.isprintable() for message in messages)


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "places.sqlite")) as conn:
        conn.execute("CREATE TABLE moz_places (url)")
    assert "is a database of another program" in refused(tmp_path / "places.sqlite")


def test_places_where_no_file_can_be_are_refused(tmp_path: Path) -> None:
    assert f"is a directory. Name a file in it, for example --db '{tmp_path}/studio.db'" in refused(
        tmp_path
    )
    assert "does not exist. Create it" in refused(tmp_path / "absent" / "deeper" / "studio.db")
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refused(tmp_path / "pipe")
    assert "cannot be used" in refused(str(tmp_path / "a\0b"))
    assert "cannot be used" in refused(tmp_path / ("n" * 300))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loop", "pipe"]  # nothing was left behind


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Root may write anywhere, so permissions are tried as nobody."""
    if os.getuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.parametrize("locked", ["folder", "file"])
def test_an_unwritable_file_is_refused(locked: str) -> None:
    folder = Path(tempfile.mkdtemp())  # not tmp_path, into which only its owner may go
    try:
        Store(folder / "studio.db").close()
        for path in (*folder.iterdir(), folder):
            os.chmod(path, 0o777)
        os.chmod(folder if locked == "folder" else folder / "studio.db", 0o555)
        with as_ordinary_user():
            assert f"the {locked} " in refused(folder / "studio.db")
            if locked == "folder":
                assert "cannot be written. Change its permissions" in refused(folder / "new.db")
    finally:
        os.chmod(folder, 0o777)
        shutil.rmtree(folder)


def test_odd_but_legal_names_work_and_links_share_one_lock(tmp_path: Path) -> None:
    for name in ("with space?mode=ro&x#y%41.db", "ünï\ncode.db", "bytes\udcff.db"):
        store = Store(tmp_path / name)
        assert recorded(store) == store.runs()[0].id
        assert (tmp_path / name).stat().st_size > 0
        assert store.file_bytes() >= (tmp_path / name).stat().st_size
    (tmp_path / "link.db").symlink_to(tmp_path / "target.db")
    link, target = Store(tmp_path / "link.db"), Store(tmp_path / "target.db")
    assert link._writer is target._writer
    (tmp_path / "empty.db").touch()
    assert Store(str(tmp_path / "empty.db")).runs() == []


# ---- versions ------------------------------------------------------------------------------------


def newer_migrations(fail: bool = False) -> schema.Migrations:
    """What a future version of this code would have: today's tables, and one step more."""
    future = schema.Migrations("grpo_studio")
    for migration in schema.MIGRATIONS._migrations:
        future(name=migration.name)(migration.fn)

    @future(name="a later version: colours")
    def _colours(db: Database) -> None:
        db.execute("ALTER TABLE runs ADD COLUMN colour TEXT")

    if fail:

        @future(name="a later version: never")
        def _never(db: Database) -> None:
            raise RuntimeError("power cut")

    return future


def test_an_older_version_is_copied_and_migrated_a_newer_one_refused(store: Store) -> None:
    run_id = recorded(store, StepCompleted(1, StepMetrics(loss=2.0), {}))
    old = raw(store, "SELECT * FROM steps")
    now = raw(store, "PRAGMA user_version")[0][0]
    copy = Path(f"{store.path}.v{now}.bak")
    copy.write_text("an earlier copy")
    with pytest.raises(RuntimeError):
        schema.prepare(store.path, store._writer, newer_migrations(fail=True))
    # Nothing of it is left, not even of the migration before the one that failed.
    assert raw(store, "PRAGMA user_version") == [(now,)]
    assert raw(store, "SELECT name FROM pragma_table_info('runs') WHERE name = 'colour'") == []

    schema.prepare(store.path, store._writer, newer_migrations())
    assert raw(store, "SELECT id, colour FROM runs") == [(run_id, None)]
    assert raw(store, "SELECT * FROM steps") == old
    assert copy.read_text() == "an earlier copy"
    second = Path(f"{store.path}.v{now}.2.bak")  # .1 was made before the migration that failed
    assert Store(second).run(run_id).steps_done == 1
    schema.prepare(store.path, store._writer, newer_migrations())  # again: nothing to do, no copy
    assert not Path(f"{store.path}.v{now}.3.bak").exists()

    store.close()
    assert (
        f"has version {now + 1}, this GRPO Studio reads up to {now}. Update GRPO Studio"
        in refused(store.path)
    )


def test_a_new_metric_gets_its_column_in_an_old_file(store: Store) -> None:
    run_id = recorded(store, StepCompleted(1, StepMetrics(loss=2.0, kl=3.0, tokens=4), {}))
    store.close()
    with closing(
        sqlite3.connect(store.path)
    ) as conn:  # as if kl and tokens had not existed when the file was made
        conn.execute("ALTER TABLE steps DROP COLUMN kl")
        conn.execute("ALTER TABLE steps DROP COLUMN tokens")
    (step,) = Store(store.path).steps(run_id)
    assert (step["loss"], step["kl"], step["tokens"]) == (2.0, None, None)
    assert dict(
        raw(
            store,
            "SELECT name, type FROM pragma_table_info('steps') WHERE name IN ('kl', 'tokens')",
        )
    ) == {"kl": "REAL", "tokens": "INTEGER"}


def test_every_table_is_strict_and_every_foreign_key_has_an_index(store: Store) -> None:
    ours = {
        "runs",
        "steps",
        "metrics",
        "groups",
        "rollouts",
        "turns",
        "token_records",
        "token_pieces",
        "alerts",
        "checkpoints",
        "interventions",
        "once",
        "kept_answers",
        "preferences",
        "reward_models",
        "parts",
    }
    strict = dict(raw(store, "SELECT name, strict FROM pragma_table_list WHERE schema = 'main'"))
    assert {name for name, is_strict in strict.items() if is_strict} == ours
    for table in ours:
        indexed = {
            row[0]
            for row in raw(
                store,
                f"SELECT c.name FROM pragma_index_list('{table}') l, "
                "pragma_index_info(l.name) c WHERE c.seqno = 0",
            )
        }
        indexed |= {
            row[0]
            for row in raw(store, f"SELECT name FROM pragma_table_info('{table}') WHERE pk = 1")
        }
        for column, on_delete in raw(
            store, f"SELECT \"from\", on_delete FROM pragma_foreign_key_list('{table}')"
        ):
            assert column in indexed
            assert on_delete in ("CASCADE", "SET NULL")


# ---- space ---------------------------------------------------------------------------------------


def test_a_file_that_cannot_shrink_is_no_reason_to_wait_for_ever(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.db")
    with store.writing() as writer:
        run_id = recorded(store, GroupsScored(1, (group(rollout("x" * 500_000)),)))
        writer.connection.execute("PRAGMA auto_vacuum = NONE")
        writer.connection.execute("VACUUM")
    assert store.delete(run_id) > 400_000


def test_deleting_a_run_deletes_all_of_it_and_gives_the_space_back(store: Store) -> None:
    kept = recorded(store, GroupsScored(1, (group(),)))
    empty = store.file_bytes()
    big = [
        GroupsScored(step, (group(*(rollout("x" * 50_000) for _ in range(8))),))
        for step in range(1, 26)
    ]  # 25 * 8 * 50 kB = 10 MB
    run_id = recorded(store, *big, StepCompleted(1, StepMetrics(), {"a": 1.0}))
    assert store.path.stat().st_size > 10_000_000
    assert 10_000_000 < store.delete(run_id) < 11_000_000
    assert store.path.stat().st_size < 1_000_000
    assert store.file_bytes() <= empty
    for table in ("steps", "metrics"):
        assert raw(store, f"SELECT COUNT(*) FROM {table}") == [(0,)]
    assert raw(store, "SELECT COUNT(*) FROM rollouts") == [(2,)]
    assert [run.id for run in store.runs()] == [kept]
    with pytest.raises(NotFound):
        store.run(run_id)


def test_the_folder_of_a_new_file_is_made(tmp_path):
    assert Store(tmp_path / "runs" / "grpo.sqlite").runs() == []


def test_a_file_being_written_by_another_process_can_be_opened(tmp_path, monkeypatch):
    path = tmp_path / "runs.sqlite"
    Store(path)
    answers = iter(
        [False, True]
    )  # not yet prepared when first looked at, prepared when the lock turned out to be taken
    monkeypatch.setattr("grpo_core.store.schema._is_current", lambda *_: next(answers))

    def busy(self, wait_seconds):
        raise StoreBusy("in use")

    monkeypatch.setattr("grpo_core.store.connection.Writer.hold", busy)
    assert Store(path).runs() == []


def test_a_deleted_or_replaced_file_is_not_read_on(store: Store, tmp_path: Path) -> None:
    recorded(store, StepCompleted(1, StepMetrics(loss=1.0), {}))
    assert len(store.runs()) == 1  # the connection stays open
    store.path.rename(tmp_path / "away")
    with pytest.raises(StoreError, match="cannot be opened"):
        store.runs()
    Store(tmp_path / "other.sqlite").close()
    (tmp_path / "other.sqlite").rename(store.path)
    assert store.runs() == []
    (tmp_path / "away").replace(store.path)
    assert len(store.runs()) == 1
