"""Readers of other trainers' files, on small files of their own writers.

In golden/: verl 0.9.1 (`_write_generations` of both trainers), verifiers 0.4.0 (`Episode.to_record`
as prime-rl's FileMonitor writes it, and `write_episode`), verifiers 0.1.14 (`save_outputs`),
ms-swift 4.6.0 (`GRPOTrainer.log` with its `JsonlWriter`), NeMo-RL of August 2026
(`log_batched_dict_as_jsonl`) and trackio 0.43.0 (its project as SQL) were called with a few rows.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import sqlite3
from pathlib import Path
from types import ModuleType

import pytest

from grpo_core.records.formats import (
    ms_swift,
    nemo_rl,
    trackio,
    verifiers,
    verifiers_v0,
    verl,
)
from grpo_core.records.importing import Asked, import_folder
from grpo_core.records.record import SourceGroup, SourceRun, SourceStep, from_plain, to_plain
from grpo_core.store import foreign
from grpo_core.types import TurnRole

GOLDEN = Path(__file__).parent / "golden"
PLACES = {
    "verl": (verl, "verl"),
    "prime-rl": (verifiers, "prime_rl"),
    "verifiers": (verifiers, "verifiers"),
    "verifiers-v0": (verifiers_v0, "verifiers_v0"),
    "nemo-rl": (nemo_rl, "nemo_rl"),
    "ms-swift": (ms_swift, "ms_swift"),
    "trackio": (trackio, "trackio"),
}
READERS = list(dict.fromkeys(module for module, _ in PLACES.values()))


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """A copy of the golden files, with trackio's database made of its SQL."""
    root = tmp_path_factory.mktemp("golden") / "runs"
    shutil.copytree(GOLDEN, root)
    (root / "trackio").mkdir()
    with sqlite3.connect(root / "trackio" / "sums.db") as db:
        db.executescript((GOLDEN / "trackio.sql").read_text())
    db.close()
    return root


def opened(reader: ModuleType, path: Path) -> tuple[SourceRun, list[SourceStep]]:
    run, *steps = reader.read(path)
    assert isinstance(run, SourceRun)
    return run, [step for step in steps if isinstance(step, SourceStep)]


def groups(steps: list[SourceStep], step: int, kind: str = "training") -> list[SourceGroup]:
    return [g for s in steps if s.step == step for g in s.groups if g.kind == kind]


@pytest.mark.parametrize("name", PLACES)
def test_only_the_right_reader_takes_a_format(name, places):
    reader, folder = PLACES[name]
    assert [r for r in READERS if r.finds(places / folder)] == [reader]


@pytest.mark.parametrize("name", PLACES)
def test_every_record_travels_as_json(name, places):
    reader, folder = PLACES[name]
    for record in reader.read(places / folder):
        kind = "run" if isinstance(record, SourceRun) else "step"
        plain = to_plain(record)
        assert repr(to_plain(from_plain(kind, plain))) == repr(plain)


@pytest.mark.parametrize("name", PLACES)
def test_reading_twice_gives_the_same_records(name, places):
    reader, folder = PLACES[name]
    assert repr(list(reader.read(places / folder))) == repr(list(reader.read(places / folder)))


def test_a_table_of_prompts_and_rewards_is_none_of_these_formats(tmp_path):
    (tmp_path / "completions.jsonl").write_text(
        '{"step": 1, "prompt": "a", "completion": "b", "reward": 1.0}\n'
        '{"input": "a", "output": "b", "score": 1.0}\n'
    )
    assert [r for r in READERS if r.finds(tmp_path)] == []
    assert [r for r in READERS if r.finds(tmp_path / "completions.jsonl")] == []


# ---- verl ----------------------------------------------------------------------------------------


def test_verl_rows_that_were_mixed_are_grouped_by_their_input(places):
    _, steps = opened(verl, places / "verl")
    first, second = groups(steps, 1)
    assert (first.prompt, first.answer) == ("What is 2+3?", "5")
    assert [(r.text, r.reward) for r in first.rollouts] == [("5", 1.0), ("I say 6", 0.0)]
    assert first.before == (
        {
            "role": "system",
            "content": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        },
    )
    assert second.rollouts[0].text == "<script>alert(1)</script> 4"
    # pred is text, request_id a name; the nan of a reward function is absent.
    assert first.rollouts[1].scores == {"acc": 0.0, "format_reward": None}


def test_verl_outputs_of_one_rollout_are_its_turns(places):
    (group,) = groups(opened(verl, places / "verl")[1], 2)
    assert [r.reward for r in group.rollouts] == [1.0, 0.25, 0.0]
    assert [t.text for t in group.rollouts[1].turns] == ["calculating", "so 6"]


def test_verl_validation_is_an_evaluation(places):
    _, steps = opened(verl, places / "verl")
    (group,) = groups(steps, 1, "evaluation")
    assert [r.text for r in group.rollouts] == ["5", "five"]
    assert group.rollouts[0].scores == {}  # its "reward" is the score once more


# ---- verifiers -----------------------------------------------------------------------------------


def test_prime_rl_tokens_of_tools_are_no_actions(places):
    run, steps = opened(verifiers, places / "prime_rl")
    assert (run.key, run.name) == ("verifiers:run7", "sums with tools")
    assert run.trainer == "prime-rl, verifiers 0.4.0"
    trained, dropped, failed = groups(steps, 1)
    rollout = trained.rollouts[2]
    # Of the first message 9 opens the answer; of the third it comes after the tool's tokens.
    assert rollout.token_ids == [20, 21, 30, 31, 32, 9, 22, 2]
    assert rollout.action_mask == [True, True, False, False, False, False, True, True]
    assert rollout.sampling_logprobs is not None
    assert rollout.sampling_logprobs[:2] == [-0.25, -0.125]
    assert all(math.isnan(p) for p in rollout.sampling_logprobs[2:6])
    assert [(t.role, t.first_token, t.num_tokens) for t in rollout.turns] == [
        (TurnRole.ACTION, 0, 2),
        (TurnRole.OBSERVATION, 2, 4),
        (TurnRole.ACTION, 6, 2),
    ]
    observed = rollout.turns[1]
    assert (observed.text, observed.tool) == ("5 <b>", "add")
    assert observed.arguments == '{"a": 2, "b": 3}'
    assert (rollout.num_tokens, rollout.advantage) == (4, 0.75)  # of 1, 1, 1 and 0
    # Dropped before training: a tied group, and one that could not be scored.
    assert [r.advantage for r in dropped.rollouts] == [None, None]
    assert [(r.text, r.reward) for r in failed.rollouts] == [("", None)]


def test_verifiers_rewards_are_summed_with_their_weights(places):
    run, steps = opened(verifiers, places / "prime_rl")
    trained = groups(steps, 1)[0]
    assert trained.rollouts[0].scores == {"correct": 1.0, "short": 1.0}
    assert [r.reward for r in trained.rollouts] == [1.5, 0.5, 1.0]  # 1 x correct + 0.5 x short
    assert run.settings["reward_weights"] == {"correct": 1.0, "short": 0.5}
    assert [r.finish_reason for r in trained.rollouts] == ["stop", "length", "stop"]
    assert trained.rollouts[0].ref_logprobs == [-0.75, -0.75]
    assert trained.rollouts[0].logprobs is None


def test_prime_rl_curves_and_evaluations_come_along(places):
    _, steps = opened(verifiers, places / "prime_rl")
    assert steps[0].step == 0
    assert groups(steps, 0, "evaluation")[0].rollouts[0].text == "5"
    curves = next(s.metrics for s in steps if s.step == 1)
    assert curves == {"learning_rate": 1e-6, "reward/mean": 0.5}


def test_an_evaluation_of_verifiers_has_texts_without_tokens(places):
    (group,) = groups(opened(verifiers, places / "verifiers")[1], 0, "evaluation")
    assert [(r.text, r.reward, r.token_ids) for r in group.rollouts] == [
        ("5", 1.5, None),
        ("6", 0.5, None),
    ]


def test_old_verifiers_rows_are_grouped_by_example(places):
    run, steps = opened(verifiers_v0, places / "verifiers_v0")
    assert (run.trainer, run.name) == ("verifiers 0.1.14", "sums")
    first, second = groups(steps, 0, "evaluation")
    assert (first.prompt, first.before[0]["content"]) == ("Question 0?", "Be brief.")
    assert [t.role for t in first.rollouts[1].turns] == ["action", "observation", "action"]
    assert first.rollouts[1].turns[1].tool == "add"
    assert [r.finish_reason for r in second.rollouts] == ["length", "stop"]
    assert second.rollouts[0].num_tokens == 3


# ---- NeMo-RL -------------------------------------------------------------------------------------


def test_nemo_rl_tokens_give_each_text_its_writer(places):
    _, steps = opened(nemo_rl, places / "nemo_rl")
    (group,) = groups(steps, 1)
    assert group.prompt == "What is 2+3?"  # without the template's tokens
    plain, _, tool, _ = group.rollouts
    assert plain.token_ids == [10, 50, 60]  # the padding is cut off
    assert [(t.role, t.text, t.first_token, t.num_tokens) for t in tool.turns] == [
        (TurnRole.ACTION, "add(2, 3)", 0, 2),
        (TurnRole.OBSERVATION, "5 <b>", 2, 1),
        (TurnRole.ACTION, "5", 3, 2),
    ]
    assert [r.advantage for r in group.rollouts] == [1.0, -1.0, 1.0, -1.0]
    assert tool.sampling_logprobs == pytest.approx([-0.5, -0.5, math.nan, -0.5, -0.5], nan_ok=True)
    assert tool.logprobs == pytest.approx([-0.25, -0.25, math.nan, -0.25, -0.25], nan_ok=True)


def test_nemo_rl_validation_has_messages(places):
    (group,) = groups(opened(nemo_rl, places / "nemo_rl")[1], 1, "evaluation")
    assert (group.prompt, [r.text for r in group.rollouts]) == ("What is 7-4?", ["3", "4"])


# ---- ms-swift ------------------------------------------------------------------------------------


def test_ms_swift_batch_of_two_updates_is_one_step(places):
    run, steps = opened(ms_swift, places / "ms_swift")
    assert (run.trainer, run.num_steps) == ("ms-swift 4.6.0", 3)
    assert [(s.step, s.part, len(s.groups)) for s in steps] == [(1, 0, 2), (3, 0, 2)]
    assert run.settings["reward_weights"] == {"Accuracy": 1.0, "Format": 1.0}
    first = steps[0].groups[0]
    assert (first.prompt, first.answer) == ("What is 2+3?", "5")
    assert [r.scores for r in first.rollouts] == [
        {"Accuracy": 1.0, "Format": 0.5},
        {"Accuracy": 0.0, "Format": None},
    ]
    assert [r.advantage for r in first.rollouts] == [0.7071, -0.7071]
    # Two groups of the same prompt follow each other: num_generations is 2.
    assert [len(g.rollouts) for g in steps[1].groups] == [2, 2]


def test_ms_swift_rows_of_its_ray_trainer_are_one_table(tmp_path):
    """Made by the fields that its _maybe_log_completions writes: one row a line."""
    row = '{"gen_step": %d, "prompt": "a", "completion": "%s", "reward": %s}\n'
    (tmp_path / "completions.jsonl").write_text(
        row % (1, "x", 1.0) + row % (1, "y", 0.0) + row % (2, "z", 0.5)
    )
    assert ms_swift.finds(tmp_path)
    _, steps = opened(ms_swift, tmp_path)
    assert [(s.step, [r.reward for r in s.groups[0].rollouts]) for s in steps] == [
        (1, [1.0, 0.0]),
        (2, [0.5]),
    ]


# ---- trackio -------------------------------------------------------------------------------------


def test_trackio_traces_are_grouped_by_their_id(places):
    records = list(trackio.read(places / "trackio"))
    at = max(i for i, record in enumerate(records) if isinstance(record, SourceRun))
    run, first = records[at], records[at + 1]
    assert isinstance(run, SourceRun)
    assert (run.name, run.settings["num_generations"]) == ("async-grpo", 2)
    assert isinstance(first, SourceStep)
    assert first.metrics == {"reward_mean": 0.5, "kl": 0.01}
    (group,) = first.groups
    assert group.prompt == "What is 2+3?"
    assert [(r.reward, r.advantage, r.num_tokens) for r in group.rollouts] == [
        (1.0, 1.0, 2),
        (0.0, -1.0, 9),
    ]
    assert group.rollouts[0].scores == {"correct": 1.0}
    assert [t.role for t in group.rollouts[1].turns] == ["action", "observation", "action"]


def test_trackio_project_gives_each_run_with_its_tables(places):
    records = list(trackio.read(places / "trackio" / "sums.db"))
    runs = [record.name for record in records if isinstance(record, SourceRun)]
    assert runs == ["grpo", "async-grpo"]
    step = records[1]
    assert isinstance(step, SourceStep)
    assert isinstance(records[2], SourceRun)
    assert (step.step, step.metrics) == (5, {"loss": 0.1})
    assert [(g.prompt, [r.advantage for r in g.rollouts]) for g in step.groups] == [
        ("What is 2+3?", [0.7, -0.7]),
        ("What is 7-4?", [0.7, -0.7]),
    ]


def test_what_trackio_itself_writes_is_read(tmp_path, monkeypatch):
    """With the installed package; in golden/ is what 0.43.0 wrote."""
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed: pip install trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    import subprocess
    import sys

    code = (
        "import trackio\n"
        "trackio.init(project='p', name='r', embed=False, auto_log_cpu=False)\n"
        "say = lambda t: trackio.Trace(messages=[{'role': 'user', 'content': 'q'},\n"
        "  {'role': 'assistant', 'content': t}], metadata={'reward': 0.5, 'group_id': 1})\n"
        "trackio.log({'rollouts': [say('a'), say('b')], 'kl': 0.25}, step=3)\n"
        "trackio.finish()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
    assert trackio.finds(tmp_path)
    _, steps = opened(trackio, tmp_path)
    (group,) = groups(steps, 3)
    assert [(r.text, r.reward) for r in group.rollouts] == [("a", 0.5), ("b", 0.5)]
    assert steps[0].metrics == {"kl": 0.25}


# ---- into the store ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLACES)
def test_an_imported_run_has_its_groups_and_comes_only_once(name, places, store):
    found = import_folder(store, places / PLACES[name][1])
    assert found.format == name.replace("prime-rl", "verifiers")
    assert found.left_out == ()
    records = list(PLACES[name][0].read(places / PLACES[name][1]))
    expected = sum(len(r.groups) for r in records if isinstance(r, SourceStep))
    others = sum(foreign.sizes(store, run_id)[1] for run_id in found.others)
    assert found.groups + others == expected
    assert import_folder(store, places / PLACES[name][1]).added == 0
    assert len(store.runs()) == 1 + len(found.others)


def test_each_run_of_a_trackio_project_is_a_run_here(places, store):
    found = import_folder(store, places / "trackio", Asked(name="mine"))
    assert store.run(found.run_id).name == "mine"
    (other,) = found.others
    assert store.run(other).name == "async-grpo"
    assert foreign.sizes(store, other) == (2, 3, 5)
