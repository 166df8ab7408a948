"""attach() in several processes of TRL, started as people start them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ENV, ROOT
from trl_runs import assert_same, rows, stored

from grpo_core.store import Store
from grpo_core.types import GroupKind

pytestmark = pytest.mark.slow

SCRIPT = str(Path(__file__).with_name("trl_process.py"))
# Without a GPU "multi_gpu" still starts all processes; they talk over gloo. Port 0: a free one.
LAUNCH = (
    *("--multi_gpu", "--num_machines", "1", "--num_processes", "2", "--main_process_port", "0"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What two processes left: the folder, the store of the first and the logs of both."""
    folder = tmp_path_factory.mktemp("launched")
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH, SCRIPT, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**ENV, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    both = [json.loads((folder / f"logs-{rank}.json").read_text()) for rank in range(2)]
    return folder, Store(folder / "0" / "runs.sqlite"), both


def test_every_group_of_both_processes_is_there_once(launched):
    _, store, both = launched
    [run] = store.runs()
    recorded = stored(store, run.id)
    assert [len(made["prompt"]) for made in recorded] == [12, 12, 12]
    for logs in both:  # what was gathered is the same everywhere
        assert_same(recorded, logs["generations"])
    assert (run.status, run.step, run.source.disagreements) == ("finished", 3, 0)


def test_the_other_process_writes_nothing(launched):
    folder, *_ = launched
    assert (folder / "0" / "runs.sqlite").exists()
    assert list((folder / "1").rglob("*")) == []


def test_tokens_and_answers_are_those_of_their_rows(launched):
    _, store, _ = launched
    answers = {row["prompt"]: row["answer"] for num in (64, 4) for row in rows(num)}
    [run] = store.runs()
    num_known = 0
    for group in (g for kind in GroupKind for g in store.iter_groups(run.id, kind=kind)):
        assert group.answer in ("", answers[group.prompt])
        for rollout in group.rollouts:
            if (tokens := store.token_row(rollout.id)) is not None:
                num_known += 1
                assert b"".join(tokens.pieces).decode().startswith(rollout.text)
    assert num_known == 3 * 6  # of the first process; an evaluation keeps no tokens


def test_metrics_are_those_of_all_processes(launched):
    _, store, both = launched
    [run] = store.runs()
    history = [line for line in both[0]["history"] if "loss" in line]
    steps = store.steps(run.id)
    assert [row["reward_mean"] for row in steps] == pytest.approx([h["reward"] for h in history])
    assert [row["loss"] for row in steps] == pytest.approx([h["loss"] for h in history])


def test_an_evaluation_joins_prompts_to_their_own_completions(launched):
    _, store, _ = launched
    [run] = store.runs()
    groups = list(store.iter_groups(run.id, kind="evaluation"))
    answers = {row["prompt"]: row["answer"] for row in rows(4)}
    assert [(g.step, g.position) for g in groups] == [(3, p) for p in range(4)]
    assert {g.prompt for g in groups} == {row["prompt"] for row in rows(4)}
    for group in groups:
        for rollout in group.rollouts:
            assert rollout.scores["is_right"] == float(answers[group.prompt] in rollout.text)
