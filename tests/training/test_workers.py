"""Two workers and one give the same run: prompts, texts, rewards, and the loss but for rounding."""

from __future__ import annotations

import pytest
from many_workers import last_checkpoint, run_alone, run_of_workers
from transformers import AutoModelForCausalLM

from grpo_core.config import nest, parse, with_preset
from grpo_core.exporting.trained_model import export_model
from grpo_core.runs.execution import Job, execute
from grpo_core.runs.resume import plan_branch
from grpo_core.training.breakpoints import parse_breakpoints
from grpo_core.training.checkpoint import load_weights
from grpo_core.training.control import RunControl
from grpo_core.types import (
    Evaluated,
    GroupsScored,
    Intervened,
    ModelLoaded,
    Paused,
    Phase,
    PhaseStarted,
    RunStatus,
    StepCompleted,
)

STEPS = 10
BASE = {
    "task.heldout_size": 3,
    "train.steps": STEPS,
    "train.prompts_per_step": 3,  # shared unevenly
    "train.group_size": 4,
    "train.max_new_tokens": 12,
    "train.eval_every": 5,
    "train.checkpoint_every": 5,
    "test.float64": True,
}
RUNS = {
    "grpo": {"algorithm.kl_coef": 0.02, "test.shards": True},
    "dapo": with_preset({"algorithm.entropy_quantile": 0.2}, "DAPO"),
    "gspo": with_preset({"algorithm.updates_per_batch": 2}, "GSPO"),
    "task": {"task.name": "arithmetic", "algorithm.grouping": "task"},
    "batch": {"algorithm.grouping": "batch", "algorithm.kl_coef": 0.0},
    "critic": {"algorithm.advantage": "value", "train.steps": 3},
    "lora": {"model.lora_rank": 4, "train.steps": 3},
    "tools": {"task.name": "products", "train.steps": 3},
}


def person(control, event, rank):
    """Changes a setting, edits a reward before the update of step 2, and stops in step 4."""
    if rank == 0 and isinstance(event, PhaseStarted) and event.phase is Phase.SAMPLING:
        if event.step == 1:
            control.set_knob("train.learning_rate", 3e-4)
            control.set_breakpoints([*parse_breakpoints("step = 2")])
        if event.step == 4:
            control.stop()
    if isinstance(event, Paused):
        control.edit_reward(2, 1, 0, 5.0)  # of the second group, which worker 1 sampled
        control.resume()


PERSON = {**BASE, "algorithm.kl_coef": 0.02, "test.watch": person}
FLOAT32 = {**BASE, "test.float64": False, "train.steps": 1, "algorithm.kl_coef": 0.02}


def settings_of(name, **more):
    return {**BASE, **RUNS[name], **more}


def texts(events):
    return [
        [(g.prompt.text, [r.completion.text for r in g.rollouts]) for g in e.groups]
        for e in events
        if isinstance(e, GroupsScored)
    ]


def losses(events):
    return [e.metrics.loss for e in events if isinstance(e, StepCompleted)]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The events of each run alone and with two workers, and of one that two workers began."""
    folder = tmp_path_factory.mktemp("workers")

    def runs(kind):
        return [settings_of(name, **{"test.folder": folder / f"{name}-{kind}"}) for name in RUNS]

    two = run_of_workers(2, [*runs("two"), FLOAT32, PERSON], folder / "meet")
    one = run_alone([*runs("one"), FLOAT32, PERSON])
    return dict(zip([*RUNS, "float32", "person"], zip(one, two, strict=True), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_workers_train_the_run_of_one(both, name):
    one, two = both[name]
    assert [type(e) for e in one] == [type(e) for e in two]
    assert texts(one) == texts(two)
    for a, b in zip(one, two, strict=True):
        if isinstance(a, GroupsScored):
            for g, h in zip(a.groups, b.groups, strict=True):
                assert [r.reward for r in g.rollouts] == [r.reward for r in h.rollouts]
                assert [r.advantage for r in g.rollouts] == pytest.approx(
                    [r.advantage for r in h.rollouts], abs=1e-9
                )
        if isinstance(a, Evaluated):
            assert a.metrics == pytest.approx(b.metrics, abs=1e-12)
    assert len(losses(two)) == settings_of(name)["train.steps"]
    assert losses(one) == pytest.approx(losses(two), abs=1e-9)


@pytest.mark.slow
def test_metrics_and_tokens_of_a_step_count_all_workers(both):
    one, two = ([e for e in events if isinstance(e, StepCompleted)] for events in both["grpo"])
    for a, b in zip(one, two, strict=True):
        for name in ("kl", "entropy", "grad_norm", "ratio_max", "tokens", "reward_mean"):
            assert getattr(a.metrics, name) == pytest.approx(getattr(b.metrics, name), abs=1e-9)
        assert a.tokens.records.keys() == b.tokens.records.keys()
        for place, record in a.tokens.records.items():
            other = b.tokens.records[place]
            assert record.token_ids == other.token_ids
            assert record.logprobs == pytest.approx(other.logprobs, abs=1e-6)
            assert (record.logprobs_after is None) == (other.logprobs_after is None)


@pytest.mark.slow
def test_a_run_of_two_workers_goes_on_with_one(both, tmp_path):
    start = last_checkpoint(both["grpo"][1], 5)
    [resumed] = run_alone([settings_of("grpo", **{"test.folder": tmp_path, "test.start": start})])
    assert texts(resumed) == texts(both["grpo"][0])[5:]
    assert losses(resumed) == pytest.approx(losses(both["grpo"][0])[5:], abs=1e-9)


@pytest.mark.slow
def test_workers_save_their_shards_and_what_each_has_whole_is_saved_once(both):
    saved = {"grpo": 5, "dapo": 5, "lora": 3}
    files = {
        name: {p.name for p in last_checkpoint(both[name][1], step).path.iterdir()}
        for name, step in saved.items()
    }
    shards = {f"shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)}
    assert files["grpo"] == {*shards, "checkpoint.json"}
    assert (
        files["dapo"]
        == files["lora"]
        == {"policy.safetensors", "state.safetensors", "checkpoint.json"}
    )


@pytest.mark.slow
def test_a_run_of_two_workers_is_branched_and_exported_as_one_folder(both, store, tmp_path):
    settings = settings_of("grpo")
    config = parse(nest({k: v for k, v in settings.items() if not k.startswith("test.")}))
    run_id = store.create_run(config, "two", status=RunStatus.LOADING)

    def play_back(config, emit, control):
        for event in both["grpo"][1]:
            emit(event)

    job = Job(run_id, config, RunControl(store.checkpoint_folder(run_id)))
    assert execute(store, job, play_back) is RunStatus.FINISHED
    _, start = plan_branch(store, run_id, 5, {"train.learning_rate": 1e-4})
    assert start.sha256 == last_checkpoint(both["grpo"][1], 5).sha256
    folder = export_model(store, run_id, tmp_path / "model")
    exported = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    alone = load_weights(last_checkpoint(both["grpo"][0], STEPS).path)
    for name, weight in alone.items():
        assert (exported[name] - weight).abs().max() <= 1e-6, name


@pytest.mark.slow
def test_in_float32_the_first_step_is_the_same_but_for_rounding(both):
    one, two = both["float32"]
    assert texts(one) == texts(two)
    assert losses(one) == pytest.approx(losses(two), abs=1e-5)
    assert losses(one)[0] != 0


@pytest.mark.slow
def test_what_a_person_changes_reaches_all_workers_in_the_same_step(both):
    one, two = both["person"]
    assert [type(e) for e in one] == [type(e) for e in two]
    changes = [
        [i for e in events if isinstance(e, Intervened) for i in e.interventions]
        for events in both["person"]
    ]
    assert changes[0] == changes[1]
    assert {(i.step, i.kind) for i in changes[0]} == {(2, "setting"), (2, "reward")}
    assert len(losses(one)) == 3
    assert losses(one) == pytest.approx(losses(two), abs=1e-9)
    assert losses(one)[2] != pytest.approx(losses(both["grpo"][0])[2], abs=1e-6)


@pytest.mark.slow
def test_the_record_names_workers_and_their_devices(both):
    environment = next(e for e in both["grpo"][1] if isinstance(e, ModelLoaded)).env
    assert (environment["workers"], environment["nodes"]) == (2, 1)
    assert environment["devices"].startswith("2 × CPU")
