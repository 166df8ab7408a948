"""Model folders with incomplete weights or foreign files: refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from crafted import (
    CPU,
    INDEX,
    ODD,
    UP,
    WEIGHTS,
    change_json,
    change_weights,
    load,
    refusal,
    without,
)
from safetensors.torch import load_file, save_file

from grpo_core.config import ModelConfig
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.models import check_model, load_classifier, load_policy

# ---- incomplete weights ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without(UP), UP),
        (lambda tensors: {}, "lm_head.weight"),
        (without("lm_head.weight"), "lm_head.weight"),
        (lambda t: {f"module.{n}": p for n, p in t.items()}, "lm_head.weight"),
        (lambda t: {**t, UP: t[UP][:-1].clone()}, UP),
        (lambda t: {**t, UP: t[UP].T.contiguous()}, UP),
    ],
    ids=["one", "all", "the head", "a foreign prefix", "a smaller one", "a transposed one"],
)
def test_missing_or_misshapen_weights_are_named(folder, change, named):
    change_weights(folder, change)
    assert named in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.1.mlp.down_proj.weight_scale_inv",
        "model.norm.bias",
    ],
)
def test_weights_that_the_model_would_ignore_are_named(folder, name):
    change_weights(folder, lambda t: {**t, name: torch.ones(3)})
    assert name in refusal(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "v_head.summary.weight",
        "score.weight",
        "mtp.layers.0.input_layernorm.weight",
        "vision_tower.encoder.layers.0.mlp.fc1.weight",
    ],
)
def test_weights_of_other_tasks_do_no_harm(folder, name):
    change_weights(folder, lambda t: {**t, name: torch.ones(3)})
    assert load(folder).num_parameters > 1000


def test_a_tied_head_needs_no_weights_of_its_own(folder):
    change_json(folder / "config.json", tie_word_embeddings=True)
    change_weights(folder, without("lm_head.weight"))
    model = load(folder).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    change_weights(folder, without("model.embed_tokens.weight"))
    assert "model.embed_tokens.weight" in refusal(folder)


def test_random_initial_weights_need_no_file(folder):
    (folder / WEIGHTS).unlink()
    assert load(folder, init="random").num_parameters > 1000


def test_a_reward_model_without_its_head_is_refused(classifier):
    load_classifier(str(classifier))
    change_weights(classifier, without("score.weight"))
    with pytest.raises(StudioError, match=r"score\.weight") as caught:
        load_classifier(str(classifier))
    assert "\n" not in str(caught.value)


def test_a_reward_model_without_labels_is_refused(classifier):
    change_json(classifier / "config.json", id2label={}, label2id={})
    change_weights(classifier, lambda t: {**t, "score.weight": t["score.weight"][:0].clone()})
    with pytest.raises(StudioError, match="no labels"):
        load_classifier(str(classifier))


def test_a_wrappers_prefix_is_named(folder):
    change_weights(folder, lambda t: {f"_orig_mod.{n}": p for n, p in t.items()})
    assert "the first is called _orig_mod.lm_head.weight there" in refusal(folder)


def test_an_empty_index_is_refused(sharded):
    change_json(sharded / INDEX, weight_map={})
    assert INDEX in refusal(sharded)


def test_a_language_model_is_no_reward_model(tiny_model):
    with pytest.raises(StudioError, match=r"score\.weight"):
        load_classifier(str(tiny_model))


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_integers_in_place_of_weights_are_refused(folder, kind):
    change_weights(folder, lambda t: {**t, UP: t[UP].to(kind)})
    assert UP in refusal(folder)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_precision_load(folder, kind):
    change_weights(folder, lambda t: {n: p.to(kind) for n, p in t.items()})
    assert load(folder).model.dtype == torch.float32


def test_a_name_in_a_file_cannot_break_the_line(folder):
    name = "model.layers.0.mlp.x\n\x1b[31mRED" + "y" * 5_000
    change_weights(folder, lambda t: {**t, name: torch.ones(2)})
    text = refusal(folder)
    assert "\x1b" not in text
    assert len(text) < 1_000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_weight_that_is_not_finite_is_named(folder, value):
    def spoil(tensors):
        tensors[UP][3, 5] = value
        tensors["model.norm.weight"][0] = value
        return tensors

    change_weights(folder, spoil)
    text = refusal(folder)
    assert UP in text
    assert "1 of 2,048" in text  # 64 x 32


# ---- files -----------------------------------------------------------------------------------


def test_weights_in_several_files_load(sharded, tiny_model):
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(load(sharded).model(ids).logits, load(tiny_model).model(ids).logits)


@pytest.mark.parametrize(
    "entry",
    [
        "../outside.bin",
        "../outside.safetensors",
        "sub/inside.safetensors",
        "/etc/passwd",
        "pytorch_model.bin",
        "link.safetensors",
        "pipe.safetensors",
        ".hidden.safetensors",
        "absent.safetensors",
        7,
        None,
        ["a"],
    ],
)
def test_an_index_names_plain_files_of_its_folder_only(sharded, entry):
    outside = sharded.parent / "outside"
    shards = sorted(sharded.glob("model-*.safetensors"))
    (sharded / "sub").mkdir()
    for place in (
        outside.with_suffix(".bin"),
        outside.with_suffix(".safetensors"),
        sharded / "sub" / "inside.safetensors",
        sharded / ".hidden.safetensors",
        sharded / "pytorch_model.bin",
    ):
        shutil.copy(shards[0], place)
    (sharded / "link.safetensors").symlink_to(outside.with_suffix(".safetensors"))
    if entry == "pipe.safetensors":
        os.mkfifo(sharded / entry)
    index = json.loads((sharded / INDEX).read_text())
    moved = {n: entry if f == shards[0].name else f for n, f in index["weight_map"].items()}
    (sharded / INDEX).write_text(json.dumps({**index, "weight_map": moved}))
    text = refusal(sharded)
    assert str(entry) in text or "link" in text
    with pytest.raises(InvalidConfig):  # before a run is created
        check_model(ModelConfig(name=str(sharded)))


def test_a_shard_without_its_tensors_is_refused(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    [name, *_] = tensors = load_file(shard)
    save_file({n: t for n, t in tensors.items() if n != name}, shard, {"format": "pt"})
    assert name in refusal(sharded)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS, "chat_template.jinja"])
def test_a_link_out_of_the_folder_is_not_followed(folder, tiny_model, name):
    (folder / name).unlink(missing_ok=True)
    target = folder.parent / "elsewhere"
    shutil.copy(tiny_model / name if (tiny_model / name).exists() else __file__, target)
    (folder / name).symlink_to(target)
    assert name in refusal(folder)


def test_links_inside_a_folder_and_in_the_hubs_cache_are_followed(tiny_model, tmp_path):
    cache = tmp_path / "models--owner--name"
    snapshot, blobs = cache / "snapshots" / "a1", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(tiny_model.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert load(snapshot).num_parameters > 1000


def test_parts_of_a_distributed_checkpoint_are_refused(sharded):
    shard = sorted(sharded.glob("model-*.safetensors"))[0]
    shutil.copy(shard, sharded / "shard-00001-model-00001-of-00001.safetensors")
    (sharded / ".metadata").write_bytes(b"\x80\x04")
    assert "distributed checkpoint" in refusal(sharded)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "config.json"])
def test_a_pipe_in_place_of_a_file_is_refused(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert name in refusal(folder)


def test_an_adapter_is_refused_with_the_name_of_its_base(folder):
    change_json(folder / "adapter_config.json", base_model_name_or_path="/other/model")
    text = refusal(folder)
    assert "adapter" in text
    assert "/other/model" in text
    (folder / "config.json").unlink()
    assert "adapter" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "sub/w.safetensors", 3, ["a"]]
)
def test_a_configuration_cannot_choose_another_file_for_weights(folder, name):
    shutil.copy(folder / WEIGHTS, folder.parent / "outside.safetensors")
    change_json(folder / "config.json", transformers_weights=name)
    refusal(folder)


# ---- a snapshot in the Hub's cache -------------------------------------------------------------


@pytest.fixture
def snapshot(tiny_model, tmp_path, monkeypatch) -> Path:
    """The files of the Hub model owner/name, as its cache keeps them."""
    from huggingface_hub import constants

    cache, commit = tmp_path / "hub", "a" * 40
    repository = cache / "models--owner--name"
    files = repository / "snapshots" / commit
    shutil.copytree(tiny_model, files)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "blobs").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return files


def load_from_hub(_: object = None):
    return load_policy(ModelConfig(name="owner/name"), 0, CPU)


def test_a_cached_model_loads_also_with_an_unused_auto_map(snapshot, tiny_model):
    change_json(snapshot / "config.json", auto_map={"AutoModelForCausalLM": "own.Model"})
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(load_from_hub().model(ids).logits, load(tiny_model).model(ids).logits)


def replace_weights_by_an_index(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    change_json(folder / INDEX, metadata={}, weight_map={UP: "../../evil.bin"})


def link_out(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to("/etc/passwd")


HOSTILE = {
    "index": (replace_weights_by_an_index, "../../evil.bin"),
    "link": (link_out, "generation_config.json"),
    "weights": (lambda f: change_weights(f, without(UP)), UP),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "model.safetensors"),
    "layers": (lambda f: change_json(f / "config.json", num_hidden_layers=10**9), "layers"),
    "size": (lambda f: change_json(f / "config.json", hidden_size=10**9), "GiB"),
    "files": (lambda f: change_json(f / "config.json", configuration_files=["c"]), "other files"),
    "class": (lambda f: change_json(f / "tokenizer_config.json", tokenizer_class="A"), "tokenizer"),
    "adapter": (lambda f: change_json(f / "adapter_config.json", base_model_name_or_path="x"), "x"),
    "deep": (lambda f: (f / "config.json").write_bytes(ODD["deep"]), "config.json"),
    "tokenizer": (lambda f: (f / "tokenizer.json").write_bytes(ODD["deep"]), "tokenizer.json"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_snapshot_is_refused_as_a_folder_is(snapshot, kind):
    spoil, named = HOSTILE[kind]
    spoil(snapshot)
    assert named in refusal(snapshot, load_from_hub)
