"""Tokens that a tokenizer knows and a model does not, and logits that are not finite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from crafted import change_json, load

from grpo_core.config import ModelConfig, nest, parse
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.models import load_classifier, load_reader
from grpo_core.rollout import SamplingParams, sample_groups
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import StepCompleted

ROWS = 266  # of the tiny model's embedding table


def add_tokens(folder: Path, **tokens) -> None:
    """Add tokens beyond the model's table, as many do who forget to resize it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == ROWS
    tokenizer.add_special_tokens(tokens)
    tokenizer.save_pretrained(folder)


def sample(policy, prompts, temperature=1.0, count=3):
    rng = torch.Generator().manual_seed(0)
    return sample_groups(policy, prompts, SamplingParams(count, 5, temperature), rng)


@pytest.mark.parametrize("family", ["Gemma", "GPT2"])  # all text is unknown, or nothing
def test_a_folder_without_a_tokenizer_is_refused(family, tmp_path):
    getattr(transformers, f"{family}Config")().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InvalidConfig, match="its folder has no vocabulary of a tokenizer"):
        load_reader(ModelConfig(name=str(tmp_path)))


@pytest.mark.parametrize("pad_id", [ROWS, 10**6])
def test_a_pad_token_beyond_the_table_is_replaced(folder, tiny_model, pad_id):
    add_tokens(folder, pad_token="[PAD]")
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    assert data["added_tokens"][-1]["id"] == ROWS
    if pad_id > ROWS:
        data["added_tokens"][-1]["id"] = pad_id
        file.write_text(json.dumps(data))
    policy, honest = load(folder), load(tiny_model)
    assert policy.pad_id in policy.end_ids
    prompts = [[5, 6, 7], [8]]
    ids = [r.completion_ids for r in sample(policy, prompts)]
    assert ids == [r.completion_ids for r in sample(honest, prompts)]


@pytest.mark.slow
def test_a_run_with_such_a_pad_token_trains(folder, tiny_settings):
    add_tokens(folder, pad_token="[PAD]")
    events = []
    settings = {**tiny_settings, "model.name": str(folder)}
    train(parse(nest(settings)), events.append, RunControl())
    steps = [e.metrics for e in events if isinstance(e, StepCompleted)]
    assert len(steps) == 3
    assert abs(steps[0].kl) < 1e-6


@pytest.mark.parametrize("pad_id", [ROWS, 10**6])
def test_a_pad_id_of_the_configuration_beyond_the_table_is_one_line(folder, pad_id):
    change_json(folder / "config.json", pad_token_id=pad_id)
    with pytest.raises(InvalidConfig, match="within num_embeddings") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_an_end_token_beyond_the_table_is_refused(folder):
    (folder / "generation_config.json").unlink()
    add_tokens(folder, eos_token="[END]")
    change_json(folder / "config.json", eos_token_id=ROWS)
    with pytest.raises(InvalidConfig, match=r"end token has the id 266.* 266 rows"):
        load(folder)


def test_one_end_token_within_the_table_is_enough(folder):
    change_json(folder / "generation_config.json", eos_token_id=[7, ROWS, -1, 10**9])
    ends = load(folder).end_ids
    assert 7 in ends
    assert all(0 <= i < ROWS for i in ends)


def test_a_begin_token_beyond_the_table_is_refused(folder):
    add_tokens(folder, bos_token="[BEGIN]")
    piece = {"SpecialToken": {"id": "[BEGIN]", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"[BEGIN]": {"id": "[BEGIN]", "ids": [ROWS], "tokens": ["[BEGIN]"]}},
    }
    change_json(folder / "tokenizer.json", post_processor=processor)
    with pytest.raises(InvalidConfig, match=r"writes '\[BEGIN\]' with the id 266") as caught:
        load(folder)
    assert caught.value.problems[0].field == "model.name"


def test_a_template_that_writes_an_unknown_token_is_refused(folder):
    add_tokens(folder, additional_special_tokens=["<|user|>"])
    policy = load(folder)
    ids = policy.tokenizer("<|user|>2+2")["input_ids"]
    with pytest.raises(InvalidConfig, match=r"writes '<\|user\|>' with the id 266"):
        sample(policy, [[5], ids])


def test_a_reward_model_pads_with_a_token_that_it_has(folder, tmp_path):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from grpo_core.rubric import CHECKS, Notes
    from grpo_core.types import Completion, Prompt

    add_tokens(folder, pad_token="[PAD]")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(
        vocab_size=ROWS, num_attention_heads=2, num_labels=1, max_position_embeddings=64, **sizes
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    model, tokenizer = load_classifier(str(folder))
    assert model.config.pad_token_id == tokenizer.pad_token_id < ROWS
    assert tokenizer.model_max_length == 64
    check = CHECKS["reward_model"]
    completions = [Completion("x" * n, "stop", n) for n in (1, 30, 500)]
    prompts = [Prompt("p", "2+2?", "4", "file")] * 3
    scores = check.scores(completions, prompts, check.params(model=str(folder)), Notes())
    assert all(0 < s < 1 for s in scores)


@pytest.mark.parametrize("context", [0, -5])
def test_a_context_of_nothing_is_no_context(folder, context):
    change_json(folder / "config.json", max_position_embeddings=context)
    assert load(folder).context is None


# ---- logits that are not finite ----------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_sampling_from_spoilt_weights_names_the_first(tiny_model, value, temperature):
    policy = load(tiny_model)
    with torch.no_grad():
        policy.model.model.layers[1].mlp.up_proj.weight[3, 5] = value
        policy.model.lm_head.weight[0] = value
    with pytest.raises(StudioError, match=r"weight .* is model\.layers\.1\.mlp\.up_proj\.weight"):
        sample(policy, [[5, 6, 7]], temperature)


def test_an_overflow_of_finite_weights_is_told_apart(tiny_model):
    policy = load(tiny_model)
    with torch.no_grad():
        policy.model.lm_head.weight.fill_(3e38)
        policy.model.model.norm.weight.fill_(3e38)
    with pytest.raises(StudioError, match="All weights are finite, so the model overflows"):
        sample(policy, [[5, 6, 7]])
