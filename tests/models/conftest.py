"""Model folders to damage: whole ones, with weights in one file or several, and a reward model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from crafted import WEIGHTS


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


@pytest.fixture
def sharded(folder) -> Path:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder
