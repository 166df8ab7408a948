from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from grpo_core.config import ModelConfig, RunConfig
from grpo_core.errors import InvalidConfig
from grpo_core.models import Policy, Vocabulary, check_model, describe_device, load_policy
from grpo_core.rollout import SamplingParams, sample_groups
from grpo_core.rubric import build_rubric
from grpo_core.tasks import TASKS
from grpo_core.types import Completion, Prompt
from tests.models.templates import CHATML, THINKING, chat_tokenizer

CPU = torch.device("cpu")


def refusal(name: str | Path, **options: object) -> str:
    with pytest.raises(InvalidConfig) as caught:
        check_model(ModelConfig(name=str(name), **options))
    [problem] = caught.value.problems
    assert problem.field == "model.name"
    assert "\n" not in str(problem)
    return str(problem)


@pytest.fixture
def copy(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_folder_loads_its_weights_and_a_frozen_copy_equals_it(tiny_model):
    policy = load_policy(ModelConfig(name=str(tiny_model)), seed=0, device=CPU)
    copy = policy.frozen_copy()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(policy.model(ids).logits, copy(ids).logits)
    assert not any(p.requires_grad for p in copy.parameters())
    assert policy.model.dtype == torch.float32
    assert not policy.model.training  # dropout off: KL at step 0 is 0


def test_random_initial_weights_are_drawn_from_the_seed_alone(tiny_model):
    def weights(seed: int) -> torch.Tensor:
        return next(
            load_policy(
                ModelConfig(name=str(tiny_model), init="random"), seed=seed, device=CPU
            ).model.parameters()
        )

    before = torch.get_rng_state()
    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert not torch.equal(
        weights(1), next(load_policy(ModelConfig(name=str(tiny_model)), 1, CPU).model.parameters())
    )
    assert torch.equal(before, torch.get_rng_state())


def test_end_ids_come_from_generation_config_and_chat_template(copy):
    path = copy / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [7, 9]}))
    policy = load_policy(ModelConfig(name=str(copy)), seed=0, device=CPU)
    assert policy.end_ids >= {7, 9, policy.tokenizer.eos_token_id}


def test_a_prompt_uses_the_chat_template_when_there_is_one(tiny_model, copy):
    prompt = Prompt("p", "Q: 1+1+1=?", "3", "sums")
    bare = load_policy(ModelConfig(name=str(tiny_model)), 0, CPU)
    assert bare.decode(bare.encode(prompt, TASKS["sums"].instruction)) == "Q: 1+1+1=?"
    (copy / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    chat = load_policy(ModelConfig(name=str(copy)), 0, CPU)
    assert chat.decode(chat.encode(prompt, "Add.")) == "[user]Add.\n\nQ: 1+1+1=?[assistant]"


def test_decoding_drops_the_end_token_and_nothing_else(tiny_model):
    policy = load_policy(ModelConfig(name=str(tiny_model)), 0, CPU)
    text = "<think>a</think><answer>5</answer> <img src=x onerror=alert(1)> ü 漢"
    assert (
        policy.decode([*policy.tokenizer(text)["input_ids"], policy.tokenizer.eos_token_id]) == text
    )


@pytest.mark.parametrize(
    "name",
    ["/no/such/folder", "./nowhere", "..", "a/b/c", "no such model!", "\0", "x" * 500, "../../etc"],
)
def test_a_name_neither_folder_nor_hub_id_is_refused_in_one_line(name):
    assert "model.name" in refusal(name)


def test_a_hub_model_that_cannot_be_reached_is_refused_on_one_line():
    assert "configuration cannot be loaded" in refusal("nobody/no-such-model")


def test_a_folder_with_only_pickled_weights_is_refused(copy):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "pickle" in refusal(copy)
    assert "pytorch_model.bin" in refusal(copy)
    check_model(ModelConfig(name=str(copy), init="random"))  # weights are not read then


def test_a_folder_with_missing_files_is_refused_by_their_names(copy, tmp_path):
    (copy / "model.safetensors").unlink()
    assert "no *.safetensors" in refusal(copy)
    assert "no config.json" in refusal(tmp_path)
    file = tmp_path / "file"
    file.write_text("x")
    assert "a file" in refusal(file)


def test_a_model_that_wants_to_run_its_own_code_is_refused(copy):
    path = copy / "config.json"
    path.write_text(
        json.dumps(
            {**json.loads(path.read_text()), "auto_map": {"AutoModelForCausalLM": "evil.Model"}}
        )
    )
    assert "code from its own folder" in refusal(copy)


@pytest.mark.parametrize(
    "config", ["", "[]", "{", "{}", '{"model_type": "nope"}', '{"model_type": "t5"}']
)
def test_a_broken_or_foreign_configuration_is_refused_on_one_line(copy, config):
    (copy / "config.json").write_text(config)
    refusal(copy)


def test_damaged_weights_are_refused_on_one_line_when_they_are_read(copy):
    (copy / "model.safetensors").write_bytes(b"\xff" * 1000)
    with pytest.raises(InvalidConfig, match=r"model\.name.*cannot be loaded"):
        load_policy(ModelConfig(name=str(copy)), 0, CPU)


def test_the_device_is_described_for_people():
    assert describe_device(CPU) == f"CPU, {os.cpu_count()} cores"


# ---- what a completion's text is -----------------------------------------------------------------

TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
WRITTEN = "57+11=68</think><answer>142</answer>"


def reads(tiny_model, template: str | None, special: list[str]) -> Policy:
    """The tiny model with a tokenizer that has this template and these special tokens."""
    tokenizer = chat_tokenizer(template, special, eos="<|im_end|>", bos="<|begin|>")
    policy = load_policy(ModelConfig(name=str(tiny_model)), 0, CPU)
    policy.model.resize_token_embeddings(len(tokenizer))
    end = frozenset({tokenizer.eos_token_id})
    return dataclasses.replace(policy, tokenizer=tokenizer, end_ids=end)


def scores(text: str) -> dict[str, float | None]:
    rubric = build_rubric(RunConfig().rubric)
    prompt = Prompt("p", "57+11+74", "142", "sums")
    return rubric.score(Completion(text, "stop", 9), prompt)[0]


@pytest.mark.parametrize("special", [TAGS, []], ids=["special tags", "plain tags"])
def test_special_tokens_are_text_but_end_pad_and_begin(tiny_model, special):
    policy = reads(tiny_model, None, [*special, "<|tool_call|>", "<unused1>"])
    text = f"<think>{WRITTEN}<|tool_call|> <unused1> ü ."
    ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    begin, pad = policy.tokenizer.bos_token_id, policy.tokenizer.pad_token_id
    [end] = policy.end_ids
    assert policy.decode([begin, pad, *ids, pad, end, pad]) == text
    vocabulary = Vocabulary(policy.tokenizer)
    assert b"".join(vocabulary.piece(t) for t in ids).decode() == text
    tagged = policy.tokenizer(f"<think>{WRITTEN}", add_special_tokens=False)["input_ids"]
    paid = scores(policy.decode(tagged))
    assert (paid["accuracy"], paid["format"]) == (1.0, 1.0)


def test_added_tokens_outside_the_byte_alphabet_keep_their_names(tiny_model):
    policy = reads(tiny_model, None, ["<｜tool▁calls▁begin｜>"])
    policy.tokenizer.add_tokens(["<｜tool▁sep｜>"])
    text = "a<｜tool▁calls▁begin｜>b<｜tool▁sep｜> c"
    ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    vocabulary = Vocabulary(policy.tokenizer)
    assert policy.decode(ids) == text == b"".join(map(vocabulary.piece, ids)).decode()


def test_a_tokenizer_that_cleans_up_spaces_changes_no_completion(tiny_model):
    policy = reads(tiny_model, None, [])
    policy.tokenizer.clean_up_tokenization_spaces = True
    # Without this, newer versions of transformers ignore the setting.
    policy.tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    text = "a , b . c ' s do n't"
    assert policy.decode(policy.tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(
    ("template", "text", "opening"),
    [
        (THINKING, "57+11+74", "<think>\n"),
        (THINKING.replace("<think>\\n", "<answer>"), "57+11+74", "<answer>"),
        (CHATML, "57+11+74", ""),
        (CHATML, "Write <think>", ""),
        (None, "57+11+74\nAssistant: <think>", "<think>"),
        (None, "57+11+74", ""),
    ],
)
def test_a_block_that_the_prompt_opened_begins_the_completion(tiny_model, template, text, opening):
    policy = reads(tiny_model, template, TAGS)
    ids = policy.encode(Prompt("p", text, "142", "sums"), "")
    params = SamplingParams(2, 5, 1.0)
    rollouts = sample_groups(policy, [ids], params, torch.Generator().manual_seed(0))
    for rollout in rollouts:
        assert rollout.completion.text == opening + policy.decode(rollout.completion_ids)
        assert rollout.completion.num_tokens == len(rollout.completion_ids) <= 5
        assert rollout.prompt_ids == ids


def test_reasoning_inside_a_block_of_the_template_is_paid(tiny_model):
    policy = reads(tiny_model, THINKING, [])
    ids = policy.encode(Prompt("p", "57+11+74", "142", "sums"), "")
    assert scores(WRITTEN)["format"] == 0.5
    paid = scores(policy.opening(ids) + WRITTEN)
    assert (paid["accuracy"], paid["format"]) == (1.0, 1.0)
