"""What `export --out` and `report --out` may write to."""

from __future__ import annotations

import os

import pytest
from stored import recorded

from grpo_core.cli import main
from grpo_core.types import ModelLoaded, StepCompleted, StepMetrics


@pytest.fixture
def db(store):
    recorded(store, ModelLoaded({}), StepCompleted(1, StepMetrics(loss=1.0), {}))
    return store.path


@pytest.mark.parametrize("command", [["export", "--format", "csv"], ["report"]])
@pytest.mark.parametrize("name", ["runs.sqlite", "runs.sqlite.lock", "link"])
def test_an_export_never_overwrites_the_store(db, tmp_path, capsys, command, name):
    (tmp_path / "link").symlink_to(db)
    before = db.read_bytes()
    out = str(tmp_path / name)
    assert main([*command, "last", "--db", str(db), "--out", out]) == 2
    assert f"--out {out!r} belongs to the store" in capsys.readouterr().err
    assert db.read_bytes() == before


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_a_pipe_without_a_reader_is_one_line_and_stays(db, tmp_path, capsys, format):
    out = tmp_path / "pipe"
    os.mkfifo(out)
    arguments = ["export", "last", "--format", format, "--db", str(db), "--out", str(out)]
    assert main(arguments) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert out.is_fifo()


def test_a_full_device_is_one_line(db, capsys):
    assert main(["export", "last", "--db", str(db), "--format", "csv", "--out", "/dev/full"]) == 2
    assert "No space left on device" in capsys.readouterr().err
