"""The command line as a script meets it: real processes, exit codes, the last line of --json."""

from __future__ import annotations

import csv
import io
import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from processes import ENV, ROOT, cli, sets

from grpo_core.cli import main
from grpo_core.cli.request import build_config
from grpo_core.cli.terminal import printable
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.store import Store


@pytest.fixture(scope="module")
def db(tiny_model, tmp_path_factory):
    """A store with one finished run, made by the command line itself; and what it printed."""
    path = tmp_path_factory.mktemp("cli") / "runs.sqlite"
    settings = {
        "model.name": tiny_model,
        "task.heldout_size": 8,
        "train.steps": 3,
        "train.prompts_per_step": 2,
        "train.group_size": 4,
        "train.max_new_tokens": 8,
    }
    return path, cli("train", "--db", str(path), "--json", "--name", "first", *sets(settings))


@pytest.mark.slow
def test_a_run_without_scores_says_why_and_stops_without_a_terminal(tmp_path, tiny_model):
    (tmp_path / "mine.py").write_text("def f(completions):\n    return [1 / 0]\n")
    settings = {
        "model.name": tiny_model,
        "task.heldout_size": 0,
        "train.steps": 1,
        "train.prompts_per_step": 2,
        "train.group_size": 2,
        "train.max_new_tokens": 4,
        "rubric.criteria": json.dumps([{"name": "good", "check": "mine.f", "weight": 1}]),
    }
    path = tmp_path / "runs.sqlite"
    rewards = ("--rewards", str(tmp_path / "mine.py"))
    done = cli("train", "--db", str(path), *rewards, *sets(settings))
    reason = "f: line 2: ZeroDivisionError: division by zero"
    assert done.returncode == 1
    assert f"First reason of good (4 times): {reason}." in done.stderr
    [run] = Store(path).runs()
    assert (run.status, run.steps_done) == ("stopped", 0)
    [alert] = Store(path).alerts(run.id)
    assert alert.message == f"good could not score: 4 × {reason}"


@pytest.mark.slow
def test_train_ends_with_one_json_object_and_exit_code_zero(db):
    path, done = db
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.strip().splitlines()[-1])
    assert set(last) == {
        "run_id",
        "status",
        "steps",
        "reward_first",
        "reward_last",
        "heldout_before",
        "heldout_after",
        "seconds",
    }
    assert (last["status"], last["steps"]) == ("finished", 3)
    steps = Store(path).steps(last["run_id"])
    assert (last["reward_first"], last["reward_last"]) == (
        steps[0]["reward_mean"],
        steps[-1]["reward_mean"],
    )


@pytest.mark.slow
def test_runs_and_show_print_for_people_and_for_machines(db):
    path, _ = db
    [run] = json.loads(cli("runs", "--db", str(path), "--json").stdout)
    assert (run["name"], run["status"]) == ("first", "finished")
    assert "first" in cli("runs", "--db", str(path)).stdout
    shown = json.loads(cli("show", run["id"][:12], "--db", str(path), "--json").stdout)
    assert [s["step"] for s in shown["steps"]] == [1, 2, 3]
    assert "train.steps = 3" in cli("show", "last", "--db", str(path)).stdout


@pytest.mark.slow
def test_export_writes_every_step_and_every_rollout(db, tmp_path):
    path, _ = db
    table = list(
        csv.DictReader(
            io.StringIO(cli("export", "last", "--db", str(path), "--format", "csv").stdout)
        )
    )
    assert [row["step"] for row in table if row["reward_mean"]] == ["1", "2", "3"]
    rollouts = [
        json.loads(line)
        for line in cli(
            "export", "last", "--db", str(path), "--format", "jsonl"
        ).stdout.splitlines()
    ]
    # 3 steps of 2 groups of 4; one answer to each of 8 held-out prompts, before and after.
    kinds = Counter(row["kind"] for row in rollouts)
    assert kinds == {"training": 3 * 2 * 4, "evaluation": 2 * 8}
    out = tmp_path / "r.parquet"
    printed = json.loads(
        cli(
            "export", "last", "--db", str(path), "--format", "parquet", "--out", str(out), "--json"
        ).stdout
    )
    assert printed["bytes"] == out.stat().st_size > 0


@pytest.mark.slow
def test_an_exported_configuration_trains_the_same_run_again(db, tmp_path):
    path, _ = db
    exported = tmp_path / "config.json"
    assert (
        cli(
            "export", "last", "--db", str(path), "--format", "config", "--out", str(exported)
        ).returncode
        == 0
    )
    assert (
        cli("train", "--db", str(tmp_path / "again.sqlite"), "--config", str(exported)).returncode
        == 0
    )
    first, again = (
        [s["loss"] for s in Store(p).steps(Store(p).runs()[0].id)]
        for p in (path, tmp_path / "again.sqlite")
    )
    assert first == again


@pytest.mark.slow
def test_a_stopped_run_is_resumed_and_a_finished_one_branched_from(db, tmp_path):
    path, _ = db
    branch = cli(
        "resume",
        "last",
        "--db",
        str(path),
        "--json",
        "--set",
        "train.steps=5",
        "--set",
        "train.checkpoint_every=1",
    )
    assert branch.returncode == 0, branch.stderr
    said = json.loads(branch.stdout.strip().splitlines()[-1])
    store = Store(path)
    run = store.run(said["run_id"])
    assert (said["status"], run.parent_step, [s["step"] for s in store.steps(run.id)]) == (
        "finished",
        3,
        [4, 5],
    )
    again = cli("resume", run.id, "--db", str(path))
    assert (again.returncode, "has finished" in again.stderr) == (2, True)
    store.rewind(run.id, 4)
    store.set_status(run.id, "stopped")
    assert cli("resume", run.id, "--db", str(path)).returncode == 0
    assert [s["step"] for s in store.steps(run.id)] == [4, 5]
    store.delete(run.id)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--set", "train.group_size=1"], "train.group_size = 1: must be at least 2"),
        (["train", "--set", "train.steps=0"], "train.steps = 0: must be at least 1"),
        (["train", "--set", "steps=3"], "steps = 3: there is no such field"),
        (["train", "--set", "nonsense"], "there is no ="),
        (["train", "--preset", "nope"], "Known: GRPO"),
        (["train", "--config", "nowhere.json"], "does not exist"),
        (["train", "--set", "rubric.path=nowhere.json"], "does not exist"),
        (["train", "--set", "model.name=/no/model"], "model.name = '/no/model'"),
        (["train", "--set", "task.name=nope"], "Known: sums"),
        (
            ["train", "--set", 'rubric.criteria=[{"name":"a","check":"length","weight":-1}]'],
            "at least 0",
        ),
        (
            ["train", "--set", 'rubric.criteria=[{"name":"a","check":"length","weight":0}]'],
            "all weights are 0",
        ),
        (["show", "nope"], "there is no run 'nope'"),
        (["export", "nope", "--format", "csv"], "there is no run 'nope'"),
    ],
)
def test_wrong_input_is_answered_on_one_line_without_a_traceback(arguments, says, tmp_path, capsys):
    assert main([*arguments, "--db", str(tmp_path / "x.sqlite")]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_a_db_that_is_invalid_or_unwritable_is_left_alone(tmp_path, capsys):
    notes = tmp_path / "notes.txt"
    notes.write_text("dear diary " * 100)
    for db in (notes, tmp_path, Path("/proc/nope/runs.sqlite")):
        assert main(["runs", "--db", str(db)]) == 2
        err = capsys.readouterr().err
        assert str(db) in err
        assert len(err.strip().splitlines()) == 1
    assert notes.read_text() == "dear diary " * 100


def test_set_beats_preset_beats_file(tmp_path):
    file = tmp_path / "c.json"
    file.write_text('{"algorithm": {"kl_coef": 0.7, "clip_eps_low": 0.1}, "train": {"steps": 9}}')
    config = build_config(str(file), "Dr. GRPO", ["algorithm.clip_eps_low=0.3", "task.name=sort"])
    assert (config.algorithm.kl_coef, config.algorithm.clip_eps_low, config.train.steps) == (
        0.0,
        0.3,
        9,
    )
    assert (config.algorithm.preset, config.algorithm.advantage, config.task.name) == (
        "Dr. GRPO",
        "group_mean",
        "sort",
    )


def test_a_rubric_file_replaces_the_criteria_and_a_broken_one_is_refused(tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text('[{"name": "short", "check": "length", "weight": 2}]')
    bad.write_text('"text"')
    config = build_config(None, None, [f"rubric.path={good}"])
    assert (config.rubric.name, config.rubric.criteria[0].weight) == ("custom", 2)
    with pytest.raises(StudioError, match="holds no rubric"):
        build_config(None, None, [f"rubric.path={bad}"])
    with pytest.raises(InvalidConfig):
        build_config(None, None, ['rubric.criteria=[{"weight": 1}]'])


def test_text_for_the_terminal_has_no_control_characters():
    assert printable("a\x1b[31mred\x07\u202e") == "a�[31mred��"


@pytest.mark.slow
def test_interrupting_a_run_keeps_its_steps_and_exits_with_one(tiny_model, tmp_path):
    path = tmp_path / "runs.sqlite"
    settings = {
        "model.name": tiny_model,
        "task.heldout_size": 0,
        "train.steps": 100000,
        "train.prompts_per_step": 2,
        "train.group_size": 2,
        "train.max_new_tokens": 4,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "grpo_core", "train", "--db", str(path), "--json", *sets(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENV,
        cwd=ROOT,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (
        path.exists() and (rows := Store(path).runs()) and rows[0].steps_done >= 2
    ):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, _ = process.communicate(timeout=120)
    assert time.monotonic() - started < 30  # the run would take hours
    assert process.returncode == 1
    last = json.loads(out.strip().splitlines()[-1])
    assert (last["status"], last["steps"] >= 2) == ("stopped", True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--port", "{taken}"], "cannot be used"),
        (["--port", "99999999"], "is not a port"),
        (["--auth", "nocolon"], "--auth"),
        (["--db", "{folder}"], "--db"),
    ],
)
def test_the_server_answers_wrong_flags_on_one_line(arguments, says, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        values = {"taken": taken.getsockname()[1], "folder": tmp_path}
        flags = [a.format(**values) for a in arguments]
        if "--db" not in flags:
            flags += ["--db", str(tmp_path / "x.sqlite")]
        if "--port" not in flags:
            flags += ["--port", "17861"]
        done = subprocess.run(
            [sys.executable, "app.py", *flags],
            capture_output=True,
            text=True,
            timeout=240,
            env=ENV,
            cwd=ROOT,
        )
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_usage_names_the_program_as_started(monkeypatch, capsys):
    for started, usage in (
        ("/usr/bin/grpo-studio", "usage: grpo-studio "),
        ("/home/me/grpo_core/__main__.py", "usage: python -m grpo_core "),
    ):
        monkeypatch.setattr(sys, "argv", [started])
        with pytest.raises(SystemExit):
            main(["--help"])
        assert capsys.readouterr().out.startswith(usage)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--port", "99999999"], 2, "is not a port"),
        (["--port", "17862", "--db", "{folder}"], 2, "{folder}"),
        (["--help"], 0, "--mcp"),
    ],
)
def test_app_gives_all_its_arguments_to_the_page(arguments, code, says, tmp_path):
    done = cli("app", *(a.format(folder=tmp_path) for a in arguments))
    assert done.returncode == code, done.stderr
    assert says.format(folder=tmp_path) in done.stdout + done.stderr


@pytest.mark.slow
def test_app_does_not_run_an_app_py_of_the_current_folder(tmp_path):
    (tmp_path / "app.py").write_text("print('somebody else')")
    command = [sys.executable, "-m", "grpo_core", "app", "--help"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=ENV, cwd=tmp_path
    )
    assert "--mcp" in done.stdout, done.stderr


def test_help_is_answered_without_loading_torch_transformers_or_gradio():
    code = (
        "import sys; from grpo_core.cli import main\n"
        "try: main(['train', '--help'])\n"
        "finally: print(sorted({'torch', 'transformers', 'gradio'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, env=ENV, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
