"""compare: real processes on a tiny model, and its arithmetic computed by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from processes import ENV, ROOT, cli, sets

from grpo_core.cli import main
from grpo_core.config import PRESETS
from grpo_core.errors import InvalidConfig
from grpo_core.runs.compare import (
    Measured,
    find_preset,
    find_presets,
    mean_and_error,
    summarise,
    table,
)
from grpo_core.store import Store
from grpo_core.types import RunStatus

TINY = {
    "task.heldout_size": 4,
    "train.prompts_per_step": 2,
    "train.group_size": 4,
    "train.max_new_tokens": 8,
    "train.seed": 5,
}


@pytest.fixture(scope="module")
def compared(tiny_model, tmp_path_factory):
    """A store after `compare grpo ppo` over two seeds, and what it printed."""
    path = tmp_path_factory.mktemp("compare") / "runs.sqlite"
    return path, cli(
        "compare",
        "grpo",
        "PPO",
        "--task",
        "sort",
        "--seeds",
        "2",
        "--steps",
        "2",
        "--db",
        str(path),
        "--json",
        *sets({**TINY, "model.name": tiny_model}),
    )


@pytest.mark.slow
def test_every_run_is_an_ordinary_run_seed_by_seed(compared):
    path, done = compared
    assert done.returncode == 0, done.stderr
    rows = Store(path).runs()[::-1]
    assert [(r.config["algorithm"]["preset"], r.config["train"]["seed"]) for r in rows] == [
        ("GRPO", 5),
        ("PPO (critic)", 5),
        ("GRPO", 6),
        ("PPO (critic)", 6),
    ]
    assert {(r.status, r.steps_done, r.task) for r in rows} == {("finished", 2, "sort")}


@pytest.mark.slow
def test_both_presets_get_the_same_prompts_and_start_from_the_same_policy(compared):
    store = Store(compared[0])
    grpo, ppo, other, _ = (list(store.iter_groups(r.id)) for r in store.runs()[::-1])
    assert [g.prompt_id for g in grpo] == [g.prompt_id for g in ppo] != [g.prompt_id for g in other]
    first = [[r.text for g in groups if g.step == 1 for r in g.rollouts] for groups in (grpo, ppo)]
    assert first[0] == first[1]  # before the first update: the same completions to the letter


@pytest.mark.slow
def test_the_last_line_is_one_object_that_equals_the_stored_rows(compared):
    path, done = compared
    printed, store = json.loads(done.stdout.strip().splitlines()[-1]), Store(path)
    assert set(printed) == {"presets", "runs"}
    for run in printed["runs"]:
        steps, row = store.steps(run["run_id"]), store.run(run["run_id"])
        assert run["tokens"] == sum(s["tokens"] for s in steps)
        assert run["seconds"] == pytest.approx(sum(s["step_seconds"] for s in steps))
        assert run["peak_memory_mib"] == max(s["peak_memory_mib"] for s in steps)
        assert (run["reward_last"], run["heldout_after"]) == (row.reward_last, row.heldout_after)
    for preset, line in printed["presets"].items():
        mine = [r for r in printed["runs"] if r["preset"] == preset]
        assert (line["runs"], line["finished"]) == (2, 2)
        assert line["tokens"]["mean"] == sum(r["tokens"] for r in mine) / 2
    assert printed["presets"]["GRPO"]["heldout_gain_over_first"] is None


@pytest.mark.slow
def test_only_the_run_with_a_critic_has_the_critics_figures(compared):
    store = Store(compared[0])
    for row in store.runs():
        has = row.config["algorithm"]["advantage"] == "value"
        assert all((s["value_loss"] is not None) == has for s in store.steps(row.id))


# ---- arithmetic ------------------------------------------------------------------------------


def run(preset, seed, after, status=RunStatus.FINISHED):
    return Measured(
        f"{preset}{seed}", preset, seed, status, 1.0, 0.25, after, 1000 + seed, 2.0, 300.0
    )


def test_means_are_over_finished_runs_and_differences_over_common_seeds():
    runs = [
        run("A", 0, 0.5),
        run("B", 0, 0.6),
        run("A", 1, 0.7),
        run("B", 1, 0.9),
        run("A", 2, 0.6),
        run("B", 2, None, RunStatus.FAILED),
    ]
    summary = summarise(runs)
    assert (summary["A"]["finished"], summary["B"]["finished"], summary["B"]["runs"]) == (3, 2, 3)
    assert summary["A"]["heldout_after"]["mean"] == pytest.approx(0.6)
    # sd of .5 .6 .7 is .1
    assert summary["A"]["heldout_after"]["error"] == pytest.approx(0.1 / 3**0.5)
    # seeds 0 and 1: +.1 and +.2, mean .15, sd .0707, over √2: .05
    assert summary["B"]["heldout_gain_over_first"] == {
        "mean": pytest.approx(0.15),
        "error": pytest.approx(0.05),
    }


def test_the_table_shows_means_and_errors_and_a_dash_where_nothing_finished():
    text = table(
        summarise([run("A", 0, 0.5), run("A", 1, 0.7), run("B", 0, None, RunStatus.STOPPED)])
    )
    head, a, b, gain = text.splitlines()
    assert head.split("  ")[0] == "preset"
    assert "0.250 ± 0.000 → 0.600 ± 0.100" in a  # sd .1414 / √2
    assert b.split()[:2] == ["B", "0/1"]
    assert b.count("-") >= 5
    assert gain == "held-out accuracy, B less A, seed by seed: -"


def test_one_seed_has_no_error_and_no_value_has_no_mean():
    assert (mean_and_error([2.0]).mean, mean_and_error([2.0]).error) == (2.0, None)
    assert mean_and_error([None]).mean is None
    assert table({}).startswith("preset  runs")


# ---- requests --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("grpo", "GRPO"),
        ("GRPO", "GRPO"),
        ("ppo", "PPO (critic)"),
        ("PPO (critic)", "PPO (critic)"),
        ("dr.grpo", "Dr. GRPO"),
        ("drgrpo", "Dr. GRPO"),
        ("dr", "Dr. GRPO"),
    ],
)
def test_presets_are_found_by_short_names(name, preset):
    assert find_preset(name) == preset


def test_every_preset_is_found_by_name_and_wrong_names_are_refused():
    assert [find_preset(p.upper()) for p in PRESETS] == list(PRESETS)
    for bad in ("", "-", "nope"):
        with pytest.raises(InvalidConfig, match="no such preset"):
            find_preset(bad)
    with pytest.raises(InvalidConfig, match="two or more different"):
        find_presets(["ppo", "PPO (critic)"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["grpo"], "two or more different presets"),
        (["grpo", "nope"], "Known: GRPO"),
        (["grpo", "ppo", "--steps", "0"], "train.steps = 0: must be at least 1"),
        (["grpo", "ppo", "--task", "nope"], "Known: sums"),
        (
            ["grpo", "ppo", "--set", "algorithm.value_coef=0"],
            "algorithm.value_coef = 0.0: a critic that is not trained",
        ),
        (
            ["grpo", "ppo", "--set", "algorithm.preset=GRPO"],
            "the compared presets cannot be set as a field",
        ),
    ],
)
def test_wrong_requests_are_refused_on_one_line_before_anything_runs(
    arguments, says, tmp_path, capsys
):
    assert main(["compare", *arguments, "--db", str(tmp_path / "x.sqlite")]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_an_error_that_only_the_run_finds_is_printed_once(tmp_path):
    done = cli(
        "compare",
        "grpo",
        "ppo",
        "--json",
        "--db",
        str(tmp_path / "x.sqlite"),
        "--set",
        "model.name=/no/model",
    )
    assert done.returncode == 2
    assert done.stderr.count("model.name = '/no/model'") == 1
    assert "model.name" in json.loads(done.stdout)["error"][0]


@pytest.mark.slow
def test_an_interrupt_ends_the_current_run_and_starts_no_other(tiny_model, tmp_path):
    path = tmp_path / "runs.sqlite"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "grpo_core",
            "compare",
            "grpo",
            "ppo",
            "--steps",
            "100000",
            "--db",
            str(path),
            "--json",
            *sets({**TINY, "task.heldout_size": 0, "model.name": tiny_model}),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENV,
        cwd=ROOT,
    )
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and not (
        path.exists() and (rows := Store(path).runs()) and rows[0].steps_done >= 1
    ):
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)  # the parent alone, as a service manager would
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    printed = json.loads(out.strip().splitlines()[-1])
    assert [(r["preset"], r["status"]) for r in printed["runs"]] == [("GRPO", "stopped")]
    assert len(Store(path).runs()) == 1
