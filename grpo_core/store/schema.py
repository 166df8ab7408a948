"""Tables, migrations, and the checks before a file is opened."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import get_type_hints

from sqlite_utils import Database, Migrations
from sqlite_utils.db import ForeignKey

from grpo_core.errors import StoreBusy, StoreError
from grpo_core.store.connection import Writer, connect
from grpo_core.store.problems import PROBLEMS, explained
from grpo_core.types import STEP_METRICS, StepMetrics

# "GRPO", kept in the header of the file: it tells our files from those of other programs.
APPLICATION_ID = 0x4752504F

# Wait for another process that creates or migrates the file, such as a server started together.
PREPARE_SECONDS = 15.0
LOOK_SECONDS = 0.2  # between two looks whether it has done so

MIGRATIONS = Migrations("grpo_studio")


@MIGRATIONS(name="1 tables")
def _tables(db: Database) -> None:
    # Small and busy columns first: SQLite then finds them without reading the overflow pages of
    # config and env.
    _create(
        db,
        "runs",
        "id str, name str, status str, revision int, created_at float, started_at float?, "
        "ended_at float?, "
        "heartbeat_at float?, phase str?, step int?, num_steps int?, steps_done int, "
        "reward_first float?, reward_last float?, "
        "heldout_before float?, heldout_after float?, model str, task str, rubric str, "
        "parent_run_id str?, parent_step int?, "
        "config str, env str?, error str?",
        pk="id",
        parent_run_id="runs SET NULL",
    )
    # _add_missing_metrics adds the columns of its numbers.
    _create(db, "steps", "run_id str, step int", pk=("run_id", "step"), run_id="runs CASCADE")
    _create(
        db,
        "metrics",
        "run_id str, name str, step int, value float?",
        pk=("run_id", "name", "step"),
        run_id="runs CASCADE",
    )
    _create(
        db,
        "groups",
        "id int, run_id str, step int, position int, prompt_id str, reward_mean float?, "
        "reward_std float?, "
        "verdict str, answer str, prompt str",
        pk="id",
        run_id="runs CASCADE",
    )
    _create(
        db,
        "rollouts",
        "id int, group_id int, position int, finish_reason str, num_tokens int, reward float?, "
        "advantage float?, "
        "edited int, scores str, text str",
        pk="id",
        group_id="groups CASCADE",
    )
    _create(
        db,
        "token_records",
        "rollout_id int, token_ids bytes, sampling_logprobs bytes?, logprobs bytes?, "
        "ref_logprobs bytes?, "
        "entropy bytes?",
        pk="rollout_id",
        rollout_id="rollouts CASCADE",
    )
    _create(
        db,
        "alerts",
        "id int, run_id str, step int, code str, severity str, message str, group_id int?",
        pk="id",
        run_id="runs CASCADE",
        group_id="groups SET NULL",
    )
    _create(
        db,
        "checkpoints",
        "run_id str, step int, path str, bytes int, sha256 str",
        pk=("run_id", "step"),
        run_id="runs CASCADE",
    )

    _create_indexes(db)


def _create_indexes(db: Database) -> None:
    """One for every query, and for every foreign key: without it, a delete reads all children."""
    db.table("runs").create_index(["parent_run_id"])
    db.table("groups").create_index(["run_id", "step", "position"], unique=True)
    db.table("groups").create_index(["run_id", "verdict", "step"])
    db.table("rollouts").create_index(["group_id", "position"], unique=True)
    db.table("alerts").create_index(["run_id", "step"])
    db.table("alerts").create_index(["group_id"])
    # Empty until searches need it, see search.py. detail=none keeps which rollout, not where in it:
    # a sixth of the full size.
    db.execute(
        "CREATE VIRTUAL TABLE completions_fts USING "
        "fts5(text, content='rollouts', content_rowid='id', tokenize='trigram', detail=none)"
    )


@MIGRATIONS(name="2 token pieces")
def _token_pieces(db: Database) -> None:
    # What a run's token ids say, once for each: tokens are drawn from ids, and the model may be
    # gone when they are looked at.
    _create(
        db,
        "token_pieces",
        "run_id str, token_id int, piece bytes",
        pk=("run_id", "token_id"),
        run_id="runs CASCADE",
    )


@MIGRATIONS(name="3 inspector")
def _inspector(db: Database) -> None:
    for column in ("evidence TEXT", "advice TEXT", "dismissed_at REAL"):
        db.execute(f"ALTER TABLE alerts ADD COLUMN {column}")
    # For one prompt through time, and in several runs.
    db.table("groups").create_index(["prompt_id", "run_id", "step"])


@MIGRATIONS(name="4 rollout numbers")
def _rollout_numbers(db: Database) -> None:
    # All that rollouts are filtered and sorted by, so that half a million are looked through
    # without reading one text.
    db.table("rollouts").create_index(
        ["group_id", "position", "reward", "advantage", "num_tokens", "finish_reason"]
    )


@MIGRATIONS(name="5 waiting")
def _waiting(db: Database) -> None:
    # How long a run has waited (paused, or ended until resumed), since when, and its breakpoints.
    for column in (
        "waited_seconds REAL NOT NULL DEFAULT 0",
        "waiting_since REAL",
        "breakpoints TEXT NOT NULL DEFAULT ''",
    ):
        db.execute(f"ALTER TABLE runs ADD COLUMN {column}")


@MIGRATIONS(name="6 interventions")
def _interventions(db: Database) -> None:
    """What a person did to a run.

    Version 5 kept it among the metrics, as knob/FIELD and edit/G/C.
    """
    _create(
        db,
        "interventions",
        "id int, run_id str, step int, kind str, field str?, group_position int?, "
        "rollout_position int?, value float?, created_at float?",
        pk="id",
        run_id="runs CASCADE",
    )
    db.table("interventions").create_index(["run_id", "step"])
    db.execute(
        "INSERT INTO interventions (run_id, step, kind, field, value) "
        "SELECT run_id, step, 'setting', substr(name, 6), value FROM metrics "
        "WHERE name GLOB 'knob/*' AND value NOT NULL"
    )
    db.execute(
        "INSERT INTO interventions (run_id, step, kind, group_position, rollout_position, value) "
        "SELECT run_id, step, 'reward', CAST(substr(name, 6, instr(substr(name, 6), '/') - 1) AS "
        "INTEGER), "
        "CAST(substr(name, 6 + instr(substr(name, 6), '/')) AS INTEGER), value FROM metrics "
        "WHERE name GLOB 'edit/[0-9]*/[0-9]*' AND value NOT NULL"
    )
    db.execute("DELETE FROM metrics WHERE name GLOB 'knob/*' OR name GLOB 'edit/[0-9]*/[0-9]*'")


@MIGRATIONS(name="7 saving time")
def _saving_time(db: Database) -> None:
    # How long a save took: after Stop, a run gets that time before it is ended by force.
    db.execute("ALTER TABLE checkpoints ADD COLUMN seconds REAL")


@MIGRATIONS(name="8 tags and note")
def _tags_and_note(db: Database) -> None:
    # What a person writes about a run. tags: a JSON list of words.
    for column in ("tags TEXT NOT NULL DEFAULT '[]'", "note TEXT NOT NULL DEFAULT ''"):
        db.execute(f"ALTER TABLE runs ADD COLUMN {column}")


@MIGRATIONS(name="9 kinds of groups")
def _kinds_of_groups(db: Database) -> None:
    """Groups of an evaluation beside those of the step; older files have none."""
    db.execute("ALTER TABLE groups ADD COLUMN kind TEXT NOT NULL DEFAULT 'training'")
    groups = db.table("groups")
    for columns, unique in ((["step", "position"], True), (["verdict", "step"], False)):
        db.execute(f"DROP INDEX idx_groups_run_id_{'_'.join(columns)}")
        groups.create_index(["run_id", "kind", *columns], unique=unique)


@MIGRATIONS(name="10 example")
def _example(db: Database) -> None:
    # The recorded example run, and whether this file ever had it: a deleted one stays away.
    db.execute("ALTER TABLE runs ADD COLUMN example INTEGER NOT NULL DEFAULT 0")
    _create(db, "once", "what str, at float", pk="what")


@MIGRATIONS(name="11 preferences")
def _preferences(db: Database) -> None:
    """Which of two completions a person prefers; a judgement outlives the run it came from.

    groups.before: the messages before the prompt, for whoever asks a model about the same text.
    Earlier files kept of them only the system prompt, in the settings of runs on a file.
    """
    _create(
        db,
        "preferences",
        "id int, prompt_id str, verdict str, margin float?, who str, seconds float?, "
        "created_at float, source str, ranking str?, run_id str?, group_id int?, before str, "
        "prompt str, left str, right str",
        pk="id",
        run_id="runs SET NULL",
        group_id="groups SET NULL",
    )
    for column in ("run_id", "group_id", "who"):
        db.table("preferences").create_index([column])
    db.execute("ALTER TABLE groups ADD COLUMN before TEXT NOT NULL DEFAULT '[]'")
    db.execute(
        "UPDATE groups SET before = json_array(json_object('role', 'system', 'content', "
        "json_extract(runs.config, '$.task.system'))) FROM runs WHERE runs.id = groups.run_id AND "
        "json_extract(runs.config, '$.task.name') = 'file' AND "
        "json_extract(runs.config, '$.task.system') != ''"
    )


@MIGRATIONS(name="12 after the step")
def _after_the_step(db: Database) -> None:
    # Each token's log-probability under the policy after the step's updates; older files have none.
    db.execute("ALTER TABLE token_records ADD COLUMN logprobs_after BLOB")


@MIGRATIONS(name="13 reward models")
def _reward_models(db: Database) -> None:
    """Trainings of reward models from preferences; the models lie beside the file."""
    _create(
        db,
        "reward_models",
        "id str, name str, folder str, base str, status str, created_at float, ended_at float?, "
        "num_pairs int, config str, progress str, result str?, error str?",
        pk="id",
    )


@MIGRATIONS(name="14 kept answers")
def _kept_answers(db: Database) -> None:
    # Answers that a person kept in the Playground, as rows of a prompt file; they outlive the run.
    _create(
        db,
        "kept_answers",
        "id int, run_id str?, step int, created_at float, before str, prompt str, right str, "
        "answer str",
        pk="id",
        run_id="runs SET NULL",
    )
    db.table("kept_answers").create_index(["run_id"])


@MIGRATIONS(name="15 turns")
def _turns(db: Database) -> None:
    # Of completions in an environment: what the policy wrote and what its tools answered. Those of
    # one turn have none.
    _create(
        db,
        "turns",
        "rollout_id int, position int, role str, text str, first_token int, num_tokens int, "
        "tool str, arguments str, error str, seconds float?",
        pk=("rollout_id", "position"),
        rollout_id="rollouts CASCADE",
    )


@MIGRATIONS(name="16 records")
def _records(db: Database) -> None:
    """Runs of other trainers. runs.source: JSON of rows.Source; NULL for our own runs.

    parts: which steps, or parts of steps, are there, and a digest of each, so that one that comes
    again adds nothing.
    """
    db.execute("ALTER TABLE runs ADD COLUMN source TEXT")
    _create(
        db,
        "parts",
        "run_id str, step int, kind str, part int, digest str, num_groups int, disagreements int",
        pk=("run_id", "step", "kind", "part"),
        run_id="runs CASCADE",
    )
    # Others may not record how a completion ended and how many tokens it has. Only the text of the
    # schema changes, not a row: https://sqlite.org/lang_altertable.html#otheralter
    version = db.execute("PRAGMA schema_version").fetchone()[0]
    db.execute("PRAGMA writable_schema = ON")
    for column in ("finish_reason", "num_tokens"):
        db.execute(
            "UPDATE sqlite_schema SET sql = replace(replace(sql, ?, ?), ?, ?) "
            "WHERE type = 'table' AND name = 'rollouts'",
            (
                f'"{column}" TEXT NOT NULL', f'"{column}" TEXT',
                f'"{column}" INTEGER NOT NULL', f'"{column}" INTEGER',
            ),
        )  # fmt: skip
    db.execute(f"PRAGMA schema_version = {version + 1}")
    db.execute("PRAGMA writable_schema = OFF")


def _create(
    db: Database, table: str, columns: str, pk: str | tuple[str, ...], **foreign: str
) -> None:
    """columns: "name type, ...", "?" allows NULL. foreign: column="table action", to its id."""
    kinds = dict(column.split() for column in columns.split(","))
    keys = [
        ForeignKey(table, column, to.split()[0], "id", on_delete=to.split(maxsplit=1)[1])
        for column, to in foreign.items()
    ]
    db.table(table).create(
        {name: _TYPES[kind.rstrip("?")] for name, kind in kinds.items()},
        pk=pk,
        foreign_keys=keys,
        not_null={name for name, kind in kinds.items() if not kind.endswith("?")},
        strict=True,
    )


_TYPES = {"str": str, "int": int, "float": float, "bytes": bytes}


def _add_missing_metrics(db: Database) -> None:
    """Every field of StepMetrics is a column of `steps`: a new metric needs no migration."""
    for name in _missing_metrics(db.conn):
        kind = "INTEGER" if int in getattr(_METRIC_TYPES[name], "__args__", ()) else "REAL"
        db.execute(f'ALTER TABLE steps ADD COLUMN "{name}" {kind}')


_METRIC_TYPES = get_type_hints(StepMetrics)


def _missing_metrics(conn: sqlite3.Connection) -> list[str]:
    there = {row[1] for row in conn.execute("PRAGMA table_info(steps)").fetchall()}
    return [name for name in STEP_METRICS if name not in there]


def prepare(path: Path, writer: Writer, migrations: Migrations = MIGRATIONS) -> None:
    """Make sure that `path` is our file, undamaged, writable and current; create or migrate it.

    Raises StoreError in one line with --db, the path and a hint. A refused file is not changed.
    """
    newest = len(migrations._migrations)
    _check_place(path)
    if _is_current(path, newest):
        return
    if not path.exists():
        # Only the last folder, as runs/ of a fresh clone: a missing grandparent is likely a typo.
        path.parent.mkdir(exist_ok=True)
        path.touch()
    deadline = time.monotonic() + PREPARE_SECONDS
    while True:
        try:
            writer.hold(LOOK_SECONDS)
            break
        except StoreBusy:
            if _is_current(path, newest):  # the writing process has prepared it: it can be read
                return
            if time.monotonic() > deadline:
                raise
    try:
        with explained(path):
            conn = writer.held_connection
            # Again: another process may have migrated the file before we got the lock.
            version = _examine(conn, path, newest)
            if 0 < version < newest:
                _back_up(conn, path, version)
            db = Database(conn, recursive_triggers=False, execute_plugins=False)
            with db.atomic():  # all of it or nothing, the list of applied migrations included
                migrations.apply(db)
                _add_missing_metrics(db)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {newest}")
    finally:
        writer.release()


def _is_current(path: Path, newest: int) -> bool:
    """Whether the file needs no migration. Raises StoreError for a file that cannot be used."""
    if not path.exists() or not path.stat().st_size:
        return False
    # Looked at through a connection that cannot write, before any that can: journal_mode alone
    # would change a foreign file.
    with explained(path), closing(connect(path, "ro")) as conn:
        return _examine(conn, path, newest) == newest and not _missing_metrics(conn)


def _examine(conn: sqlite3.Connection, path: Path, newest: int) -> int:
    """The version of the file; 0: empty. Refuses foreign, damaged and newer files."""
    ours, version, objects = (
        conn.execute(sql).fetchone()[0]
        for sql in (
            "PRAGMA application_id",
            "PRAGMA user_version",
            "SELECT COUNT(*) FROM sqlite_master",
        )
    )
    if ours != APPLICATION_ID and (ours or version or objects):
        raise StoreError(
            f"--db {str(path)!r} is a database of another program. It was left as it is; name "
            "another file with --db."
        )
    log = Path(f"{path}-wal")
    pages, page_bytes = (
        conn.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")
    )
    if path.stat().st_size < pages * page_bytes and not (log.exists() and log.stat().st_size):
        # SQLite itself notices whole missing pages only. With a log, what is missing may well be in
        # there.
        raise StoreError(f"--db {str(path)!r} {PROBLEMS[sqlite3.SQLITE_CORRUPT]}")
    if version > newest:
        raise StoreError(
            f"--db {str(path)!r} has version {version}, this GRPO Studio reads up to {newest}. "
            "Update GRPO Studio, or name another file with --db."
        )
    return version


def _back_up(conn: sqlite3.Connection, path: Path, version: int) -> None:
    """Copy the file to a free name beside it; an earlier copy is never overwritten."""
    names = (Path(f"{path}.v{version}{f'.{n}' if n else ''}.bak") for n in count())
    target = next(p for p in names if not p.exists())
    with closing(sqlite3.connect(target)) as copy:
        conn.backup(copy)


def _check_place(path: Path) -> None:
    shown = f"--db {str(path)!r}"
    if path.is_dir():
        raise StoreError(
            f"{shown} is a directory. Name a file in it, for example --db "
            f"{str(path / 'studio.db')!r}."
        )
    if not path.parent.is_dir() and not (
        path.parent.parent.is_dir()
        and os.access(path.parent.parent, os.W_OK)
        and not path.parent.exists()
    ):
        raise StoreError(
            f"{shown}: the folder {str(path.parent)!r} does not exist. Create it, or name "
            "another file with --db."
        )
    if path.exists() and not path.is_file():
        raise StoreError(f"{shown} is not a regular file. Name another file with --db.")
    # Shorter than a header. SQLite takes a file of one byte for an empty one.
    if path.exists() and 0 < path.stat().st_size < 100:
        raise StoreError(f"{shown} {PROBLEMS[sqlite3.SQLITE_NOTADB]}")
    for kind, place in (("folder", path.parent), ("file", path)):
        if place.exists() and not os.access(place, os.R_OK | os.W_OK):
            raise StoreError(
                f"{shown}: the {kind} {str(place)!r} cannot be written. Change its permissions, "
                "or name another file with --db."
            )


HELDOUT = "heldout/accuracy"  # the one open metric that the list of runs shows

# Kept with the run, so that a list of hundreds of runs reads hundreds of rows and not hundreds of
# thousands.
SUMMARY = f"""
    UPDATE runs SET
      steps_done     = (SELECT COALESCE(MAX(step), 0) FROM steps WHERE run_id = runs.id),
      reward_first   = (SELECT reward_mean FROM steps WHERE run_id = runs.id AND reward_mean NOT
      NULL ORDER BY step LIMIT 1),
      reward_last    = (SELECT reward_mean FROM steps WHERE run_id = runs.id AND reward_mean NOT
      NULL ORDER BY step DESC LIMIT 1),
      heldout_before = (SELECT value FROM metrics WHERE run_id = runs.id AND name = '{HELDOUT}'
      ORDER BY step LIMIT 1),
      heldout_after  = (SELECT value FROM metrics m WHERE run_id = runs.id AND name = '{HELDOUT}'
      AND step > (SELECT MIN(step)
                        FROM metrics WHERE run_id = m.run_id AND name = m.name) ORDER BY step DESC
                        LIMIT 1)
    WHERE id = ?"""
