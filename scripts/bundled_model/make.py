"""Makes the bundled model from random weights, in under 20 minutes on one core.

    python -m scripts.bundled_model.make [--out DIR] [--seed 0]

A Qwen3-shaped causal language model of 0.8 M parameters with a byte-level tokenizer, in plain
Hugging Face folder format. With `--measure` it makes nothing and prints the table of
docs/bundled_model.md for the folder.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from grpo_core.models import BUNDLED
from grpo_core.tasks import TASKS, train_prompts
from scripts.bundled_model.texts import RESULT, RESULT_END, completion

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CALL_TAGS = ("<tool>", "</tool>", RESULT, RESULT_END)
END, PAD = "<|end|>", "<|pad|>"

# BATCH: texts of the tasks without tools; those of products come on top.
STEPS, BATCH, MICRO_BATCH, LEARNING_RATE = 2000, 128, 32, 3e-3
TASK_SHARES = {"sums": 0.4, "arithmetic": 0.2, "sort": 0.2, "countdown": 0.2, "products": 0.24}
# To reason well the model must practise often; to reason rarely it must see it rarely. So practice
# comes first, habit last.
PRACTICE_FRAC, PRACTICE_REASONED, HABIT_REASONED = 0.7, 0.6, 0.32


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes without merges, so every text can be encoded and decoded.

    The tags are ordinary single tokens, so decoding keeps them.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (END, PAD)]
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in CALL_TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=1024,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    """Ids of the end and the pad token; there is no token at the beginning."""
    ids = tokenizer.get_vocab()
    return {"eos_token_id": ids[END], "pad_token_id": ids[PAD], "bos_token_id": None}


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    ids = special_ids(tokenizer)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            intermediate_size=384,
            max_position_embeddings=1024,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
            dtype="float32",
            eos_token_id=ids["eos_token_id"],
            pad_token_id=ids["pad_token_id"],
            bos_token_id=ids["bos_token_id"],
        )
    )
    # Sample from the whole distribution, because that is what training assumes.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **ids
    )
    return model


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, steps: int
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The texts of each step in micro-batches of similar length: (ids, labels), each (B, T).

    Padding is on the right; labels are -100 on prompt, tool results and padding. No held-out prompt
    is used.
    """
    rng = random.Random(f"bundled/{seed}")
    ids = tokenizer.get_vocab()
    for step in range(steps):
        reasoned_frac = PRACTICE_REASONED if step < PRACTICE_FRAC * steps else HABIT_REASONED
        rows = []
        for name, share in TASK_SHARES.items():
            for prompt in train_prompts(TASKS[name], seed, step, round(share * BATCH)):
                start = tokenizer.encode(prompt.text)
                rest = [*tokenizer.encode(completion(prompt, rng, reasoned_frac)), ids[END]]
                labels = _without_results(rest, ids[RESULT], ids[RESULT_END])
                rows.append((start + rest, [-100] * len(start) + labels))
        # Completions without reasoning are short; padded to the longest they would cost double.
        rows.sort(key=lambda row: len(row[0]))
        yield [
            _padded(rows[i : i + MICRO_BATCH], ids[PAD]) for i in range(0, len(rows), MICRO_BATCH)
        ]


def _without_results(tokens: list[int], first: int, last: int) -> list[int]:
    """The labels of a completion: -100 where the calculator writes, from `first` to `last`."""
    labels, is_result = [], False
    for token in tokens:
        is_result = is_result or token == first
        labels.append(-100 if is_result else token)
        is_result = is_result and token != last
    return labels


def _padded(rows: list[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    length = max(len(ids) for ids, _ in rows)
    return (
        torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in rows]),
        torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in rows]),
    )


def train(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, steps: int
) -> None:
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(
            (step + 1) / 100, 0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2
        ),
    )
    start, recent = time.perf_counter(), []
    model.train()
    for step, micro_batches in enumerate(batches(tokenizer, seed, steps), 1):
        num_tokens = sum((labels != -100).sum() for _, labels in micro_batches)
        total = 0.0
        for ids, labels in micro_batches:
            # No attention mask is needed: padding is on the right, and attention is causal.
            logits = model(input_ids=ids).logits[:, :-1]  # (B, T-1, V)
            targets = labels[:, 1:].flatten()
            total_loss = functional.cross_entropy(
                logits.flatten(0, 1), targets, ignore_index=-100, reduction="sum"
            )
            loss = total_loss / num_tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        recent.append(total)
        if step % 100 == 0 or step == steps:
            mean, seconds = sum(recent) / len(recent), time.perf_counter() - start
            print(
                f"step {step:5d}/{steps}   loss {mean:.4f} nats/token   {seconds:6.0f} s",
                flush=True,
            )
            recent = []
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=BUNDLED, help="folder to write, or to measure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--measure",
        action="store_true",
        help="only print what the model in --out knows",
    )
    args = parser.parse_args()
    # The shipped weights were made with one thread: sums in another order round differently.
    # At this size one thread is hardly slower than two.
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    if not args.measure:
        tokenizer = make_tokenizer()
        model = make_model(tokenizer)
        print(f"{model.num_parameters():,} parameters", flush=True)
        train(model, tokenizer, args.seed, args.steps)
        tokenizer.save_pretrained(args.out)
        model.save_pretrained(args.out)
    else:
        from scripts.bundled_model.measure import print_table

        print_table(args.out, args.seed)


if __name__ == "__main__":
    main()
