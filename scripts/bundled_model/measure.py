"""What a model knows of the built-in tasks: the table of docs/bundled_model.md.

Completions are sampled as a run samples them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from grpo_core.tasks import TASKS, Task, extract_answer, heldout_prompts

NUM_PROMPTS, NUM_SAMPLES, MAX_NEW_TOKENS = 200, 8, 48


@dataclass(frozen=True)
class Sampled:
    """One sampled completion of a held-out prompt."""

    prompt: int
    text: str
    num_tokens: int
    right: bool

    @property
    def reasoned(self) -> bool:
        return "<think>" in self.text


def sample_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], num_samples: int
) -> list[tuple[str, int]]:
    """`num_samples` completions of each text in turn, at temperature 1.

    Each is (text, number of tokens with the end token).
    """
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    with torch.no_grad():
        # nn.Module's stub makes every unknown attribute a Tensor.
        out = model.generate(  # pyright: ignore[reportCallIssue]
            **inputs, max_new_tokens=MAX_NEW_TOKENS, num_return_sequences=num_samples
        )
    rows = out[:, inputs["input_ids"].shape[1] :]  # (P * num_samples, T)
    num_tokens = (rows != tokenizer.pad_token_id).sum(1).tolist()
    decoded = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return list(zip(decoded, num_tokens, strict=True))


def sample_heldout(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    num_prompts: int = NUM_PROMPTS,
    num_samples: int = NUM_SAMPLES,
) -> list[Sampled]:
    prompts = heldout_prompts(task, num_prompts)
    texts = sample_texts(model, tokenizer, [p.text for p in prompts], num_samples)
    sampled = []
    for i, (text, num_tokens) in enumerate(texts):
        index, answer = i // num_samples, extract_answer(text)
        right = answer is not None and task.grade(answer, prompts[index]) == 1.0
        sampled.append(Sampled(index, text, num_tokens, right))
    return sampled


def accuracy_interval(sampled: list[Sampled]) -> tuple[float, float]:
    """Sampled accuracy and the half-width of its 95 % interval.

        1.96 · sd over prompts of a prompt's share of right samples / √P

    The prompts are independent draws; the samples of one prompt are not.
    """
    by_prompt: dict[int, list[bool]] = {}
    for s in sampled:
        by_prompt.setdefault(s.prompt, []).append(s.right)
    shares = torch.tensor([sum(rights) / len(rights) for rights in by_prompt.values()])  # (P,)
    return shares.mean().item(), 1.96 * shares.std().item() / math.sqrt(len(shares))


def table_row(name: str, sampled: list[Sampled]) -> str:
    num_prompts = len({s.prompt for s in sampled})
    solved = len({s.prompt for s in sampled if s.right})
    reasoned = [s for s in sampled if s.reasoned]
    direct = [s for s in sampled if not s.reasoned]
    untidy = sum(not is_tidy(s.text) for s in sampled)
    accuracy, half = accuracy_interval(sampled)
    return (
        f"| {name} | {num_prompts} | {accuracy:.3f} ± {half:.3f} | {solved / num_prompts:.3f} "
        f"| {len(reasoned) / len(sampled):.2f} | {sum(s.right for s in direct)} of {len(direct)} "
        f"| {sum(s.right for s in reasoned)} of {len(reasoned)} | {untidy / len(sampled):.3f} "
        f"| {sum(s.num_tokens for s in sampled) / len(sampled):.1f} |"
    )


def is_tidy(text: str) -> bool:
    """Whether the text has one answer, and nothing outside the tags."""
    return (
        text.count("<answer>") == 1
        and text.startswith(("<think>", "<answer>"))
        and text.endswith("</answer>")
    )


def print_table(folder: Path, seed: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(seed)
    print(
        f"| task | prompts | accuracy | right among {NUM_SAMPLES} | reasons | direct right "
        "| reasoned right | imperfect format | tokens |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, task in TASKS.items():
        if task.environment:  # see docs/measurements.md: only a run has its tools
            continue
        print(table_row(name, sample_heldout(model, tokenizer, task)), flush=True)
