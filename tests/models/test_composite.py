"""Vision-language models: what is read of their configuration is the language model's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from grpo_core.config import ModelConfig, nest, parse
from grpo_core.errors import InvalidConfig
from grpo_core.models import load_policy, load_reader
from grpo_core.models.device import cache_bytes
from grpo_core.preflight.model_report import report
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import StepCompleted
from scripts.bundled_model.make import make_tokenizer

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
FAMILIES = {
    "Gemma3": ({"sliding_window": 16}, VISION, {"mm_tokens_per_image": 4}),
    "Qwen3_5": (
        {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
        },
        {
            "hidden_size": 16,
            "intermediate_size": 24,
            "depth": 1,
            "num_heads": 2,
            "out_hidden_size": 32,
        },
        {},
    ),
    "Llama4": (
        {
            "intermediate_size_mlp": 48,
            "num_local_experts": 2,
            "attention_chunk_size": 16,
            "layer_types": ["chunked_attention", "full_attention"],
        },
        {**VISION, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
        {},
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root, tokenizer, out = tmp_path_factory.mktemp("composite"), make_tokenizer(), {}
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for name, (text, vision, more) in FAMILIES.items():
        config = getattr(transformers, f"{name}Config")(
            text_config={"vocab_size": len(tokenizer), **TEXT, **text, **ids},
            vision_config=vision,
            **more,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = transformers.AutoModelForImageTextToText.from_config(config)
        assert getattr(model.config, "max_position_embeddings", None) is None  # composite
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        out[name] = root / name
    return out


def run_config(folder: Path, **settings):
    return parse(
        nest(
            {
                "model.name": str(folder),
                "task.heldout_size": 0,
                "train.steps": 2,
                "train.prompts_per_step": 2,
                "train.group_size": 4,
                "train.max_new_tokens": 6,
                "train.checkpoint_every": 0,
                **settings,
            }
        )
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_context_and_memory_are_those_of_the_language_model(folders, family):
    config = ModelConfig(name=str(folders[family]))
    policy = load_policy(config, 0, torch.device("cpu"))
    assert policy.context == load_reader(config).context == 128
    # keys and values of 2 layers with 1 head of 16, in 4 bytes
    assert cache_bytes(policy.model.config, 4) == 2 * 2 * 1 * 16 * 4
    found = report(run_config(folders[family]))
    assert found.context == 128
    assert found.parameters == policy.num_parameters
    # 8 rows of 6 new and 128 prompt tokens
    assert found.bytes_by_part["cache while sampling"] == 8 * 134 * 256
    # float32: for each token and layer 4 bytes x (8h + 3A + 2K + 4I), see layer_bytes. Its part of
    # the masks: 9 bytes x the 128 + 4 x 6 tokens of a packed row, see attention_bytes
    layers = 4 * (8 * 32 + 3 * 32 + 2 * 16 + 4 * 48) * 2
    assert found.bytes_by_part["activations"] == 8 * 134 * (layers + 9 * 152)
    problems = report(run_config(folders[family], **{"train.max_new_tokens": 128})).problems
    assert "the context holds 128 tokens" in str(problems)


@pytest.mark.parametrize(
    ("family", "rank"), [("Gemma3", 0), ("Gemma3", 4), ("Llama4", 0), ("Llama4", 4)]
)
def test_a_composite_model_trains_from_a_kl_of_zero(folders, family, rank):
    events = []
    train(run_config(folders[family], **{"model.lora_rank": rank}), events.append, RunControl())
    steps = [e.metrics for e in events if isinstance(e, StepCompleted)]
    assert len(steps) == 2
    assert abs(steps[0].kl) < 1e-6
    assert steps[0].ratio_mean == pytest.approx(1.0, abs=1e-4)


def test_prompts_longer_than_its_context_are_refused(folders, tmp_path):
    file = tmp_path / "p.jsonl"
    rows = [{"prompt": f"{i} " + "long " * (40 if i == 7 else 1), "answer": "1"} for i in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = run_config(folders["Gemma3"], **{"task.name": "file", "task.path": str(file)})
    with pytest.raises(InvalidConfig, match=r"1 of 30 prompts leave no room .* context of 128"):
        train(config, lambda event: None, RunControl())
