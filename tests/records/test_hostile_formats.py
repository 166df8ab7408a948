"""Damaged and hostile files of other trainers: one warning each, or shown as text."""

from __future__ import annotations

import copy
import json
import logging
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo_core.errors import StoreError, StudioError
from grpo_core.records.formats import (
    ms_swift,
    nemo_rl,
    rows,
    trackio,
    verifiers,
    verifiers_v0,
    verl,
)
from grpo_core.records.record import SourceRun, SourceStep, from_plain, to_plain
from grpo_core.store.foreign_file import ForeignFile

GOLDEN = Path(__file__).parent / "golden"
FILES = {
    "verl": (verl, "verl/rollout/1.jsonl"),
    "verifiers": (verifiers, "prime_rl/rollouts/step_1/train/effective/traces.jsonl"),
    "verifiers-v0": (verifiers_v0, "verifiers_v0/results.jsonl"),
    "nemo-rl": (nemo_rl, "nemo_rl/train_data_step1.jsonl"),
    "ms-swift": (ms_swift, "ms_swift/completions.jsonl"),
}
HOSTILE = (
    None, True, -1, 1.5, 10**30, float("nan"), float("inf"), "", "1e999", "<script>x</script>\0",
    "\ud800", [], {}, [None], [{}], [["a"]], {"role": "user"}, [{"role": 1}], "NaN", -0.0,
)  # fmt: skip


def steps_of(reader: Any, path: Path) -> list[SourceStep]:
    return [record for record in reader.read(path) if isinstance(record, SourceStep)]


def rollouts_of(reader: Any, path: Path) -> list[Any]:
    return [r for s in steps_of(reader, path) for g in s.groups for r in g.rollouts]


@pytest.fixture(params=FILES)
def damaged(request, tmp_path):
    """A reader, a copy of one of its files, and the lines of that file."""
    reader, name = FILES[request.param]
    path = tmp_path / Path(name).name
    shutil.copy(GOLDEN / name, path)
    return reader, path, path.read_text().splitlines()


def places(value: Any) -> Iterator[list[Any]]:
    """The path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items)[: 3 if isinstance(value, list) else 12]:
        yield [key]
        if isinstance(inner, dict | list):
            yield from ([key, *rest] for rest in places(inner))


def with_value(row: Any, place: list[Any], value: Any) -> Any:
    changed = copy.deepcopy(row)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def test_any_value_of_a_wrong_type_ends_no_import(damaged):
    reader, path, lines = damaged
    row = json.loads(lines[-1])
    for place in places(row):
        for value in HOSTILE:
            path.write_text("\n".join([json.dumps(with_value(row, place, value)), *lines, ""]))
            for record in reader.read(path):
                plain = json.loads(json.dumps(to_plain(record)))
                from_plain("run" if isinstance(record, SourceRun) else "step", plain)


def test_a_column_that_is_missing_ends_no_import(damaged):
    reader, path, lines = damaged
    row = json.loads(lines[-1])
    for name in row:
        less = {k: v for k, v in row.items() if k != name}
        path.write_text("\n".join([*lines, json.dumps(less), ""]))
        assert len(rollouts_of(reader, path)) >= len(lines) - 1


def test_a_line_that_is_cut_off_is_left_out_with_one_warning(damaged, caplog):
    reader, path, lines = damaged
    path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])
    before = len(rollouts_of(reader, path))
    (warning,) = {r.getMessage() for r in caplog.records}
    assert warning == f"{path}: line {len(lines)} is cut off; it was left out."
    path.write_text("\n".join(lines[:-1]) + "\n")
    assert len(rollouts_of(reader, path)) == before > 0


def test_lines_that_are_no_rows_are_left_out_with_their_number(damaged, caplog):
    reader, path, lines = damaged
    expected = len(rollouts_of(reader, path))
    caplog.clear()
    path.write_text("\n".join([lines[0], "{oops", "[1, 2]", "", "\x00", *lines[1:], ""]))
    assert len(rollouts_of(reader, path)) == expected
    told = sorted({r.getMessage().removeprefix(f"{path}: ") for r in caplog.records})
    assert [t.split(" (")[0] for t in told] == [
        "line 2 is not JSON",
        "line 3 is not a JSON object; it was left out.",
        "line 5 is not JSON",
    ]


def test_many_bad_lines_make_few_warnings(tmp_path, caplog):
    path = tmp_path / "1.jsonl"
    path.write_text("{\n" * 1000)
    assert list(rows.rows(path)) == []
    assert len(caplog.records) == rows.MAX_WARNINGS
    assert caplog.records[-1].getMessage().endswith("Further lines like it are left out too.")


def test_a_text_of_five_megabytes_is_kept_whole(tmp_path):
    path = tmp_path / "1.jsonl"
    row = {"input": "q", "output": "<b>" * 1_700_000, "gts": None, "score": 1, "step": 1}
    path.write_text(json.dumps(row) + "\n")
    (rollout,) = rollouts_of(verl, path)
    assert rollout.text == "<b>" * 1_700_000


def test_a_line_above_the_limit_is_left_out(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "1.jsonl"
    row = {"input": "q", "output": "a", "gts": None, "score": 1, "step": 1}
    long = {**row, "output": "x" * (3 << 20)}
    path.write_text("\n".join(map(json.dumps, [row, long, row])) + "\n")
    assert len(rollouts_of(verl, path)) == 2
    assert caplog.records[0].getMessage().endswith("line 2 has more than 1 MiB; it was left out.")


def test_a_group_above_the_limit_is_cut_with_a_warning(tmp_path, caplog):
    path = tmp_path / "1.jsonl"
    row = {"input": "q", "output": "a", "gts": None, "score": 1, "step": 1}
    path.write_text((json.dumps(row) + "\n") * 3000)
    assert len(rollouts_of(verl, path)) == 1024
    assert "a group has 3,000 rows" in caplog.text


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "1.jsonl"
    row = {"input": "q", "output": "a", "gts": None, "score": 1, "step": 1}
    path.write_text(json.dumps(row) + "\n")

    def key(found: dict[str, Any]) -> str:
        path.write_text(json.dumps({**row, "input": "other"}) + "\n")
        return found["input"]

    with pytest.raises(StudioError, match=r"changed while it was read\. Import it again\."):
        list(rows.by_key(path, key))


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(StudioError, match="cannot be read: No such file"):
        list(rows.rows(tmp_path / "1.jsonl"))


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    outside = tmp_path / "outside.jsonl"
    shutil.copy(GOLDEN / "verl/rollout/1.jsonl", outside)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "1.jsonl").symlink_to(outside)
    assert verl.files(folder) == []
    assert not verl.finds(folder)


def test_ms_swift_step_that_comes_again_is_a_part_or_a_resumed_run(tmp_path):
    def table(step: int, answer: str) -> str:
        columns = {"step": [str(step)] * 2, "prompt": ["q"] * 2, "completion": [answer, "b"]}
        return json.dumps({**columns, "right": [1, 0], "advantages": [1, -1]}) + "\n"

    path = tmp_path / "completions.jsonl"
    path.write_text(table(1, "a") + table(1, "c") + table(2, "d") + table(1, "e"))
    found = steps_of(ms_swift, path)
    assert [(s.step, s.part) for s in found] == [(1, 0), (1, 1), (2, 0), (1, 0)]


# ---- SQLite --------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path) -> Path:
    path = tmp_path / "sums.db"
    with sqlite3.connect(path) as db:
        db.executescript((GOLDEN / "trackio.sql").read_text().replace(" NOT NULL", ""))
    db.close()
    return path


def changed(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


@pytest.mark.parametrize("column", ["messages", "metadata", "step", "run_name", "key"])
def test_any_cell_of_a_trackio_project_may_be_wrong(project, column):
    for value in ("NULL", "-1", "'x'", "X'FF00'", "'[{}]'", "'[{\"role\": 3}]'", "1e999", "'{'"):
        changed(project, f"UPDATE traces SET {column} = {value} WHERE trace_index = 0")
        for record in trackio.read(project):
            plain = json.loads(json.dumps(to_plain(record)))
            from_plain("run" if isinstance(record, SourceRun) else "step", plain)


def test_reading_a_foreign_database_leaves_no_file_beside_it(project):
    changed(project, "PRAGMA journal_mode = WAL")
    before = project.read_bytes()
    assert len(list(trackio.read(project))) > 2
    assert project.read_bytes() == before
    assert [p.name for p in project.parent.iterdir()] == [project.name]


def test_rows_still_in_the_log_of_a_running_project_are_read(project):
    writer = sqlite3.connect(project)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("UPDATE traces SET step = 9 WHERE step = 1")
    writer.commit()
    try:
        assert {s.step for s in steps_of(trackio, project)} == {1, 2, 5, 9}
    finally:
        writer.close()


def test_a_view_in_place_of_a_table_is_not_evaluated(project):
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
    columns = "i AS run_name, i AS step, i AS key, i AS trace_index, i AS messages, i AS metadata"
    changed(
        project, "DROP TABLE traces", f"CREATE VIEW traces AS {endless} SELECT {columns} FROM n"
    )
    assert not trackio.finds(project)
    assert [r.name for r in trackio.read(project) if isinstance(r, SourceRun)] == ["grpo"]


def test_a_column_that_computes_itself_is_not_read(project):
    changed(
        project,
        "DROP TABLE configs",
        "CREATE TABLE configs (run_name TEXT, config TEXT AS (hex(zeroblob(1 << 28))))",
        "INSERT INTO configs (run_name) VALUES ('x')",
    )
    with ForeignFile(project) as file:
        assert file.columns("configs") == ["run_name"]
        assert list(file.rows("configs", ["run_name", "config"])) == [
            {"run_name": "x", "config": None}
        ]


def test_a_file_that_is_no_or_half_a_database_is_refused_in_one_line(project):
    data = project.read_bytes()
    project.write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError):
        list(trackio.read(project))
    project.write_bytes(b"PK\x03\x04" + data)
    assert not trackio.finds(project)
    with pytest.raises(StoreError, match=r"sums\.db is not a SQLite file\."):
        ForeignFile(project)


def test_names_of_tables_and_columns_are_only_names(tmp_path):
    path = tmp_path / "odd.db"
    changed(path, 'CREATE TABLE "a""; DROP TABLE b; --" ("x"" y" INTEGER)', "CREATE TABLE b (c)")
    with ForeignFile(path) as file:
        assert file.columns('a"; DROP TABLE b; --') == ['x" y']
        assert list(file.rows('a"; DROP TABLE b; --', ['x" y'])) == []
        assert file.columns("b") == ["c"]


@pytest.fixture(autouse=True)
def _all_warnings(caplog):
    caplog.set_level(logging.WARNING, "grpo_studio.import")
