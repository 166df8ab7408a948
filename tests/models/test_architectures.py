"""Small random models of nine families train whole and with adapters, from a KL of 0.

Two families have a chat template.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from grpo_core.config import ModelConfig, nest, parse
from grpo_core.errors import InvalidConfig
from grpo_core.models import load_policy
from grpo_core.models.lora import adapter_layers, add_adapters, merge_adapters
from grpo_core.rollout import SamplingParams, sample_groups
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import train
from grpo_core.types import ModelLoaded, StepCompleted
from scripts.bundled_model.make import make_tokenizer

CHAT = (
    "{% for m in messages %}<|end|>{{ m.role }}: {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|end|>assistant: {% endif %}"
)
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
FAMILIES = {
    "Llama": SMALL,
    "Qwen2": SMALL,
    "Qwen3": {**SMALL, "head_dim": 16},
    "Gemma": {**SMALL, "head_dim": 16},
    "Mistral": {**SMALL, "sliding_window": None},
    "Phi": SMALL,
    "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, "n_inner": 48},
    "Qwen2Moe": {
        **SMALL,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
    "Gemma2": {**SMALL, "head_dim": 16, "sliding_window": 16},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root, tokenizer, out = tmp_path_factory.mktemp("families"), make_tokenizer(), {}
    for name, sizes in FAMILIES.items():
        config = getattr(transformers, f"{name}Config")(
            vocab_size=len(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.eos_token_id,
            **sizes,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(config)
        model.save_pretrained(root / name)
        tokenizer.chat_template = CHAT if name in ("Qwen2", "Gemma") else None
        tokenizer.save_pretrained(root / name)
        out[name] = root / name
    return out


def run(folder: Path, **settings):
    events = []
    config = parse(
        nest(
            {
                "model.name": str(folder),
                "task.heldout_size": 0,
                "train.steps": 3,
                "train.prompts_per_step": 2,
                "train.group_size": 4,
                "train.max_new_tokens": 6,
                "train.warmup_steps": 0,
                "train.checkpoint_every": 0,
                "train.learning_rate": 1e-3,
                **settings,
            }
        )
    )
    train(config, events.append, RunControl())
    return [e.metrics for e in events if isinstance(e, StepCompleted)], next(
        e.env for e in events if isinstance(e, ModelLoaded)
    )


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_whole_and_with_adapters_from_a_kl_of_zero(folders, family, rank):
    steps, _ = run(folders[family], **{"model.lora_rank": rank})
    assert len(steps) == 3
    # Packed and separate rows differ by float32 rounding. A fault of dropout, adapters or dtype is
    # thousands of times larger.
    assert abs(steps[0].kl) < 1e-6
    assert steps[0].ratio_mean == pytest.approx(1.0, abs=1e-4)
    assert all(s.grad_norm > 0 for s in steps)
    assert steps[2].kl > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_reward_rises_on_a_trivial_rubric_within_20_steps(folders, family):
    # The reward is the share of digits. A tenth of the bundled alphabet are digits, so six random
    # tokens earn about 0.4 to 0.5.
    rubric = [
        {
            "name": "digits",
            "check": "python",
            "weight": 1,
            "params": {
                "code": "def score(c, p, a, t):\n    return sum(x.isdigit() for x in c) / 6\n"
            },
        }
    ]
    steps, _ = run(
        folders[family],
        **{
            "train.steps": 20,
            "train.prompts_per_step": 4,
            "train.group_size": 8,
            "train.learning_rate": 1e-2,
            "rubric.name": "custom",
            "rubric.criteria": rubric,
            "algorithm.kl_coef": 0.0,
        },
    )
    rewards = [s.reward_mean for s in steps]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.1, rewards


@pytest.mark.slow
def test_adapters_learn_too():
    # Not with random weights: under a frozen output head of tiny norm no hidden state changes the
    # logits much. The bundled model reasons in a third of its answers.
    rubric = [{"name": "thinks", "check": "reasoning", "weight": 1}]
    steps, _ = run(
        "bundled",
        **{
            "train.steps": 15,
            "train.prompts_per_step": 4,
            "train.group_size": 8,
            "train.max_new_tokens": 24,
            "train.learning_rate": 3e-3,
            "model.lora_rank": 8,
            "rubric.name": "custom",
            "rubric.criteria": rubric,
            "algorithm.kl_coef": 0.0,
        },
    )
    rewards = [s.reward_mean for s in steps]
    assert abs(steps[0].kl) < 1e-6
    assert sum(rewards[-4:]) / 4 > sum(rewards[:3]) / 3 + 0.3, rewards


@pytest.mark.parametrize(
    ("name", "sizes", "adapted"),
    # Falcon multiplies in its own way; Phi-MoE's router returns more than a product.
    [
        ("Falcon", {}, "self_attention.query_key_value"),
        ("Phimoe", {"num_local_experts": 2, "num_experts_per_tok": 2}, "self_attn.q_proj"),
    ],
)
def test_every_layer_that_is_a_product_gets_adapters(name, sizes, adapted):
    config = getattr(transformers, f"{name}Config")(vocab_size=40, **SMALL, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    add_adapters(model, ModelConfig(lora_rank=4), 0)
    names = [n for n, m in model.named_modules() if hasattr(m, "lora_A")]
    assert sum(n.endswith(adapted) for n in names) == 2  # layers
    assert not [n for n in names if "router" in n]


def test_a_model_that_can_have_no_adapters_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 8}
    config = transformers.MambaConfig(vocab_size=len(tokenizer), **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InvalidConfig, match=r"model\.lora_rank = 4: mamba can have no adapters"):
        load_policy(ModelConfig(name=str(tmp_path), lora_rank=4), 0, torch.device("cpu"))


def test_a_model_without_a_cache_that_rows_can_share_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}
    config = transformers.RwkvConfig(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **sizes
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(ModelConfig(name=str(tmp_path)), 0, torch.device("cpu"))
    with pytest.raises(InvalidConfig, match=r"model\.name = .*keeps no cache"):
        sample_groups(policy, [[5, 6]], SamplingParams(2, 3, 1.0), torch.Generator())


def test_adapters_are_found_train_alone_and_keep_the_reference(folders):
    policy = load_policy(
        ModelConfig(name=str(folders["GPT2"]), lora_rank=4), 0, torch.device("cpu")
    )
    assert (
        len(adapter_layers(policy.model)) == 2 * 4
    )  # c_attn, attn c_proj, c_fc, mlp c_proj of two layers; never the output head
    assert all(("lora_" in n) == p.requires_grad for n, p in policy.model.named_parameters())
    ids = torch.tensor([[5, 6, 7]])
    plain = load_policy(ModelConfig(name=str(folders["GPT2"])), 0, torch.device("cpu"))
    before = plain.model(ids).logits
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(0))
    moved = policy.model(ids).logits
    assert not torch.allclose(moved, before)
    with policy.frozen_copy().off() as reference:
        assert torch.equal(reference(ids).logits, before)
    assert torch.equal(policy.model(ids).logits, moved)
    assert torch.allclose(merge_adapters(policy.model)(ids).logits, moved, atol=1e-5)
    assert not adapter_layers(policy.model)
    assert {n for n, _ in policy.model.named_parameters()} == {
        n for n, _ in plain.model.named_parameters()
    }


def test_adapters_need_no_second_copy_of_the_weights(folders):
    _, env = run(folders["Llama"], **{"model.lora_rank": 2, "train.steps": 1})
    assert 0 < env["trained_parameters"] < env["parameters"] / 4


def test_a_chat_templates_own_end_of_turn_ends_a_completion(folders, tmp_path):
    import shutil

    folder = Path(shutil.copytree(folders["Llama"], tmp_path / "chat"))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|pad|>{% endfor %}"
    )
    policy = load_policy(ModelConfig(name=str(folder)), 0, torch.device("cpu"))
    plain = load_policy(ModelConfig(name=str(folders["Llama"])), 0, torch.device("cpu"))
    assert policy.end_ids - plain.end_ids == {policy.tokenizer.convert_tokens_to_ids("<|pad|>")}
    found = report_of(folder)
    assert found.end_tokens["chat template"] == ["<|pad|>"]
    assert not found.ends_agree


# ---- "Check model" -------------------------------------------------------------------------------


def report_of(folder: Path, **settings):
    from grpo_core.preflight.model_report import report

    return report(parse(nest({"model.name": str(folder), **settings})))


def test_check_model_counts_parameters_without_loading_and_adapters_as_they_will_be(folders):
    for family in ("Llama", "GPT2"):
        whole, adapted = (
            report_of(folders[family]),
            report_of(folders[family], **{"model.lora_rank": 4}),
        )
        policy = load_policy(
            ModelConfig(name=str(folders[family]), lora_rank=4), 0, torch.device("cpu")
        )
        assert adapted.trained_parameters == sum(
            p.numel() for p in policy.model.parameters() if p.requires_grad
        )
        assert whole.parameters == policy.num_parameters - adapted.trained_parameters
        assert whole.bytes_by_part["weights"] == 4 * whole.parameters  # float32 on a CPU
        assert (whole.bytes_by_part["reference"], adapted.bytes_by_part["reference"]) == (
            4 * whole.parameters,
            0,
        )
        assert whole.problems == adapted.problems == ()


def test_check_model_reports_problems(folders):
    assert "context holds 256 tokens" in str(
        report_of(folders["Llama"], **{"train.max_new_tokens": 300}).problems
    )
    huge = report_of(
        folders["Llama"],
        **{"train.prompts_per_step": 4096, "train.group_size": 1024, "train.max_new_tokens": 32000},
    )
    assert "not enough free memory" in str(
        huge.problems
    )  # 4 million rows of 32,000 tokens: a cache of petabytes


def test_check_model_compares_the_end_tokens_of_config_and_template(folders):
    plain = report_of(folders["Llama"])
    assert plain.end_tokens == {
        "generation config": ["<|end|>"],
        "tokenizer": ["<|end|>"],
        "chat template": [],
    }
    assert plain.ends_agree
    assert not plain.chat_template
    assert report_of(folders["Qwen2"]).chat_template


def test_check_model_samples_an_answer_and_its_card_shows_it_as_text(folders):
    from grpo_core.preflight.service import PreflightService
    from ui.tabs.model import model_card

    found, sample = PreflightService().check_model(
        parse(nest({"model.name": str(folders["Llama"]), "train.max_new_tokens": 8}))
    )
    assert found.parameters > 1000
    card = model_card(found, sample + "<img src=x>")
    assert "&lt;img src=x&gt;" in card
    assert "LlamaForCausalLM" in card


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Mistral", "Qwen2", "GPT2"])
def test_sampling_uses_trained_adapters(folders, family):
    # The fused decoder concatenates weights of layers, so with adapters it must call the layers.
    policy = load_policy(
        ModelConfig(name=str(folders[family]), lora_rank=4), 0, torch.device("cpu")
    )
    prompt = [5, 6, 7, 8]

    def greedy() -> list[int]:
        return sample_groups(
            policy, [prompt], SamplingParams(1, 12, 1e-4), torch.Generator().manual_seed(0)
        )[0].completion_ids

    before = greedy()
    with torch.no_grad():
        for n, p in policy.model.named_parameters():
            if "lora_B" in n:
                p.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    ids = list(prompt)
    with torch.inference_mode():
        while len(ids) < 16 and ids[-1] not in policy.end_ids:
            ids.append(int(policy.model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert greedy() == ids[4:]
    assert greedy() != before


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {},
            "it needs LoRA: 4-bit weights cannot be trained themselves. Set model.lora_rank to 16",
        ),
        ({"lora_rank": 4}, "it needs CUDA, and this machine trains on cpu. Set it to 16"),
    ],
)
def test_a_base_in_four_bits_is_refused_where_it_cannot_be(folders, settings, says, monkeypatch):
    from grpo_core.config.devices import VARIABLE

    monkeypatch.setenv(VARIABLE, "cpu")
    with pytest.raises(InvalidConfig) as refused:
        load_policy(ModelConfig(name=str(folders["Llama"]), base_bits="4", **settings), 0)
    assert f"model.base_bits = '4': {says}" in str(refused.value)


def test_a_base_in_four_bits_on_cuda_wants_bitsandbytes(folders):
    import importlib.util

    from grpo_core.models.load import check_base

    config = ModelConfig(name=str(folders["Llama"]), base_bits="4", lora_rank=4)
    if importlib.util.find_spec("bitsandbytes"):
        check_base(config, torch.device("cuda"))
    else:
        with pytest.raises(InvalidConfig, match="bitsandbytes"):
            check_base(config, torch.device("cuda"))
