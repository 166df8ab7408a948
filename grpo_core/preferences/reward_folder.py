"""A trained reward model as a plain folder: weights, tokenizer, model card, and all numbers."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpo_core
from grpo_core.analysis.text import format_number
from grpo_core.config.places import is_hub_name
from grpo_core.errors import StudioError
from grpo_core.preferences.judged_pairs import Split
from grpo_core.preferences.reward_settings import RewardSettings

if TYPE_CHECKING:
    from grpo_core.preferences.reward_training import Trained

NUMBERS = "reward_model.json"


def check_out(folder: Path) -> None:
    """Raise StudioError if a model cannot be written there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StudioError(f"--out {str(folder)!r} exists and is not empty. Name a new folder.")
    if not _existing(folder).is_dir() or not os.access(_existing(folder), os.W_OK):
        raise StudioError(f"--out {str(folder)!r} cannot be written. Name another folder.")


def _existing(path: Path) -> Path:
    """The path, or the first folder above it that exists."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def save(trained: Trained, split: Split, settings: RewardSettings, folder: Path) -> dict[str, Any]:
    """Write the folder, whole or not at all, and return the numbers in NUMBERS.

    The criterion `reward_model` and plain transformers load it as it is. Raises StudioError.
    """
    numbers = numbers_of(trained, split, settings)
    aside = folder.with_name(f"{folder.name}.part")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        trained.model.save_pretrained(aside)
        trained.tokenizer.save_pretrained(aside)
        (aside / NUMBERS).write_text(json.dumps(numbers, indent=2), "utf-8")
        (aside / "README.md").write_text(model_card(numbers), "utf-8")
        if folder.exists():
            folder.rmdir()  # check_out found it empty
        aside.rename(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise StudioError(
            f"--out {str(folder)!r} cannot be written: {error.strerror or error}. "
            "Name another folder."
        ) from None
    return numbers


def numbers_of(trained: Trained, split: Split, settings: RewardSettings) -> dict[str, Any]:
    """All that was set and measured, as plain data."""
    return {
        "settings": {
            **settings.model_dump(),
            "lora_rank": trained.lora_rank,
            "learning_rate": trained.learning_rate,
        },
        "pairs": {
            "train": trained.train.num_pairs,
            "train_ties": trained.train.num_ties,
            "train_prompts": len({p.asked for p in split.train}),
            "heldout": trained.heldout.num_pairs,
            "heldout_ties": trained.heldout.num_ties,
            "heldout_prompts": len({p.asked for p in split.heldout}),
        },
        "heldout": asdict(trained.heldout),
        "train": asdict(trained.train),
        "curve": [asdict(point) for point in trained.curve],
        "was_stopped": trained.was_stopped,
        "parameters": trained.num_parameters,
        "seconds": round(trained.seconds, 2),
        "device": trained.device,
        "versions": {
            "grpo_studio": grpo_core.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
        },
    }


def model_card(numbers: Mapping[str, Any]) -> str:
    """README.md of the folder. States only what was measured."""
    settings, pairs, heldout = numbers["settings"], numbers["pairs"], numbers["heldout"]
    base = settings["base"]
    is_hub_model = "/" in base and is_hub_name(base)
    base_line = f"base_model: {json.dumps(base)}\n" if is_hub_model else ""
    rank = settings["lora_rank"]
    trained = f"adapters of rank {rank}, merged into the weights" if rank else "all weights"
    stopped = " It was stopped before its last step." if numbers["was_stopped"] else ""
    versions = ", ".join(f"{k} {v}" for k, v in numbers["versions"].items())
    bins = "".join(
        f"| {b['low']:.0%} to {b['high']:.0%} | {b['num_pairs']} | {_percent(b['predicted'])} "
        f"| {_percent(b['right'])} |\n"
        for b in heldout["bins"]
    )
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, preferences]
{base_line}---

# Reward model

It scores an answer to a prompt: the higher, the likelier a person prefers it. Trained from
`{_line(base)}` ({trained}) on {pairs["train"]:,} decided pairs and {pairs["train_ties"]:,} ties of
{pairs["train_prompts"]:,} prompts, by the loss of Bradley and Terry.{stopped}

The difference d of two scores is a chance of 1/(1 + exp(-d)) that the first answer is preferred.

## Measured on held-out pairs

{heldout["num_pairs"]:,} decided pairs of {pairs["heldout_prompts"]:,} prompts that were not
learnt from.

| | |
|---|---|
| pair accuracy | {_with_interval(heldout)} |
| pair accuracy on the learnt pairs | {_percent(numbers["train"]["accuracy"])} |
| loss | {format_number(heldout["loss"])} |
| calibration error | {_percent(heldout["calibration_error"])} |
| share of the score that length alone explains | {_percent(heldout["length_share"])} |
| people prefer the longer answer in | {_percent(heldout["longer_preferred"])} |
| the model prefers the longer answer in | {_percent(heldout["longer_scored"])} |

| predicted chance | pairs | mean prediction | preferred |
|---|---|---|---|
{bins}
## Use

In GRPO Studio, as a criterion of a rubric: check `reward_model` with this folder as `model`.

## Training

Seed {settings["seed"]}, {settings["epochs"]} epochs of {settings["batch_pairs"]} pairs a step,
learning rate {settings["learning_rate"]:g}, {numbers["seconds"]:.0f} s.
Device: {_line(numbers["device"])}. Versions: {versions}. All numbers are in `{NUMBERS}`.
"""


def _with_interval(heldout: Mapping[str, Any]) -> str:
    if heldout["accuracy"] is None:
        return "none"
    return (
        f"{_percent(heldout['accuracy'])} (95 % interval {_percent(heldout['low'])} to "
        f"{_percent(heldout['high'])})"
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _line(text: str) -> str:
    """Text on one line, without characters that Markdown interprets."""
    return "".join(c if c.isprintable() and c not in "<>[]|\\`" else " " for c in text)
