"""Settings of a model folder: no code, no absurd size, no odd JSON harms the one who loads it."""

from __future__ import annotations

import time

import pytest
import torch
from crafted import (
    INDEX,
    ODD,
    change_json,
    load,
    one_line,
    refusal,
)

from grpo_core.config import ModelConfig
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.models import check_model, load_classifier, load_reader

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
        ("tokenizer_config.json", {"gguf_file": "/etc/passwd"}),
        ("tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "vocab": "../vocab.json"}),
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
    begun = time.process_time()
    with pytest.raises(InvalidConfig) as caught:
        load(folder, init=init)
    assert time.process_time() - begun < 2
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


def test_cached_files_of_a_container_count_as_memory_for_weights(tmp_path, monkeypatch):
    from grpo_core.models import device

    (tmp_path / "memory.max").write_text(str(100 << 20))
    (tmp_path / "memory.current").write_text(str(95 << 20))
    stat = f"anon {25 << 20}\ninactive_file {10 << 20}\nactive_file {60 << 20}\n"
    (tmp_path / "memory.stat").write_text(stat)
    monkeypatch.setattr(device, "CGROUP", tmp_path)
    assert device.host_memory() == (100 << 20, 15 << 20)
    assert device.host_memory(drops_caches=True) == (100 << 20, 75 << 20)


def test_weights_larger_than_the_free_memory_are_refused_unread(folder, monkeypatch):
    from grpo_core.models import load as loading

    model = load(folder).model
    needed = 4 * sum(p.numel() for p in model.parameters())
    needed += sum(b.numel() * b.element_size() for b in model.buffers())
    monkeypatch.setattr(loading, "host_memory", lambda drops_caches=False: (needed, needed))
    load(folder)
    monkeypatch.setattr(loading, "host_memory", lambda drops_caches=False: (needed, needed - 1))
    monkeypatch.setattr(loading, "with_weights", lambda *a, **k: pytest.fail("it was read"))
    assert "its weights alone need" in refusal(folder)
