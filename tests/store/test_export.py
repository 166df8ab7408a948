"""Exports: complete, readable by other programs, harmless in a spreadsheet or a terminal."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest

from grpo_core.config import RunConfig, parse
from grpo_core.errors import NotFound
from grpo_core.store import (
    Recorder,
    Store,
    export,
    export_config_json,
    export_metrics_csv,
    export_rollouts_jsonl,
    export_rollouts_parquet,
)
from grpo_core.types import (
    STEP_METRICS,
    Completion,
    Evaluated,
    Group,
    GroupsScored,
    Prompt,
    Rollout,
    RunStatus,
    StepCompleted,
    StepMetrics,
)

FORMULAS = ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0", "＝1+1"]
ODD_TEXTS = [
    *FORMULAS,
    "two\nlines",
    "line\u2028separator",
    "\x1b[31mred",
    '"quoted", comma',
    "four…",
    "<script>",
    "",
]


def recorded(store: Store, *events: object) -> str:
    run_id = store.create_run(parse({"train": {"steps": 7}}), "a run", status=RunStatus.FINISHED)
    with Recorder(store, run_id) as recorder:
        for event in events:
            recorder(event)
    return run_id


def table(store: Store, run_id: str) -> list[dict[str, str]]:
    out = io.StringIO(newline="")
    export_metrics_csv(store, run_id, out)
    return list(csv.DictReader(io.StringIO(out.getvalue(), newline="")))


def groups(step: int) -> GroupsScored:
    rollouts = tuple(
        Rollout(
            Completion(text, "stop", i),
            {"accuracy": 1.0, "format": None},
            None if i == 0 else i / 4,
            i / 8,
        )
        for i, text in enumerate(ODD_TEXTS)
    )
    return GroupsScored(
        step,
        tuple(
            Group(Prompt(f"p{i}", "2+2=", "4", "sums"), rollouts, 0.5, 0.1, "informative")
            for i in range(2)
        ),
    )


def test_metrics_are_one_row_a_step_with_the_open_metrics_beside(store: Store) -> None:
    run_id = recorded(
        store,
        Evaluated(0, {"heldout/accuracy": 0.25}),
        StepCompleted(1, StepMetrics(loss=-0.5, tokens=12, kl=math.nan), {"score/format": 1e-9}),
        StepCompleted(2, StepMetrics(loss=0.1), {}),
        Evaluated(2, {"heldout/accuracy": 0.5}),
    )
    rows = table(store, run_id)
    assert list(rows[0]) == ["step", *STEP_METRICS, "heldout/accuracy", "score/format"]
    picked = [
        (r["step"], r["loss"], r["kl"], r["tokens"], r["heldout/accuracy"], r["score/format"])
        for r in rows
    ]
    # Step 0 was only evaluated. A negative loss is a number, not a formula. An unmeasured value is
    # empty.
    assert picked == [
        ("0", "", "", "", "0.25", ""),
        ("1", "-0.5", "", "12", "", "1e-09"),
        ("2", "0.1", "", "", "0.5", ""),
    ]


def test_a_long_run_is_exported_whole_and_unthinned(store: Store) -> None:
    run_id = store.create_run(RunConfig(), "long", status=RunStatus.FINISHED)
    with store.writing() as writer, writer.transaction(), Recorder(store, run_id) as recorder:
        for step in range(1, 2502):
            recorder(
                StepCompleted(
                    step, StepMetrics(loss=float(step)), {"a": step} if step % 3 == 0 else {}
                )
            )
    rows = table(store, run_id)
    assert [(int(r["step"]), float(r["loss"]), r["a"]) for r in rows] == [
        (s, float(s), f"{s}.0" if s % 3 == 0 else "") for s in range(1, 2502)
    ]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_cell_of_the_table_is_run_by_a_spreadsheet(store: Store, name: str) -> None:
    run_id = recorded(
        store, StepCompleted(1, StepMetrics(loss=-1.0), {name: -2.0, "harmless": 1.0})
    )
    (row,) = table(store, run_id)
    assert [k for k in row if k not in ("step", *STEP_METRICS)] == sorted(
        [f"'{name}", "harmless"], key=lambda k: k.removeprefix("'")
    )
    assert (row[f"'{name}"], row["loss"]) == ("-2.0", "-1.0")


def test_rollouts_come_back_from_json_lines_as_they_were(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = recorded(store, *map(groups, range(1, 120)))  # more than one chunk of groups
    recorded(store, groups(1))  # of another run
    out = io.StringIO()
    export_rollouts_jsonl(store, run_id, out)
    lines = out.getvalue().split("\n")
    assert not [line for line in lines if not (line.isascii() and line.isprintable())][
        :1
    ]  # [:1]: a failure should not print megabytes
    rows = [json.loads(line, parse_constant=pytest.fail) for line in out.getvalue().splitlines()]
    assert len(rows) == 119 * 2 * len(ODD_TEXTS)
    assert list(rows[0]) == list(export.COLUMNS)
    assert [(r["step"], r["prompt_id"], r["position"]) for r in rows] == [
        (step, f"p{g}", i)
        for step in range(1, 120)
        for g in range(2)
        for i in range(len(ODD_TEXTS))
    ]
    assert [r["text"] for r in rows[: len(ODD_TEXTS)]] == ODD_TEXTS
    assert rows[1] == {
        "run_id": run_id,
        "step": 1,
        "group_id": store.group_ids(run_id, 1)[0],
        "position": 1,
        "prompt_id": "p0",
        "prompt": "2+2=",
        "answer": "4",
        "text": "+1",
        "finish_reason": "stop",
        "num_tokens": 1,
        "reward": 0.25,
        "advantage": 0.125,
        "scores": {"accuracy": 1.0, "format": None},
        "verdict": "informative",
        "kind": "training",
        "turns": [],
    }
    assert rows[0]["reward"] is None


def test_parquet_holds_the_same_rows_typed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    monkeypatch.setattr(export, "ROW_GROUP", 25)
    run_id = recorded(store, groups(1), groups(2))
    out = io.StringIO()
    export_rollouts_jsonl(store, run_id, out)
    export_rollouts_parquet(store, run_id, tmp_path / "rollouts.parquet")
    written = pq.read_table(tmp_path / "rollouts.parquet")
    assert [
        row | {name: json.loads(row[name]) for name in ("scores", "turns")}
        for row in written.to_pylist()
    ] == [json.loads(line) for line in out.getvalue().splitlines()]
    assert {str(written.schema.field(name).type) for name in ("reward", "advantage")} == {"double"}
    assert pq.ParquetFile(tmp_path / "rollouts.parquet").num_row_groups == math.ceil(
        4 * len(ODD_TEXTS) / 25
    )
    assert not list(tmp_path.glob("*.part"))


def test_a_parquet_export_that_fails_leaves_the_file_before_it(
    store: Store, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "rollouts.parquet").write_text("yesterday's")
    with pytest.raises(NotFound):
        export_rollouts_parquet(store, "20200101-000000-aaaa", tmp_path / "rollouts.parquet")
    assert (tmp_path / "rollouts.parquet").read_text() == "yesterday's"
    assert not list(tmp_path.glob("*.part"))


def test_a_run_without_rollouts_exports_empty_files(store: Store, tmp_path: Path) -> None:
    run_id = recorded(store)
    assert table(store, run_id) == []
    out = io.StringIO()
    export_rollouts_jsonl(store, run_id, out)
    assert out.getvalue() == ""
    pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    export_rollouts_parquet(store, run_id, tmp_path / "rollouts.parquet")
    assert pq.read_table(tmp_path / "rollouts.parquet").column_names == list(export.COLUMNS)


def test_the_config_comes_back_as_the_one_that_ran(store: Store) -> None:
    out = io.StringIO()
    export_config_json(store, recorded(store), out)
    assert parse(json.loads(out.getvalue())) == parse({"train": {"steps": 7}})


@pytest.mark.parametrize("run", [export_metrics_csv, export_rollouts_jsonl, export_config_json])
def test_a_missing_run_is_reported_and_nothing_is_written(store: Store, run: object) -> None:
    out = io.StringIO()
    with pytest.raises(NotFound):
        run(store, "../../etc/passwd", out)
    assert out.getvalue() == ""
