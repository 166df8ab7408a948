"""The benchmarks keep what they measured, whatever fails beside it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import gpu, sides, speed
from grpo_core.rubric import CHECKS


def run_gpu_script(monkeypatch, tmp_path, *options: str) -> str:
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path), *options])
    gpu.main()
    return (tmp_path / "result.txt").read_text()


def test_a_failing_peer_leaves_our_own_figures(monkeypatch, capsys):
    def in_process(side, *_):
        if side == "trl":
            raise speed.SideFailed("out of memory")
        return {"step_seconds": 2.0, "memory_mib": 100.0, "tokens_per_second": 5.0}

    monkeypatch.setattr(speed, "run_in_process", in_process)
    options = speed.make_parser().parse_args(["--pairs", "3"])
    result = speed.measure("W1-kl0", options)
    assert result["ours"]["step_seconds"] == 2.0
    assert result["speed_ratio"] is None
    assert result["failed"] == {"trl": "out of memory"}
    speed.report(result)
    assert "failed: trl" in capsys.readouterr().out


@pytest.mark.parametrize("side", ["ours", "trl"])
@pytest.mark.parametrize(("workload", "cards"), [("W1-kl0", ""), ("W3", ""), ("W4", "0,1")])
def test_both_sides_of_a_workload_use_the_same_device(monkeypatch, side, workload, cards):
    """GPU review, speed.py:83: W1 to W3 hide a GPU from both sides, and W4 from neither."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    seen = []

    def process(command, env, **_):
        seen.append((command[command.index("--side") + 1], env["CUDA_VISIBLE_DEVICES"]))
        return subprocess.CompletedProcess(command, 0, '{"step_seconds": 1.0}\n', "")

    monkeypatch.setattr(subprocess, "run", process)
    speed.run_in_process(side, workload, "", threads=1)
    assert seen == [(side, cards)]


def test_a_failing_part_of_the_gpu_script_loses_no_other(monkeypatch, tmp_path):
    def broken(scale):
        raise RuntimeError("no kernel image")

    parts = {"bounds": gpu.PARTS["bounds"], "update": (broken, 9), "W4": (lambda _: {"x": 1.5}, 9)}
    monkeypatch.setattr(gpu, "PARTS", parts)
    with pytest.raises(SystemExit, match="failed: update"):
        run_gpu_script(monkeypatch, tmp_path, "--dry-run")
    results = json.loads((tmp_path / "result.json").read_text())
    assert results["W4"]["x"] == 1.5
    assert results["bounds"]["copy_gb_per_second"] > 0
    assert "no kernel image" in json.loads((tmp_path / "update.json").read_text())["error"]


@pytest.mark.slow
def test_fast_paths_are_as_near_to_float64_as_the_models_own_code(monkeypatch, tmp_path):
    run_gpu_script(monkeypatch, tmp_path, "--dry-run", "--only", "correctness")
    result = json.loads((tmp_path / "result.json").read_text())["correctness"]
    assert 0.5 < result["packed_error_ratio"] < 1.5
    assert 0.5 < result["fastest_error_ratio"] < 1.5
    assert result["sampler_max_difference"] < 0.05  # nats, in bfloat16


def test_without_time_left_a_part_is_named_as_not_run(tmp_path):
    assert "not run" in gpu.run_apart("bounds", tmp_path, seconds_left=1.0)["error"]


def test_importing_a_benchmark_adds_no_check():
    assert sides.CHECKS is CHECKS
    assert "noise" not in CHECKS
