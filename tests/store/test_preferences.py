"""Judgements of pairs: stored at once, kept when their run goes, refused while another writes."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from stored import group, recorded, rollout

from grpo_core.errors import StoreBusy
from grpo_core.store import Store, preferences
from grpo_core.store.preferences import Preference
from grpo_core.store.snapshot import Snapshots
from grpo_core.types import Group, GroupsScored, Prompt

SAMPLES = Path(__file__).parent / "samples"
ONE = Preference(
    prompt_id="sums-7",
    prompt="2+2=",
    left="4",
    right="<b>5</b> \u202e",
    verdict="left",
    who="Ada",
    seconds=1.5,
    created_at=1000.25,
    source="page",
    before=({"role": "system", "content": "Add."},),
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs.sqlite")


def test_a_judgement_reads_back_as_it_was_written(store):
    rows = [ONE, replace(ONE, verdict="tie", who="", margin=0.5, ranking="r1", before=())]
    ids = preferences.add(store, rows)
    assert preferences.read(Store(store.path)) == [
        replace(ONE, id=ids[0], before=[{"role": "system", "content": "Add."}]),
        replace(rows[1], id=ids[1], before=[]),
    ]
    assert preferences.people(store) == ["", "Ada"]
    assert [p.id for p in preferences.read(store, "Ada")] == ids[:1]


def test_chosen_and_rejected_follow_the_verdict():
    found = {
        v: (p.chosen, p.rejected) for v in preferences.VERDICTS for p in [replace(ONE, verdict=v)]
    }
    assert found == {
        "left": (ONE.left, ONE.right),
        "right": (ONE.right, ONE.left),
        "tie": (None, None),
        "skip": (None, None),
    }


def test_a_judgement_taken_back_is_gone_and_changes_the_token(store):
    before = preferences.token(store)
    ids = preferences.add(store, [ONE])
    added = preferences.token(store)
    preferences.remove(store, ids)
    assert preferences.read(store) == []
    assert before == preferences.token(store) != added


def test_numbers_and_texts_that_sqlite_refuses_are_cleaned(store):
    preferences.add(store, [replace(ONE, left="\ud800\0", margin=float("nan"))])
    [row] = preferences.read(store)
    assert (row.left, row.margin) == ("?\ufffd", None)


def test_deleting_a_run_keeps_its_judgements(store):
    run_id = recorded(store, GroupsScored(1, [group()]))
    [group_id] = store.group_ids(run_id, 1)
    preferences.add(store, [replace(ONE, run_id=run_id, group_id=group_id)])
    assert [(p.run_id, p.group_id) for p in preferences.read(store)] == [(run_id, group_id)]
    store.delete(run_id)
    assert [(p.run_id, p.group_id, p.left) for p in preferences.read(store)] == [(None, None, "4")]
    assert store.integrity() == []


def test_a_judgement_of_a_run_deleted_meanwhile_is_stored(store):
    preferences.add(store, [replace(ONE, run_id="20260101-000000-abcd", group_id=7)])
    assert [(p.run_id, p.group_id) for p in preferences.read(store)] == [(None, None)]


def test_a_write_while_another_process_holds_the_file_is_refused(store):
    code = (
        "import sys; from grpo_core.store import Store\n"
        "with Store(sys.argv[1]).writing():\n    print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(store.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    with other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(StoreBusy, match="another process is writing to it"):
            preferences.add(store, [ONE])
        other.stdin.close()
    assert len(preferences.add(store, [ONE])) == 1


CHAT = Prompt(
    "p", "And 3+3?", "6", "file",
    {"before": [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "2+2?\n\nuser: x"},
        {"role": "assistant", "content": "4"},
    ]},
)  # fmt: skip


@pytest.mark.parametrize(
    "prompt",
    [CHAT, replace(CHAT, meta={"before": CHAT.meta["before"][:1]}), replace(CHAT, meta={})],
)
def test_the_prompt_of_a_stored_group_is_asked_again_as_it_was(store, prompt):
    run_id = recorded(
        store, GroupsScored(1, [Group(prompt, (rollout("6"), rollout("7")), 0.5, 0.5, "healthy")])
    )
    [found] = store.newest_groups(run_id, 1)
    kept = replace(ONE, prompt=found.prompt, before=found.before)
    assert kept.asked.text == prompt.text
    assert kept.asked.meta["before"] == list(prompt.meta.get("before", ()))


@pytest.mark.parametrize("sample", ["version-5.sqlite", "version-6.sqlite"])
def test_an_old_file_gets_an_empty_table_of_judgements(tmp_path, sample):
    shutil.copyfile(SAMPLES / sample, tmp_path / "runs.sqlite")
    store = Store(tmp_path / "runs.sqlite")
    assert preferences.read(store) == []
    assert not any(g.before for run in store.runs() for g in store.iter_groups(run.id))
    assert len(preferences.add(store, [ONE])) == 1


def test_groups_of_an_old_run_on_a_file_get_its_system_prompt(tmp_path):
    path = tmp_path / "runs.sqlite"
    shutil.copyfile(SAMPLES / "version-5.sqlite", path)
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute(
            "UPDATE runs SET config = json_set(config, '$.task.name', 'file', "
            "'$.task.system', 'Add.')"
        )
    store = Store(path)
    before = [g.before for run in store.runs() for g in store.iter_groups(run.id)]
    assert before == [[{"role": "system", "content": "Add."}]] * 12


def test_a_judgement_alone_renews_the_snapshot(store, tmp_path):
    snapshots = Snapshots(store.path, tmp_path / "bucket")
    assert snapshots.renew(now=True)
    assert not snapshots.renew(now=True)
    preferences.add(store, [ONE])
    assert snapshots.renew(now=True)
