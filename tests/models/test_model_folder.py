"""Model folders that are incomplete, damaged or hostile: refused in one line before they harm."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo_core.config import ModelConfig
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.models import check_model, load_classifier, load_policy, load_reader

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def classifier(tmp_path) -> Path:
    """A reward model with one label."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from scripts.bundled_model.make import make_tokenizer

    folder, tokenizer = tmp_path / "reward", make_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path, **options):
    return load_policy(ModelConfig(name=str(folder), **options), 0, CPU)


def refusal(folder: Path, loader=load) -> str:
    with pytest.raises(InvalidConfig) as caught:
        loader(folder)
    text = str(caught.value)
    assert text.startswith("model.name = ")
    assert "\n" not in text
    return text


def one_line(loader, folder: Path) -> str | None:
    """The line that refuses a folder, or None where it loads; other errors are raised."""
    try:
        loader(folder)
    except InvalidConfig:
        return refusal(folder, loader)
    return None


def change_json(file: Path, **values) -> None:
    data = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**data, **values}))


def change_weights(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS, {"format": "pt"})


def without(*names: str):
    return lambda tensors: {n: t for n, t in tensors.items() if n not in names}


def with_also(**more):
    return lambda tensors: {**tensors, **{n.replace("__", "."): t for n, t in more.items()}}


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


@pytest.fixture
def sharded(folder) -> Path:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


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


# ---- what a configuration may not decide ------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {"_attn_implementation": "evil/kernel:fn"},
        {"attn_implementation": "evil/kernel:fn"},
        {"_attn_implementation_internal": "evil/kernel:fn"},
        {"_attn_implementation": "flash_attention_3"},
        {"_attn_implementation": {"": "evil/kernel@main"}},
        {"experts_implementation": "evil/kernel"},
        {"_experts_implementation": "nonsense"},
        {"fusion_config": {"patch_embeddings": True}},
        {"return_dict": False, "output_hidden_states": True, "output_attentions": True},
        {"torch_dtype": "float64", "use_cache": False, "gradient_checkpointing": True},
    ],
    ids=str,
)
def test_a_folder_does_not_choose_how_it_is_computed(folder, tiny_model, keys, monkeypatch):
    from transformers.integrations import hub_kernels

    from grpo_core.rollout import SamplingParams, sample_groups

    loads = []
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda *a, **k: loads.append(a), raising=False)
    change_json(folder / "config.json", **keys)
    policy, honest = load(folder), load(tiny_model)
    assert loads == []
    assert policy.model.dtype == torch.float32

    def sampled(policy):
        rng = torch.Generator().manual_seed(0)
        groups = sample_groups(policy, [[5, 6, 7]], SamplingParams(2, 4, 1.0), rng)
        return [r.completion_ids for r in groups]

    assert sampled(policy) == sampled(honest)


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("config.json", {"configuration_files": ["../config.4.0.json"]}),
        ("config.json", {"auto_map": {"AutoConfig": "evil.Config"}}),
        ("config.json", {"auto_map": 7}),
        ("config.json", {"dtype": "load"}),
        ("config.json", {"attribute_map": {"_attn_implementation": "x"}}),
        ("config.json", {"get_text_config": 3}),
        ("config.json", {"save_pretrained": "x"}),
        ("tokenizer_config.json", {"tokenizer_class": "RagTokenizer"}),
        ("config.json", {"tokenizer_class": "AutoModelForCausalLM"}),
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
        ("config.json", {"quantization_config": {"quant_method": "nonsense"}}),
        ("config.json", {"quantization_config": [1]}),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.4.0.json"]}),
        ("tokenizer_config.json", {"tokenizer_class": "AutoModelForCausalLM"}),
        ("tokenizer_config.json", {"tokenizer_class": "RagRetriever"}),
        ("tokenizer_config.json", {"tokenizer_class": "AutoTokenizer"}),
        ("tokenizer_config.json", {"tokenizer_class": 3}),
        ("tokenizer_config.json", {"tokenizer_class": "E", "auto_map": {"AutoTokenizer": ["e.E"]}}),
        ("tokenizer_config.json", {"init_inputs": ["/etc/passwd"]}),
    ],
    ids=str,
)
def test_foreign_code_and_files_are_refused_in_one_line(folder, file, keys):
    change_json(folder / file, **keys)
    refusal(folder)


def test_a_tokenizer_that_makes_texts_endless_is_refused(folder):
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    plain = {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}
    for step in ("normalizer", "decoder"):
        key = "normalizers" if step == "normalizer" else "decoders"
        file = folder / "tokenizer.json"
        kept = file.read_text()
        change_json(file, **{step: {"type": "Sequence", key: [double] * 45}})
        assert "times longer" in refusal(folder)
        change_json(file, **{step: {"type": "Sequence", key: [plain, double, plain]}})
        load(folder)
        file.write_text(kept)


# ---- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 10**9},
        {"vocab_size": 10**12},
        {"num_hidden_layers": 10**9},
        {"intermediate_size": 10**11},
        {"num_attention_heads": 10**9, "head_dim": 1},
        {"num_labels": 10**9},
        {"hidden_size": 10**30},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 0},
        {"hidden_size": 0},
        {"hidden_size": 3.5},
        {"hidden_size": "32"},
        {"hidden_size": None},
        {"vocab_size": True},
        {"num_key_value_heads": 0},
        {"model_type": "gpt2", "n_layer": 10**9},
        {"model_type": "gpt2", "n_inner": 10**12},
        {"model_type": "qwen3_moe", "num_experts": 10**9},
        {"model_type": "qwen3_moe", "num_experts": 10**7, "hidden_size": 4096},
        {"model_type": "gemma3", "text_config": {"num_hidden_layers": 10**9}},
        {"model_type": "gemma3", "vision_config": {"num_hidden_layers": 10**9}},
        {"model_type": "nemotron_h", "hybrid_override_pattern": "M" * 100_000},
    ],
    ids=lambda sizes: str(sizes)[:60],
)
@pytest.mark.parametrize("init", ["weights", "random"])
def test_absurd_sizes_are_refused_at_once_and_before_memory_is_taken(folder, sizes, init):
    change_json(folder / "config.json", **sizes)
    begun = time.monotonic()
    with pytest.raises(InvalidConfig) as caught:
        load(folder, init=init)
    assert time.monotonic() - begun < 2
    assert "\n" not in str(caught.value)


def test_the_refusal_names_the_bytes_that_are_missing(folder):
    change_json(folder / "config.json", hidden_size=2**30)
    text = refusal(folder, lambda f: check_model(ModelConfig(name=str(f))))
    assert "GiB" in text
    assert "float32" in text


def test_a_reward_model_of_absurd_size_is_refused(classifier):
    change_json(classifier / "config.json", hidden_size=10**9)
    with pytest.raises(StudioError, match="GiB"):
        load_classifier(str(classifier))


def test_large_numbers_that_count_no_parts_are_left_alone(folder):
    change_json(folder / "config.json", vocab_size_per_layer_input=262_144, block_size=1_000_000)
    change_json(folder / "tokenizer_config.json", model_max_length=10**30)
    assert load(folder).context == 128


# ---- odd JSON --------------------------------------------------------------------------------

ODD = {
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "rather deep": b'{"a":' + b"[" * 500 + b"]" * 500 + b"}",
    "a list": b"[1, 2]",
    "a number": b"3",
    "nothing": b"",
    "not a number": b'{"hidden_size": NaN}',
    "long number": b'{"hidden_size": ' + b"9" * 10_000 + b"}",
    "no UTF-8": b'{"model_type": "\xff\xfe"}',
    "half": b'{"model_type": "llama"',
    "surrogate": b'{"model_type": "\\ud800"}',
    "nulls": b"\0" * 100,
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_odd_json_is_one_line(folder, file, odd):
    (folder / file).write_bytes(ODD[odd])
    answer = one_line(load, folder)
    if answer is None:
        assert file in ("tokenizer_config.json", "generation_config.json")
        assert odd == "surrogate"


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_index_is_one_line(sharded, odd):
    (sharded / INDEX).write_bytes(ODD[odd])
    assert INDEX in refusal(sharded)


@pytest.mark.parametrize("odd", ["deep", "a list", "no UTF-8", "half"])
def test_an_odd_reward_model_is_one_line(classifier, odd):
    for file in ("config.json", "tokenizer.json"):
        kept = (classifier / file).read_bytes()
        (classifier / file).write_bytes(ODD[odd])
        with pytest.raises(StudioError) as caught:
            load_classifier(str(classifier))
        assert "\n" not in str(caught.value)
        (classifier / file).write_bytes(kept)


def test_a_key_that_stands_twice_is_refused(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.rstrip().removesuffix("}") + ', "vocab_size": 7}')
    assert "vocab_size" in refusal(folder)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("generation_config.json", {"eos_token_id": "x"}),
        ("generation_config.json", {"eos_token_id": {"a": 1}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": 1}}),
        ("tokenizer_config.json", {"model_max_length": "long"}),
        ("tokenizer_config.json", {"eos_token": ["a"]}),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}),
        ("tokenizer.json", {"model": {"type": "Unigram", "vocab": [], "unk_id": 9}}),
        ("tokenizer.json", {"added_tokens": [{"id": "x"}]}),
        ("tokenizer.json", {"added_tokens": None}),
        ("config.json", {"pad_token_id": 10**6}),
        ("config.json", {"eos_token_id": "x"}),
        ("config.json", {"rope_parameters": 3}),
        ("config.json", {"layer_types": ["x"]}),
        ("config.json", {"architectures": 3}),
        ("config.json", {"id2label": {"a": 1}}),
    ],
    ids=str,
)
def test_values_of_a_wrong_kind_are_one_line(folder, file, values):
    change_json(folder / file, **values)
    one_line(load, folder)
    one_line(lambda f: load_reader(ModelConfig(name=str(f))), folder)
