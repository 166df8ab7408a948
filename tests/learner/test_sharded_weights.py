"""Full fine-tuning by several workers, each with a part of what is learned, is that of one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from sharded_run import (
    Steps,
    go_on,
    learn,
    learn_and_save,
    not_finite,
    run_all,
    save_on_a_full_disk,
    saves_when_asked,
)

from grpo_core.checkpoint_files import (
    IN_SHARDS,
    MANIFEST,
    ONE_PROCESS,
    BadCheckpoint,
    file_hash,
    read_manifest,
)
from grpo_core.training.checkpoint import load, load_weights

PLAIN = Steps()
LEARNED = {
    "plain": (2, PLAIN),
    "plain, by three": (3, PLAIN),
    "not tied": (2, Steps(tied=False)),
    "recomputed": (2, Steps(recompute=True)),
    "two updates": (2, Steps(count=2, algorithm={"updates_per_batch": 2})),
    "over the KL limit": (2, Steps(count=2, algorithm={"kl_control": "hard", "kl_target": 1e-9})),
    "moving reference": (2, Steps(count=3, algorithm={"ref_every": 1, "ref_alpha": 0.5})),
    "workers without rows": (3, Steps(silent=(0, 2))),
    "whole on each": (2, Steps(whole=True)),
    "whole on each, some without rows": (3, Steps(silent=(0, 2), whole=True)),
    "no rows": (2, Steps(count=2, silent=(0, 1, 2), with_reference=False)),
}
HALF = Steps(torch.bfloat16, rate=1e-3)
SINGLE = Steps(torch.float32, count=1)
BEGUN, HALF_BEGUN = replace(PLAIN, count=2), replace(HALF, count=2)
WHOLE_HALF = replace(HALF_BEGUN, whole=True)
SHORT = {
    "task.heldout_size": 0,
    "train.steps": 3,
    "train.prompts_per_step": 2,
    "train.group_size": 2,
    "train.max_new_tokens": 8,
    "train.checkpoint_every": 0,
}
STEP_2 = "step-00000002"


@pytest.fixture(scope="module")
def found(tmp_path_factory, tiny_model):
    """The results of all checks that need several processes, and the folder of checkpoints."""
    folder = tmp_path_factory.mktemp("sharded")
    alone = learn_and_save(HALF_BEGUN, folder / "alone")
    whole = learn_and_save(BEGUN, folder / "whole")
    short = {**SHORT, "model.name": str(tiny_model), "test.folder": folder / "asked"}
    checks = {name: (world, learn, (steps,)) for name, (world, steps) in LEARNED.items()}
    checks |= {
        "half": (2, learn, (HALF,)),
        "single": (2, learn, (SINGLE,)),
        "saved": (2, learn_and_save, (BEGUN, folder / "two")),
        "half saved": (2, learn_and_save, (HALF_BEGUN, folder / "half")),
        "from one": (2, go_on, (BEGUN, whole, 3)),
        "half from one": (2, go_on, (HALF_BEGUN, alone, 0)),
        "full disk": (2, save_on_a_full_disk, (PLAIN, folder / "full")),
        "asked": (2, saves_when_asked, (short,)),
        "nan": (2, not_finite, (PLAIN,)),
        "from two": (3, go_on, (BEGUN, folder / "two" / STEP_2, 3)),
        "whole half saved": (2, learn_and_save, (WHOLE_HALF, folder / "whole half")),
        "whole from two": (3, go_on, (replace(BEGUN, whole=True), folder / "two" / STEP_2, 3)),
        "whole half from two": (3, go_on, (WHOLE_HALF, folder / "half" / STEP_2, 0)),
        "half from whole": (3, go_on, (HALF_BEGUN, folder / "whole half" / STEP_2, 0)),
        "half from two": (3, go_on, (HALF_BEGUN, folder / "half" / STEP_2, 0)),
    }
    return run_all(checks, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNED)
def test_workers_with_shards_learn_what_one_learns(found, name):
    _, steps = LEARNED[name]
    same(found[name], learn(steps))


def same(found, expected):
    """Losses, gradient norms, weights and optimiser in float64."""
    assert flat(found["numbers"]) == pytest.approx(flat(expected["numbers"]), rel=1e-12, abs=1e-12)
    for name, weight in expected["weights"].items():
        assert (found["weights"][name] - weight).abs().max() <= 1e-12, name
    if "state" in found and "state" in expected:
        averages, known = (x["state"]["optimizer"]["state"] for x in (found, expected))
        assert averages.keys() == known.keys()
        for i, values in known.items():
            for key, value in values.items():
                assert (averages[i][key] - value).abs().max() <= 1e-12


def flat(numbers):
    return [n for pair in numbers for n in pair if n is not None]


@pytest.mark.slow
def test_half_precision_has_masters_of_float32_in_shards(found):
    sharded, alone = found["half"], learn(HALF)
    masters = sharded["state"]["master_weights"]
    for name, weight in sharded["weights"].items():
        assert masters[name].dtype == torch.float32
        assert torch.equal(weight, masters[name].bfloat16())
        # A micro-batch's gradient is rounded to bfloat16 alike; Adam's steps have the size of
        # the rate where the sign of a small gradient is in doubt.
        known = alone["state"]["master_weights"][name]
        assert (masters[name] - known).abs().mean() <= 0.1 * HALF.rate
    assert flat(sharded["numbers"])[:2] == pytest.approx(flat(alone["numbers"])[:2], rel=0.01)


@pytest.mark.slow
def test_single_precision_differs_by_rounding(found):
    assert flat(found["single"]["numbers"]) == pytest.approx(
        flat(learn(SINGLE)["numbers"]), abs=1e-5
    )


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_is_refused_by_all(found):
    for said, name, moved in found["nan"]:
        assert said.endswith(f"first not finite in {name}")
        assert not moved


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_checkpoint_of_two_workers_goes_on_with_one_or_three(found):
    expected = learn(PLAIN)
    expected["numbers"] = expected["numbers"][2:]
    same(go_on(BEGUN, found["saved"], 3), expected)
    same(found["from two"], expected)
    same(found["whole from two"], expected)


@pytest.mark.slow
def test_a_checkpoint_of_one_process_goes_on_with_two_workers(found):
    expected = learn(PLAIN)
    expected["numbers"] = expected["numbers"][2:]
    same(found["from one"], expected)


@pytest.mark.slow
def test_masters_and_averages_are_read_back_to_the_bit(found):
    pairs = (
        (found["half saved"], go_on(HALF_BEGUN, found["half saved"], 0)),
        (found["half saved"], found["half from two"]),
        (found["half saved"], found["whole half from two"]),
        (found["whole half saved"], found["half from whole"]),
        (found["half saved"].parents[1] / "alone" / STEP_2, found["half from one"]),
    )
    for path, started in pairs:
        saved, kept = load(path, file_hash(path / MANIFEST)).learner, started["kept"]
        assert saved["master_weights"]
        for name, master in saved["master_weights"].items():
            assert torch.equal(kept["master_weights"][name], master)
        for i, values in saved["optimizer"]["state"].items():
            assert all(torch.equal(kept["optimizer"]["state"][i][k], v) for k, v in values.items())


@pytest.mark.slow
def test_shards_hold_no_code_and_each_file_is_in_the_manifest(found):
    path = found["saved"]
    manifest, digest = read_manifest(path), file_hash(path / MANIFEST)
    assert manifest["format"] == IN_SHARDS
    files = {p.name for p in path.iterdir()}
    assert files == {*manifest["files"], MANIFEST}
    assert len(files) == 3
    assert all(name.endswith(".safetensors") for name in manifest["files"])
    damaged = path.with_name("step-00000009")
    damaged.mkdir()
    for name in files:
        (damaged / name).write_bytes((path / name).read_bytes())
    load(damaged, digest)
    shard = damaged / sorted(manifest["files"])[1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BadCheckpoint, match=r"shard-00002.* is not as it was saved"):
        load(damaged, digest)


@pytest.mark.slow
def test_a_disk_that_is_full_for_one_worker_is_told_by_all(found):
    told, path = found["full disk"]
    for raised, left in told:
        assert raised.startswith("The checkpoint of step 1 needs")
        assert "press Resume" in raised
        assert left == []
    assert json.loads((path / MANIFEST).read_text())["step"] == 1


@pytest.mark.slow
def test_a_person_gets_the_shards_of_the_step_that_is_going_on(found):
    assert found["asked"] == [2]


@pytest.mark.slow
def test_one_process_writes_the_format_that_it_wrote_before(tmp_path):
    path = learn_and_save(replace(PLAIN, count=1), tmp_path)
    assert read_manifest(path)["format"] == ONE_PROCESS
    assert {p.name for p in path.iterdir()} == {"policy.safetensors", "state.safetensors", MANIFEST}
    for name, weight in load(path, file_hash(path / MANIFEST)).weights.items():
        assert torch.equal(weight, load_weights(path)[name])
