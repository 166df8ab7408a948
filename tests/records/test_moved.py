"""A folder that was moved is the same run; another folder that begins alike is not."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest

from grpo_core.records.importing import Asked, import_folder
from grpo_core.records.watching import Rhythm, watch_folder

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = ("verl", "verifiers", "verifiers_v0", "nemo_rl", "ms_swift", "trl")


def rows(seed: int) -> str:
    """The lines of one step; `seed` decides all but the prompts."""
    return "".join(
        json.dumps({"step": 1, "input": f"p{i // 2}", "output": f"{seed} {i}", "score": i % 2})
        + "\n"
        for i in range(4)
    )


@pytest.mark.parametrize("name", FOLDERS)
def test_a_moved_folder_adds_nothing(name, store, tmp_path):
    shutil.copytree(GOLDEN / name, tmp_path / "before")
    first = import_folder(store, tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    for _ in range(2):
        again = import_folder(store, tmp_path / "after")
        assert (again.run_id, again.added) == (first.run_id, 0)
    assert len(store.runs()) == 1


def test_a_moved_file_with_another_name_that_has_grown_adds_the_rest(store, tmp_path):
    table, line = tmp_path / "t.jsonl", '{"prompt": "p", "completion": "c", "step": 1}\n'
    table.write_text(line * 2)
    first = import_folder(store, table)
    moved = table.rename(tmp_path / "renamed.jsonl")
    moved.write_text(line * 2 + line.replace("1", "2"))
    found = import_folder(store, moved)
    assert (found.run_id, found.steps, found.added) == (first.run_id, 2, 1)
    assert len(store.runs()) == 1


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_run_that_only_begins_alike_is_another(is_gone, store, tmp_path):
    """With the same seed the first step is the same; and a copy is no move."""
    for folder, last in (("one", 7), ("two", 8 if is_gone else 7)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jsonl").write_text(rows(0))
        (tmp_path / folder / "2.jsonl").write_text(rows(last).replace('"step": 1', '"step": 2'))
    import_folder(store, tmp_path / "one")
    if is_gone:
        shutil.rmtree(tmp_path / "one")
    assert import_folder(store, tmp_path / "two").added == 2
    assert len(store.runs()) == 2


def test_a_followed_folder_that_was_moved_goes_on(store, tmp_path):
    shutil.copytree(GOLDEN / "verl", tmp_path / "before")
    first = import_folder(store, tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    found = watch_folder(store, tmp_path / "after", Asked(), stop, None, Rhythm(0.01))
    assert found is not None
    assert (found.run_id, found.added) == (first.run_id, 0)
