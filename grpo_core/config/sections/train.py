"""Section `train`: steps, batch sizes, sampling, optimiser, checkpoints and evaluation."""

from __future__ import annotations

from typing import Literal

from grpo_core.config.sections.fields import Section, setting


class TrainConfig(Section):
    """The training loop of a run."""

    steps: int = setting(
        80,
        "Steps",
        "Optimiser steps.",
        unit="steps",
        ge=1,
        le=1_000_000,
        hint="Use 80 for the bundled model.",
    )
    prompts_per_step: int = setting(
        8,
        "Prompts per step",
        "Different prompts in each step. Each prompt makes one group.",
        unit="prompts",
        ge=1,
        le=4096,
    )
    group_size: int = setting(
        8,
        "Group size",
        "Completions of each prompt. Each is compared with the others, so at least 2 are needed.",
        unit="completions",
        ge=2,
        le=1024,
        hint="Use 8; 2 is the least that can be compared.",
    )
    workers: int = setting(
        1,
        "Workers",
        "Processes that share each step, one on each device. The result is the same.",
        unit="workers",
        ge=1,
        le=4096,
        hint="Use 1, or as many as there are devices.",
    )
    max_new_tokens: int = setting(
        48,
        "Max new tokens",
        "A completion is cut at this length.",
        unit="tokens",
        ge=1,
        le=32_768,
        hint="48 fits the built-in tasks.",
    )
    learning_rate: float | None = setting(
        None,
        "Learning rate",
        "Empty: chosen by model size, 1e-4 below 50 M parameters, else 1e-6; "
        "ten times that for LoRA.",
        gt=0,
        le=1,
        hint="Leave it empty, or try 1e-4 for a tiny and 1e-6 for a large model.",
    )
    seed: int = setting(
        0,
        "Seed",
        "The same seed, settings and machine give the same run: bit for bit on a CPU, "
        "statistically on an NVIDIA card.",
        ge=0,
        le=2**31 - 1,
    )
    deterministic: bool = setting(
        False,
        "Deterministic",
        "On an NVIDIA card the same seed then gives the same run bit for bit. Steps take longer, "
        "attention's gradient most, and an operation that cannot repeat its result ends the run. "
        "A CPU's results repeat without it.",
    )
    temperature: float = setting(
        1.0,
        "Temperature",
        "Sampling temperature. Log-probabilities use it too. There is no top-p or top-k.",
        gt=0,
        le=10,
        hint="1 is usual. 0 would make all siblings equal, so every group would tie.",
    )
    warmup_steps: int = setting(
        5,
        "Warm-up",
        "Steps over which the learning rate rises from 0.",
        unit="steps",
        ge=0,
        le=1_000_000,
    )
    max_grad_norm: float = setting(
        1.0, "Gradient clip", "A larger gradient is scaled down to this norm.", gt=0, le=1e6
    )
    adam_beta1: float = setting(
        0.9, "AdamW β1", "Decay of AdamW's mean gradient.", ge=0, lt=1, hint="0.9 is usual."
    )
    adam_beta2: float = setting(
        0.99,
        "AdamW β2",
        "Decay of AdamW's mean squared gradient. Lower adapts faster to a changing gradient.",
        ge=0,
        lt=1,
        hint="0.99 suits runs of a few hundred steps; 0.999 is usual for long ones.",
    )
    micro_batch_tokens: int = setting(
        16_384,
        "Micro-batch",
        "Most tokens in one forward pass; on a CPU fewer are used automatically. "
        "This changes memory, never the result.",
        unit="tokens",
        ge=1,
        le=100_000_000,
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = setting(
        "auto",
        "Layers computed twice",
        "`on` keeps only the input of each layer and computes the rest again for the gradient: "
        "about a third more time, several times less memory for activations. "
        "`auto`: on when the estimate says that activations would not fit. "
        "This changes memory, never the result. "
        "The trust region's own passes keep all activations.",
    )
    checkpoint_every: int = setting(
        20,
        "Checkpoint every",
        "Steps between checkpoints, from which a run can resume or branch. 0: none is saved.",
        unit="steps",
        ge=0,
        le=1_000_000,
        hint="20 loses little; 0 saves the space of a few copies of model and optimiser.",
    )
    checkpoint_keep: int = setting(
        2,
        "Keep the last",
        "Number of latest checkpoints to keep, "
        "besides the checkpoint with the best held-out accuracy.",
        unit="checkpoints",
        ge=1,
        le=1000,
    )
    checkpoint_keep_every: int = setting(
        0,
        "Keep every",
        "A checkpoint whose step is a multiple of this is never deleted. 0: none.",
        unit="steps",
        ge=0,
        le=1_000_000,
    )
    eval_every: int = setting(
        20,
        "Evaluate every",
        "Steps between held-out evaluations. 0: only before and after training.",
        unit="steps",
        ge=0,
        le=1_000_000,
    )
    eval_samples: int = setting(
        1,
        "Tries per held-out prompt",
        "Completions of each held-out prompt. "
        "More than one also measures pass@k, for k = 2, 4, … up to this number.",
        unit="completions",
        ge=1,
        le=256,
        hint="1 is usual; 8 shows pass@8 at eight times the cost.",
    )
    eval_mode: Literal["sampled", "greedy"] = setting(
        "sampled",
        "Held-out answers",
        "`sampled` at the training temperature, or `greedy`: always the likeliest token.",
    )
    eval_records: int = setting(
        16,
        "Held-out groups kept",
        "Held-out prompts whose answers each evaluation keeps, to be looked at. "
        "They are not used in training. 0: none are kept.",
        unit="prompts",
        ge=0,
        le=10_000,
        hint="The same prompts each time, so one prompt can be followed through training.",
    )
    token_records: int = setting(
        1,
        "Token records every",
        "Steps between records of every token's log-probabilities and entropy, "
        "at most 24 bytes per token. 0: none are kept.",
        unit="steps",
        ge=0,
        le=1_000_000,
        hint="1 keeps all, 0 none.",
    )
    after_records: int = setting(
        2,
        "Measured after the update",
        "Groups of each recorded step whose log-probabilities are measured once more after its "
        "update, those with advantages first. 0: none.",
        unit="groups",
        ge=0,
        le=10_000,
        hint="Shows what the update did, at the cost of a forward pass over these groups.",
    )


def default_learning_rate(num_parameters: int, lora: bool) -> float:
    """1e-4 below 50 M parameters and 1e-6 above, ten times that for adapters."""
    return (1e-4 if num_parameters < 50e6 else 1e-6) * (10 if lora else 1)
