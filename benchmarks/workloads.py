"""What both sides of the speed benchmark do, and the random-weight models for it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True)
class Workload:
    """One size of run. A shape is a Qwen3 configuration for random weights.

    Without a shape: the bundled model on its own task, completions as long as it makes them.
    """

    help: str
    steps: int
    warm: int = 0  # first steps that are not counted
    prompts: int = 8
    group_size: int = 8
    prompt_tokens: int = 0
    new_tokens: int = 48
    kl_coef: float = 0.0
    shape: dict[str, int] = field(default_factory=dict)
    dtype: str = "float32"
    cuda: bool = False
    # Both sides compute layers twice; ours uses micro-batches of 512 tokens.
    save_memory: bool = False
    record: bool = False  # ours: into a store, with token records
    ragged: bool = False  # lengths differ from text to text
    peer: str | None = None  # what is compared, if not TRL


HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
SMALL = {
    **HEADS,
    "hidden_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "intermediate_size": 1024,
    "vocab_size": 32_000,
}
WIDE = {
    **HEADS,
    "hidden_size": 256,
    "num_hidden_layers": 12,
    "intermediate_size": 768,
    "vocab_size": 151_936,
}
GROWING = {
    **HEADS,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "intermediate_size": 768,
    "vocab_size": 8_000,
}
HALF_BILLION = {
    **HEADS,
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "intermediate_size": 4864,
    "vocab_size": 151_936,
}
SMOLLM2 = {
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "intermediate_size": 1536,
    "vocab_size": 49_152,
}

TINY = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "vocab_size": 512,
}

_W1 = Workload("default model and task, kl_coef 0", steps=60)
_W2 = Workload(
    "25 M parameters, 4 prompts of 256 tokens, 8 × 64 new tokens",
    steps=2,
    warm=1,
    prompts=4,
    prompt_tokens=256,
    new_tokens=64,
    shape=SMALL,
)
_W3 = Workload(
    "vocabulary of 151,936, 2 prompts, 8 × 128 new tokens",
    steps=2,
    warm=1,
    prompts=2,
    prompt_tokens=64,
    new_tokens=128,
    shape=WIDE,
)
_W4 = Workload(
    "shape of Qwen2.5-0.5B, bfloat16, 8 prompts of 512 tokens, 16 × 512 new tokens",
    steps=4,
    warm=2,
    group_size=16,
    prompt_tokens=512,
    new_tokens=512,
    shape=HALF_BILLION,
    dtype="bfloat16",
    cuda=True,
)
_GROWTH = Workload(
    "one size grows",
    steps=3,
    warm=1,
    prompts=2,
    prompt_tokens=256,
    new_tokens=64,
    shape=GROWING,
)
WORKLOADS: dict[str, Workload] = {
    "W1-kl0": _W1,
    "W1-kl.02": replace(_W1, help="default model and task, kl_coef .02", kl_coef=0.02),
    "W2": _W2,
    "W3": _W3,
    "W3-small": replace(
        _W3,
        help="W3, layers computed twice on both sides, and ours in parts of 512 tokens",
        save_memory=True,
    ),
    "W4": _W4,
    "W4-ragged": replace(
        _W4,
        help="W4 with prompts of 64 to 512 tokens and texts of 256 tokens on average",
        ragged=True,
    ),
    "135M": Workload(
        "shape of SmolLM2-135M, float32, 4 prompts of 30 tokens, 8 × 40 new tokens",
        steps=3,
        warm=1,
        prompts=4,
        prompt_tokens=30,
        new_tokens=40,
        shape=SMOLLM2,
    ),
    "tiny": Workload(
        "a test of this benchmark, no measurement",
        steps=2,
        warm=1,
        prompts=2,
        group_size=2,
        prompt_tokens=8,
        new_tokens=4,
        shape=TINY,
    ),
    "recording-W1": replace(
        _W1,
        help="W1, into a store with token records, beside the same without",
        record=True,
        peer="unrecorded",
    ),
    "recording-W2": replace(
        _W2,
        help="W2, into a store with token records, beside the same without",
        steps=4,
        record=True,
        peer="unrecorded",
    ),
}
for _n in (2, 4, 8, 16, 32, 64):
    WORKLOADS[f"growth-G{_n}"] = replace(_GROWTH, help=f"group size {_n}", group_size=_n)
for _n in (64, 256, 1024, 2048):
    WORKLOADS[f"growth-L{_n}"] = replace(
        _GROWTH, help=f"prompts of {_n} tokens, group size 16", prompt_tokens=_n, group_size=16
    )
for _n in (32, 128, 512, 1024):
    WORKLOADS[f"growth-T{_n}"] = replace(_GROWTH, help=f"{_n} new tokens", new_tokens=_n)


def make_folder(work: Workload, folder: Path) -> None:
    """A random-weight model of the workload's shape, a tokenizer, and a file of prompts."""
    _save_tokenizer(work, folder)
    _save_model(work, folder)
    rng = random.Random(0)
    lines = []
    for _ in range(work.prompts * work.steps + 64):
        shortest = work.prompt_tokens // 8 if work.ragged else work.prompt_tokens
        length = rng.randint(shortest, work.prompt_tokens)
        words = (f"w{rng.randrange(3, work.shape['vocab_size'])}" for _ in range(length))
        lines.append(json.dumps({"prompt": " ".join(words), "answer": "w3"}) + "\n")
    (folder / "prompts.jsonl").write_text("".join(lines), "utf-8")


def _save_tokenizer(work: Workload, folder: Path) -> None:
    """One token a word, as many words as the vocabulary has."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"<unknown>": 0, "<end>": 1, "<pad>": 2}
    words = special | {f"w{i}": i for i in range(3, work.shape["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>"
    ).save_pretrained(folder)


def _save_model(work: Workload, folder: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config.from_dict(
        {
            **work.shape,
            "max_position_embeddings": work.prompt_tokens + work.new_tokens + 64,
            "tie_word_embeddings": True,
            "eos_token_id": 1,
            "pad_token_id": 2,
            "bos_token_id": None,
        }
    )
    model = Qwen3ForCausalLM(config)
    # torch's wrapper hides the types of `to` from pyright.
    model.to(getattr(torch, work.dtype))  # pyright: ignore[reportArgumentType]
    if work.ragged:  # any of 1/256 of the tokens ends a text: 256 tokens are the mean length
        model.generation_config.eos_token_id = [1, *range(3, 3 + work.shape["vocab_size"] // 256)]
    model.save_pretrained(folder)
