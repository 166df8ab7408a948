"""Import for the page: uploads, folders, previews, and folders that grow."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest
from processes import until

from grpo_core.config.places import ROOTS_VARIABLE
from grpo_core.errors import StudioError
from grpo_core.records import imports as page_imports
from grpo_core.records.imports import Imports, Wanted
from grpo_core.types import RunStatus
from ui.render import imported

ROWS = [
    {"step": s, "prompt": f"What is {s} + 1?", "completion": f"It is {c}.", "reward": c % 2}
    for s in (1, 2)
    for c in range(4)
]


@pytest.fixture
def imports(store, tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path / "cache"))
    return Imports(store)


def written(path, rows=ROWS):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def project(tmp_path) -> Path:
    """trackio's file of two runs."""
    with sqlite3.connect(tmp_path / "sums.db") as db:
        db.executescript((Path(__file__).parent / "golden/trackio.sql").read_text())
    db.close()
    return tmp_path / "sums.db"


def test_a_preview_counts_and_writes_nothing(imports, store, tmp_path):
    found = imports.preview(Wanted((written(tmp_path / "mine.jsonl"),)))
    numbers = found.numbers
    assert (numbers.format, numbers.steps, numbers.groups, numbers.rollouts) == ("table", 2, 2, 8)
    assert numbers.recomputed == {"advantage": "group_std"}
    assert "token_ids" in numbers.absent
    assert found.whole
    assert store.runs() == []


def test_a_preview_cut_short_still_shows_the_first_run(imports, tmp_path, monkeypatch):
    monkeypatch.setattr(page_imports, "PREVIEW_STEPS", 2)  # the first of the project has one
    found = imports.preview(Wanted((project(tmp_path),)))
    assert (found.run.name, found.whole) == ("sums", False)


def test_all_runs_of_a_project_are_named_and_can_be_opened(imports, store, tmp_path):
    wanted = Wanted((project(tmp_path),))
    before, done = imports.preview(wanted), imports.run(wanted)
    assert [r.name for r in before.others] == [r.name for r in done.others] == ["async-grpo"]
    assert "1 further run of the project: “async-grpo”." in imported.preview(before)
    said = imported.result(done)
    assert all(f'data-run="{run.id}"' in said for run in store.runs())
    store.rename(done.others[0].id, "<img src=x>")
    assert "<img" not in imported.result(imports.run(wanted))


def test_the_same_upload_is_the_same_run(imports, store, tmp_path):
    (tmp_path / "a").mkdir()
    first = imports.run(Wanted((written(tmp_path / "mine.jsonl"),)))
    again = imports.run(Wanted((written(tmp_path / "a" / "mine.jsonl"),)))
    assert [run.id for run in store.runs()] == [first.run.id] == [again.run.id]
    assert (first.numbers.added, again.numbers.added) == (2, 0)
    assert first.run.name == "mine"
    assert imports.preview(Wanted((tmp_path / "mine.jsonl",))).known == first.run.id


def test_a_preview_of_a_moved_folder_says_that_it_is_known(imports, tmp_path):
    (tmp_path / "before").mkdir()
    written(tmp_path / "before" / "rows.jsonl")
    first = imports.run(Wanted(place=str(tmp_path / "before")))
    (tmp_path / "before").rename(tmp_path / "after")
    assert imports.preview(Wanted(place=str(tmp_path / "after"))).known == first.run.id


def test_uploads_are_not_kept(imports, tmp_path):
    imports.run(Wanted((written(tmp_path / "mine.jsonl"),)))
    left = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert left == []


def test_named_columns_are_read(imports, tmp_path):
    rows = [{"q": "2+2", "said": "4", "points": 1}, {"q": "2+2", "said": "5", "points": 0}]
    file = written(tmp_path / "odd.jsonl", rows)
    columns = {"prompt": "q", "completion": "said", "reward": "points"}
    found = imports.run(Wanted((file,), format="table", columns=columns))
    assert [r.reward for r in found.group.rollouts] == [1.0, 0.0]
    assert imports.columns(Wanted((file,))) == ["q", "said", "points"]


def test_a_path_outside_the_allowed_folders_is_not_looked_at(imports, tmp_path, monkeypatch):
    monkeypatch.setenv(ROOTS_VARIABLE, str(tmp_path / "allowed"))
    outside = written(tmp_path / "secret.jsonl")
    for place in (outside, tmp_path / "not there.jsonl"):
        with pytest.raises(StudioError, match="does not read files there"):
            imports.preview(Wanted(place=str(place)))
    (tmp_path / "allowed").mkdir()
    inside = written(tmp_path / "allowed" / "mine.jsonl")
    assert imports.preview(Wanted(place=str(inside))).numbers.rollouts == 8


def test_a_server_that_takes_no_more_runs_imports_none(store, tmp_path):
    def full():
        raise StudioError("the disk is full")

    with pytest.raises(StudioError, match="the disk is full"):
        Imports(store, full).run(Wanted((written(tmp_path / "mine.jsonl"),)))
    assert store.runs() == []


def test_a_followed_folder_grows_on_the_page(imports, store, tmp_path):
    folder = tmp_path / "growing"
    folder.mkdir()
    written(folder / "rows.jsonl", ROWS[:4])
    imports.follow(Wanted(place=str(folder)))
    assert imports.followed() == [os.path.realpath(folder)]
    until(lambda: store.runs() and store.runs()[0].steps_done == 1)
    assert store.runs()[0].status is RunStatus.RUNNING
    with pytest.raises(StudioError, match="followed already"):
        imports.follow(Wanted(place=str(folder)))
    imports.unfollow(os.path.realpath(folder))
    assert store.runs()[0].status is RunStatus.STOPPED
    assert imports.followed() == []


def test_an_upload_cannot_be_followed(imports, tmp_path):
    with pytest.raises(StudioError, match="an upload does not grow"):
        imports.follow(Wanted((written(tmp_path / "mine.jsonl"),)))
