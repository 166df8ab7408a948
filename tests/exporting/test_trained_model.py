"""Exports of a run: played answers, a folder for transformers, a command, a TRL script."""

from __future__ import annotations

import json
import runpy
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers

from grpo_core.cli import main
from grpo_core.cli.request import build_config
from grpo_core.config import PRESETS, nest, parse, with_preset
from grpo_core.errors import StudioError
from grpo_core.exporting import answers
from grpo_core.exporting.play_request import PlayRequest, PlayStopped, PlayWatch, State
from grpo_core.exporting.recipes import as_command, as_trl_script
from grpo_core.exporting.trained_model import export_model, model_card
from grpo_core.models.model_cache import ModelCache
from grpo_core.preflight import playground
from grpo_core.preflight.service import PreflightService
from grpo_core.store import Recorder, Store
from grpo_core.types import ModelLoaded, RunStatus

SETTINGS = {
    "task.heldout_size": 8,
    "train.steps": 2,
    "train.prompts_per_step": 2,
    "train.group_size": 4,
    "train.max_new_tokens": 24,
    "train.checkpoint_every": 1,
    "train.learning_rate": 3e-3,
    "train.warmup_steps": 0,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, tuple[Store, str]]:
    """Two runs of the bundled model with two saved states each: whole, and with adapters."""
    db = tmp_path_factory.mktemp("trained") / "runs.sqlite"
    for name, rank in (("whole", 0), ("adapters <b>|x|</b>", 4)):
        sets = [
            part
            for k, v in {**SETTINGS, "model.lora_rank": rank}.items()
            for part in ("--set", f"{k}={v}")
        ]
        assert main(["train", "--db", str(db), "--name", name, *sets]) == 0
    store = Store(db)
    return {"whole": (store, store.runs()[1].id), "adapters": (store, store.runs()[0].id)}


def greedy(folder: Path | str, text: str, model=None) -> str:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = model or transformers.AutoModelForCausalLM.from_pretrained(folder)
    out = model.generate(
        **tokenizer(text, return_tensors="pt"),
        do_sample=False,
        max_new_tokens=24,
        temperature=None,
        top_k=None,
        top_p=None,
    )[0]
    return tokenizer.decode(out[len(tokenizer(text)["input_ids"]) :], skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["whole", "adapters"])
def test_an_exported_model_gives_the_same_text_in_plain_transformers(trained, kind, tmp_path):
    store, run_id = trained[kind]
    service = PreflightService(store)
    folder = export_model(store, run_id, tmp_path / "model")
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "generation_config.json",
        "README.md",
    } <= {p.name for p in folder.iterdir()}
    for number in range(4):
        prompt = service.run_prompt(run_id, number)
        request = PlayRequest(
            prompt.text, prompt.answer, [State(run_id, 0), State(run_id, 2)], 1, 0.0
        )
        played = service.play(run_id, request)
        before, after = (side.greedy.completion.text for side in played.sides)
        assert greedy(folder, prompt.text) == after
        assert (
            greedy(Path(__file__).parents[2] / "grpo_core" / "models" / "bundled", prompt.text)
            == before
        )
    assert service.play(run_id, request) == played  # and again, from the model cache


def test_an_adapter_alone_loads_by_peft_onto_its_base_model(trained, tmp_path):
    from peft import PeftModel

    store, run_id = trained["adapters"]
    merged, alone = (
        export_model(store, run_id, tmp_path / "model"),
        export_model(store, run_id, tmp_path / "adapter", adapter_only=True),
    )
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {p.name for p in alone.iterdir()}
    bundled = Path(__file__).parents[2] / "grpo_core" / "models" / "bundled"
    with_adapter = PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(bundled), alone
    )
    ids = torch.tensor([[5, 6, 7, 8]])
    whole = transformers.AutoModelForCausalLM.from_pretrained(merged)
    assert torch.allclose(with_adapter(ids).logits, whole(ids).logits, atol=1e-4)
    assert not torch.allclose(
        whole(ids).logits,
        transformers.AutoModelForCausalLM.from_pretrained(bundled)(ids).logits,
        atol=1e-3,
    )
    with pytest.raises(StudioError, match="no adapter"):
        export_model(*trained["whole"], tmp_path / "none", adapter_only=True)


def test_a_model_card_states_measurements_and_a_name_injects_nothing(trained):
    store, run_id = trained["adapters"]
    card = model_card(store, store.run(run_id), 2)
    held = dict(store.metrics(run_id)["heldout/accuracy"])
    assert f"| `heldout/accuracy` | {held[0]:.4g} (" in card
    assert "LoRA of rank 4" in card
    assert "python -m grpo_core train" in card
    assert "<b>" not in card


def test_what_cannot_be_exported_is_refused_in_one_line(trained, tmp_path):
    store, run_id = trained["whole"]
    with pytest.raises(StudioError, match=r"no saved state of step 7. Saved: 1, 2"):
        export_model(store, run_id, tmp_path / "a", step=7)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(StudioError, match="is not empty"):
        export_model(store, run_id, tmp_path / "full")
    without = store.create_run(parse(nest({})), "never started")
    with pytest.raises(StudioError, match="has no saved state"):
        export_model(store, without, tmp_path / "b")
    with pytest.raises(StudioError, match="leaves no room for the answer"):
        PreflightService(store).play(
            run_id, PlayRequest("x" * 5000, "", [State(run_id, 0)], 1, 0.0)
        )
    row = store.checkpoints(run_id)[0]
    (row.path / "policy.safetensors").write_bytes(
        (row.path / "policy.safetensors").read_bytes()[:-8]
    )
    with pytest.raises(StudioError, match="damaged"):
        PreflightService(store).play(run_id, PlayRequest("Q", "", [State(run_id, 1)], 1, 0.0))


def test_both_sides_share_random_numbers_and_a_typed_prompt_needs_no_answer(trained):
    store, run_id = trained["whole"]
    request = PlayRequest("Q: 1+1+1=?", "", [State(run_id, 0), State(run_id, 0)], 3, 1.0)
    played = PreflightService(store).play(run_id, request)
    left, right = ([r.completion.text for r in side.sampled] for side in played.sides)
    assert left == right
    assert len(left) == 3
    assert all(r.scores["accuracy"] is None for r in played.sides[0].sampled)


def test_a_greedy_answer_stands_beside_the_sampled_ones(trained):
    store, run_id = trained["whole"]
    service = PreflightService(store)
    [cold], [hot] = (
        service.play(
            run_id, PlayRequest("Q: 1+1+1=?", "3", [State(run_id, 2)], 5, temperature)
        ).sides
        for temperature in (0.0, 1.0)
    )
    assert cold.sampled == ()
    assert hot.greedy == cold.greedy
    assert len(hot.sampled) == 5


def test_answers_are_seen_while_they_are_written_and_can_be_stopped(trained, monkeypatch):
    store, run_id = trained["whole"]
    monkeypatch.setattr(answers, "LOOK_SECONDS", -1.0)  # every token is looked at
    watch, seen = PlayWatch(), []
    show = watch.show
    watch.show = lambda partial: (seen.append(partial), show(partial))
    request = PlayRequest("Q: 1+1+1=?", "3", [State(run_id, 0), State(run_id, 2)], 3, 1.0)
    models = ModelCache(lambda wanted: torch.device("cpu"))
    whole = answers.play(store, models, run_id, request, watch)
    assert seen[-1] == whole
    for n, side in enumerate(whole.sides):
        for i, rollout in enumerate((side.greedy, *side.sampled)):
            texts = [
                rollouts[i].completion.text
                for partial in seen
                if len(rollouts := [partial.sides[n].greedy, *partial.sides[n].sampled]) > i
                and rollouts[i]
            ]
            assert texts[-1] == rollout.completion.text
            assert len(set(texts)) > 2
            assert all(later.startswith(text) for text, later in pairwise(texts))
    without_watch = answers.play(store, models, run_id, request)
    assert without_watch == whole  # being looked at changes no answer

    service = PreflightService(store)
    stops = PlayWatch()
    stops.show = lambda partial: (PlayWatch.show(stops, partial), service.stop_play("q"))
    monkeypatch.setattr(playground, "PlayWatch", lambda: stops)
    with pytest.raises(PlayStopped) as stopped:
        service.play(run_id, request, "q")
    written = stopped.value.partial.sides[0].greedy.completion
    assert whole.sides[0].greedy.completion.text.startswith(written.text)
    assert written.finish_reason == ""
    assert stopped.value.partial.sides[1].greedy is None
    assert service.look_at_play("q") is None
    service.stop_play("q")  # too late: nothing happens


def test_two_runs_answer_side_by_side_with_their_own_settings(trained):
    (store, run_id), (same_store, other) = trained["whole"], trained["adapters"]
    assert store is same_store
    request = PlayRequest("Q: 1+1+1=?", "3", [State(run_id, 2), State(other, 2)], 2, 1.0)
    service = PreflightService(store)
    mine, others = service.play(run_id, request).sides
    alone = replace(request, states=[State(other, 2)])
    assert service.play(other, alone).sides[0].greedy == others.greedy
    assert mine == service.play(run_id, replace(request, states=[State(run_id, 2)])).sides[0]


def test_an_equal_question_is_answered_once(trained):
    store, run_id = trained["whole"]
    service = PreflightService(store)
    request = PlayRequest("Q: 1+1+1=?", "3", [State(run_id, 0), State(run_id, 2)], 2, 1.0)
    assert service.play(run_id, request) is service.play(run_id, replace(request))
    unscored = replace(request, answer="")  # accuracy cannot be scored, the next time it may be
    assert service.play(run_id, unscored) is not service.play(run_id, unscored)


def test_a_run_answers_unasked_only_while_nothing_trains(trained, monkeypatch):
    monkeypatch.setenv("GRPO_DEVICE", "cpu")
    store, run_id = trained["whole"]
    service = PreflightService(store)
    assert service.reason_to_wait(run_id) == ""
    other = store.create_run(parse(nest({})), "goes on")
    store.set_status(other, RunStatus.RUNNING)
    assert service.reason_to_wait(run_id).startswith("Another run is training")
    assert service.reason_to_wait(other).startswith("This run is training")
    store.set_status(other, RunStatus.PAUSED)
    assert service.reason_to_wait(run_id) == ""
    with Recorder(store, other) as record:
        record(ModelLoaded({"parameters": 7_000_000_000}))
    assert "slowly on the CPU" in service.reason_to_wait(other)
    store.set_status(other, RunStatus.STOPPED)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_of_a_run_gives_its_configuration_back(preset):
    config = parse(
        nest(
            with_preset(
                {
                    "train.steps": 7,
                    "task.name": "sort",
                    "rubric.clip_low": -0.5,
                    "model.name": "it's; rm -rf /",
                    "train.learning_rate": 1e-5,
                },
                preset,
            )
        )
    )
    words = shlex.split(as_command(config).replace("\\\n", " "))
    assert words[:4] == ["python", "-m", "grpo_core", "train"]
    assert build_config(None, None, words[5::2]) == config


def test_the_trl_script_trains_and_names_what_trl_lacks(tmp_path, monkeypatch, tiny_settings):
    config = parse(nest({**tiny_settings, "train.steps": 1, "algorithm.dynamic_sampling": 2}))
    script = as_trl_script(config)
    assert "TRL has no counterpart of these settings" in script
    assert "#   algorithm.dynamic_sampling = 2" in script
    assert "Every setting of the run has a counterpart in TRL." in as_trl_script(parse(nest({})))
    (tmp_path / "run.py").write_text(script)
    monkeypatch.chdir(tmp_path)
    done = runpy.run_path(str(tmp_path / "run.py"), run_name="__main__")
    [line] = [entry for entry in done["trainer"].state.log_history if "reward" in entry]
    assert line["reward"] == line["reward"]
    assert {
        f"rewards/{name}/mean" for name in ("accuracy", "format", "language", "reasoning")
    } <= set(line)


def test_the_command_line_exports_a_model_and_both_recipes(trained, tmp_path, capsys):
    store, run_id = trained["whole"]
    assert (
        main(
            [
                "export",
                run_id,
                "--db",
                str(store.path),
                "--format",
                "model",
                "--out",
                str(tmp_path / "m"),
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["path"] == str(tmp_path / "m")
    assert main(["export", run_id, "--db", str(store.path), "--format", "command"]) == 0
    assert "--set train.steps=2" in capsys.readouterr().out
    assert main(["export", run_id, "--db", str(store.path), "--format", "trl"]) == 0
    assert "GRPOTrainer" in capsys.readouterr().out


def test_a_taken_chat_is_answered_after_all_its_messages(tiny_model, store, tmp_path, monkeypatch):
    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path / "cache"))
    rows = []
    for i in range(40):
        turns = [(f"Document {i}", "user"), ("Yes?", "assistant"), ("Sum up.", "user")]
        chat = [{"role": role, "content": text} for text, role in turns]
        rows.append(json.dumps({"messages": chat, "answer": "the same", "note": i}) + "\n")
    (tmp_path / "p.jsonl").write_text("".join(rows))
    settings = {"task.path": str(tmp_path / "p.jsonl"), "task.system": "Be brief."}
    config = parse(nest({**settings, "model.name": str(tiny_model), "train.max_new_tokens": 4}))
    run_id = store.create_run(config, "chats")
    service = PreflightService(store)
    second = service.run_prompt(run_id, 1)
    request = PlayRequest(second.text, "the same", [State(run_id, 0)], 1, 0.0, 1)
    assert service.play(run_id, request).prompt == second
    assert second.meta["before"][1]["content"].startswith("Document")
    typed = service.play(run_id, replace(request, text="Hi")).prompt
    assert typed.meta["before"] == [{"role": "system", "content": "Be brief."}]
