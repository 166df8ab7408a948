"""Tables of completions: their columns, their groups, and what is wrong with them."""

from __future__ import annotations

import csv
import json
import random
import statistics
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.records.importing import Asked, import_folder
from grpo_core.records.record import SourceGroup, SourceRollout, SourceRun, SourceStep
from grpo_core.records.writer import RecordWriter
from grpo_core.store import export_rollouts_jsonl
from grpo_core.types import GroupKind, RunStatus

ROWS = [
    {"step": 1, "group": "a", "prompt": "2+2=", "completion": "4", "correct": 1, "brief": 0.5},
    {"step": 1, "group": "b", "prompt": "3+3=", "completion": "7", "correct": 0, "brief": 0.5},
    {"step": 1, "group": "a", "prompt": "2+2=", "completion": "5", "correct": 0, "brief": 0.25},
    {"step": 2, "group": "a", "prompt": "2+2=", "completion": "4", "correct": 1, "brief": 0.5},
    {"step": 1, "group": "b", "prompt": "3+3=", "completion": "6", "correct": 1, "brief": None},
]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def texts(store, run_id):
    return [
        (g.step, g.prompt, [r.text for r in g.rollouts], [r.reward for r in g.rollouts])
        for g in store.iter_groups(run_id)
    ]


EXPECTED = [
    (1, "2+2=", ["4", "5"], [1.5, 0.25]),
    (1, "3+3=", ["7", "6"], [0.5, 1.0]),
    (2, "2+2=", ["4"], [1.5]),
]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_siblings_find_each_other_in_every_kind_of_file(store, tmp_path, kind):
    path = tmp_path / f"table.{kind}"
    if kind == "jsonl":
        jsonl(path, ROWS)
    elif kind == "csv":
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, ROWS[0])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    found = import_folder(store, path)
    assert (found.format, found.steps, found.groups, found.rollouts) == ("table", 2, 3, 5)
    assert texts(store, found.run_id) == EXPECTED
    assert store.run(found.run_id).status is RunStatus.FINISHED
    assert import_folder(store, path).added == 0
    assert len(store.runs()) == 1


def test_a_grown_file_adds_the_rest(store, tmp_path):
    path = jsonl(tmp_path / "t.jsonl", ROWS[:3])
    import_folder(store, path)
    jsonl(path, ROWS)
    found = import_folder(store, path)
    assert texts(store, found.run_id) == EXPECTED
    assert (len(store.runs()), found.rollouts) == (1, 5)


def test_columns_can_be_named(store, tmp_path):
    rows = [{"frage": "2+2=", "antwort": a, "note": r} for a, r in (("4", 2), ("5", 1))]
    path = jsonl(tmp_path / "t.jsonl", rows)
    with pytest.raises(
        StudioError, match=r"--columns completion=NAME\. Columns: frage, antwort, note"
    ):
        import_folder(store, path)
    with pytest.raises(InvalidConfig, match="Columns: frage, antwort, note"):
        import_folder(store, path, Asked("table", columns={"completion": "answer"}))
    named = {"prompt": "frage", "completion": "antwort", "reward": "note"}
    found = import_folder(store, path, Asked("table", name="mine", columns=named))
    assert texts(store, found.run_id) == [(1, "2+2=", ["4", "5"], [2.0, 1.0])]
    assert store.run(found.run_id).name == "mine"


def test_without_steps_every_eight_groups_are_one(store, tmp_path):
    rows = [{"prompt": f"p{i}", "completion": "c", "reward": 1} for i in range(20)]
    found = import_folder(store, jsonl(tmp_path / "t.jsonl", rows))
    assert [len(store.group_ids(found.run_id, s)) for s in (1, 2, 3)] == [8, 8, 4]


def test_an_exported_run_comes_back_as_it_was(store, tmp_path):
    found = import_folder(store, jsonl(tmp_path / "t.jsonl", ROWS))
    with (tmp_path / "export.jsonl").open("w") as out:
        export_rollouts_jsonl(store, found.run_id, out)
    again = import_folder(store, tmp_path / "export.jsonl")
    assert texts(store, again.run_id) == EXPECTED
    for one, two in zip(
        store.iter_groups(found.run_id), store.iter_groups(again.run_id), strict=True
    ):
        assert [r.advantage for r in two.rollouts] == [r.advantage for r in one.rollouts]
        assert [dict(r.scores) for r in two.rollouts] == [dict(r.scores) for r in one.rollouts]


def test_evaluations_are_told_by_their_kind(store, tmp_path):
    rows = [{**row, "kind": "evaluation"} for row in ROWS[:3]]
    found = import_folder(store, jsonl(tmp_path / "t.jsonl", rows))
    assert len(list(store.iter_groups(found.run_id, kind=GroupKind.EVALUATION))) == 2
    assert texts(store, found.run_id) == []


# ---- hostile and damaged -------------------------------------------------------------------------


def test_bad_lines_are_left_out_with_their_numbers(store, tmp_path):
    path = tmp_path / "t.jsonl"
    good = [json.dumps(row) for row in ROWS[:3]]
    path.write_text("\n".join([good[0], "{not json", "[1, 2]", good[1], good[2], good[0][:20]]))
    found = import_folder(store, path)
    assert found.rollouts == 3
    told = "\n".join(found.left_out)
    for line in ("line 2", "line 3", "line 6"):
        assert line in told
    assert all(str(path) in line for line in found.left_out)


def test_values_of_a_wrong_type_are_absent(store, tmp_path):
    rows = [
        {"prompt": "p", "completion": "a", "reward": "good", "step": "one"},
        {"prompt": "p", "completion": "b", "reward": [1], "step": -3, "num_tokens": 10**30},
        {"prompt": "p", "completion": "c", "reward": 1e400},
        {"prompt": "p", "completion": {"deep": ["x"]}, "reward": True},
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(r).replace("Infinity", "NaN") + "\n" for r in rows))
    found = import_folder(store, path)
    rollouts = [r for g in store.iter_groups(found.run_id) for r in g.rollouts]
    rewards = {r.text: r.reward for r in rollouts}
    assert rewards == {"a": None, "b": None, "c": None, '{"deep": ["x"]}': 1.0}
    assert [r.num_tokens for r in rollouts] == [None] * 4


def test_a_text_of_five_megabytes_is_cut_and_said(store, tmp_path):
    rows = [{"prompt": "p", "completion": "x" * 5_000_000, "reward": 1}, *ROWS[:1]]
    found = import_folder(store, jsonl(tmp_path / "t.jsonl", rows))
    longest = max(len(r.text) for g in store.iter_groups(found.run_id) for r in g.rollouts)
    assert longest == 400_001
    assert "5000000 characters" in found.left_out[0]


def test_markup_and_paths_stay_what_they_are(store, tmp_path):
    hostile = "<script>alert(1)</script>../../etc/passwd\x00\ud800"
    rows = [{"prompt": hostile, "completion": hostile, "reward": 1, hostile: 0.5}]
    found = import_folder(store, jsonl(tmp_path / "t.jsonl", rows), Asked(name=hostile))
    run = store.run(found.run_id)
    rollout = next(store.iter_groups(run.id)).rollouts[0]
    assert rollout.text.startswith("<script>alert(1)</script>../../etc/passwd")
    names = [c["name"] for c in run.config["rubric"]["criteria"]]
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz1_.-") for name in names)


@pytest.mark.parametrize(
    ("name", "why"),
    [("rollouts.pkl", "is a pickle"), ("rollouts.pt", "is a pickle"), ("r.zip", "is an archive")],
)
def test_what_would_have_to_be_run_is_refused_with_the_reason(store, tmp_path, name, why):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(StudioError, match=why):
            import_folder(store, path)
    assert store.runs() == []


def test_a_parquet_bomb_kills_only_its_helper(store, tmp_path):
    path = tmp_path / "p.parquet"
    rows = {"prompt": ["p"] * 256, "completion": ["a" * 1_050_000] * 256, "reward": [1.0] * 256}
    pq.write_table(pa.table(rows), path, compression="zstd", row_group_size=256)
    with pytest.raises(StudioError, match="256 rows take"):
        import_folder(store, tmp_path)


def test_an_import_stopped_midway_keeps_what_it_read(store, tmp_path):
    rows = [{"prompt": f"p{i}", "completion": "c", "reward": 1} for i in range(40)]
    path = jsonl(tmp_path / "t.jsonl", rows)

    def stop_at_two(steps, rollouts):
        if steps == 2:
            raise StudioError("enough")

    with pytest.raises(StudioError, match="enough"):
        import_folder(store, path, progress=stop_at_two)
    run = store.runs()[0]
    assert (run.status, run.error) == (RunStatus.STOPPED, "The import ended early: enough")
    assert import_folder(store, path).rollouts == 40
    assert store.run(run.id).error is None


def test_limits_and_roots_are_kept(store, tmp_path, monkeypatch):
    path = jsonl(tmp_path / "t.jsonl", ROWS)
    with pytest.raises(StudioError, match="at most 0 MiB"):
        import_folder(store, path, Asked(max_bytes=10))
    monkeypatch.setenv("GRPO_STUDIO_ROOTS", str(tmp_path / "elsewhere"))
    with pytest.raises(StudioError, match="outside the folders"):
        import_folder(store, path)


@pytest.mark.parametrize("estimator", ["batch_std", "per_criterion"])
def test_advantages_in_the_scale_of_a_step_are_checked_in_its_parts(store, tmp_path, estimator):
    """40 groups are read in two parts, of which the second has far larger rewards."""
    draw, rows = random.Random(0), []
    for g in range(40):
        rewards = [draw.random() * (9 if g > 31 else 1) for _ in range(4)]
        mean, std = statistics.mean(rewards), statistics.stdev(rewards)
        scale = std + 1e-4 if estimator == "per_criterion" else 1
        rows += [
            {"step": 1, "group": g, "prompt": f"p{g}", "completion": f"{g} {i}", "correct": r}
            | {"advantage": (r - mean) / scale}
            for i, r in enumerate(rewards)
        ]
    of = "advantage" if estimator == "per_criterion" else "correct"
    spread = statistics.stdev(row[of] for row in rows) + 1e-4
    rows = [row | {"advantage": row["advantage"] / spread} for row in rows]
    found = import_folder(store, jsonl(tmp_path / "t.jsonl", rows))
    run = store.run(found.run_id)
    assert run.config["algorithm"]["advantage"] == estimator
    assert (run.source.estimator, found.disagreements) == ("found", 0)
    rows[150]["advantage"] *= -1
    wrong = import_folder(store, jsonl(tmp_path / "t.jsonl", rows))
    assert (wrong.run_id, wrong.disagreements, wrong.added) == (found.run_id, 1, 1)


def test_a_part_of_a_step_fills_no_advantage_in_the_scale_of_all(store):
    theirs = SourceRun(
        trainer="x", format="table", key="k", name="n", settings={"scale_rewards": "batch"}
    )
    group = SourceGroup(
        prompt="p", rollouts=[SourceRollout(text=str(r), scores={"s": r}) for r in (0.0, 1.0)]
    )
    for is_cut, expected in ((True, [None, None]), (False, [-0.70701, 0.70701])):
        with RecordWriter(store, replace(theirs, key=f"{is_cut}")) as writer:
            writer.write(SourceStep(step=1, groups=(group,), is_cut=is_cut))
        [kept] = store.iter_groups(writer.run_id)
        # (1 - 1/2) / (sqrt(1/2) + 1e-4)
        assert [r.advantage for r in kept.rollouts] == pytest.approx(expected, abs=1e-5)
