"""A run's trained policy as a folder for transformers, with a model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers

import grpo_core
from grpo_core.analysis.text import format_number
from grpo_core.config import RunConfig, parse
from grpo_core.config.places import is_hub_name
from grpo_core.config.sections.task import MAX_DEFAULT_HELDOUT
from grpo_core.errors import StudioError
from grpo_core.exporting.answers import load_checkpoint
from grpo_core.exporting.recipes import as_command
from grpo_core.models import Policy, load_policy
from grpo_core.models.lora import merge_adapters, save_adapter
from grpo_core.runs.resume import checkpoint_of
from grpo_core.store import RunRow, Store

CURVE_ROWS = 10  # about so many rows in the model card's training table


# ---- a folder for plain transformers ------------------------------------------------------------


def export_model(
    store: Store, run_id: str, folder: Path, step: int | None = None, adapter_only: bool = False
) -> Path:
    """Write weights in safetensors, tokenizer, generation config and a model card to a folder.

    Merges adapters into the model, or with `adapter_only` writes them alone in peft's format.
    step: the last saved one by default. Raises StudioError.
    """
    run = store.run(run_id)
    config, row = parse(run.config), checkpoint_of(store, run, step)
    if folder.exists() and any(folder.iterdir()):
        raise StudioError(f"the folder {str(folder)!r} is not empty. Name a new one.")
    # Adapters that were trained beside a 4-bit base are merged into the full base: merging into
    # 4 bits would round them away.
    full_base = config.model.model_copy(update={"base_bits": "16"})
    policy = load_policy(full_base, config.train.seed, torch.device("cpu"))
    load_checkpoint(policy, row)
    if adapter_only and not config.model.lora_rank:
        raise StudioError(
            "This run trained the whole model, so there is no adapter. Export the model."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if adapter_only:
            save_adapter(policy.model, config.model, folder)
        else:
            merge_adapters(policy.model)
            policy.model.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        _generation_config(policy, config).save_pretrained(folder)
        (folder / "README.md").write_text(model_card(store, run, row.step), "utf-8")
        (folder / "grpo_run.json").write_text(json.dumps(run.config, indent=2), "utf-8")
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StudioError(
            f"the folder {str(folder)!r} cannot be written: {error.strerror or error}. "
            "Choose another."
        ) from None
    return folder


def _generation_config(policy: Policy, config: RunConfig) -> transformers.GenerationConfig:
    return transformers.GenerationConfig(
        eos_token_id=sorted(policy.end_ids),
        pad_token_id=policy.pad_id,
        do_sample=True,
        temperature=config.train.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=config.train.max_new_tokens,
    )


# ---- the model card -----------------------------------------------------------------------------


def model_card(store: Store, run: RunRow, step: int) -> str:
    """README.md of an exported model: prompts, rubric, measurements, training, and the command.

    States only what was measured.
    """
    config, env = parse(run.config), run.env or {}
    after, results = _heldout_results(store, run.id, step)
    trained = f"LoRA of rank {config.model.lora_rank}" if config.model.lora_rank else "all weights"
    task = config.task
    source = f"`{task.path}`" if task.path else f"the built-in task `{task.name}`"
    heldout = task.heldout_size
    if heldout is None:
        heldout = f"up to {MAX_DEFAULT_HELDOUT}"
    is_hub_model = "/" in config.model.name and is_hub_name(config.model.name)
    base = f"base_model: {json.dumps(config.model.name)}\n" if is_hub_model else ""
    versions = [f"{k} {env[k]}" for k in ("python", "torch", "transformers") if k in env]
    title = (
        f"`{_line(config.model.name)}` after {step} of {config.train.steps} steps of GRPO "
        f"({_line(config.algorithm.preset)}; {trained} trained), "
        f"by GRPO Studio {grpo_core.__version__}."
    )
    machine = (
        f"Versions: {', '.join(versions)}. "
        f"Device: {_line(str(env.get('devices') or env.get('device', 'not recorded')))}. "
        f"Precision: {env.get('dtype', 'not recorded')}. {_line(str(env.get('repeats', '')))}"
    ).rstrip()
    return f"""---
library_name: transformers
tags: [grpo, reinforcement-learning]
{base}---

# {_line(run.name)}

{title}

## Prompts

From {_line(source)}; {heldout} prompts were held out and never trained on.

## Rubric

| criterion | check | weight | parameters |
|---|---|---|---|
{_rubric_rows(config)}
## Measured on held-out prompts

| | before | after step {step if after is None else after} |
|---|---|---|
{results}
95 % intervals in brackets.

## Training

| step | reward | KL to the start | tokens |
|---|---|---|---|
{_curve_rows(store, run.id, step)}
## Repeat the run

```sh
{as_command(config).rstrip()}
```

{machine}
"""


def _rubric_rows(config: RunConfig) -> str:
    return "".join(
        f"| {c.name} | `{c.check}` | {c.weight:g} | `{json.dumps(c.params)}` |\n"
        for c in config.rubric.criteria
    )


def _curve_rows(store: Store, run_id: str, last_step: int) -> str:
    steps = store.steps(run_id)
    rows = []
    for s in steps[:: max(1, len(steps) // CURVE_ROWS)]:
        if s["step"] <= last_step:
            names = ("reward_mean", "kl", "completion_tokens_mean")
            numbers = " | ".join(format_number(s[name]) for name in names)
            rows.append(f"| {s['step']} | {numbers} |\n")
    return "".join(rows)


def _heldout_results(store: Store, run_id: str, last_step: int) -> tuple[int | None, str]:
    """The last evaluated step (None if only step 0 is) and one table row per metric."""
    by_step = {name: dict(points) for name, points in store.metrics(run_id).items()}
    names = [
        name
        for name in sorted(by_step)
        if name.startswith(("heldout/", "second/")) and not name.endswith(("_low", "_high"))
    ]
    evaluated = [step for name in names for step in by_step[name] if step <= last_step]
    after = max(evaluated, default=0) or None
    rows = []
    for name in names:
        last = "–" if after is None else _with_interval(by_step, name, after)
        rows.append(f"| `{name}` | {_with_interval(by_step, name, 0)} | {last} |\n")
    return after, "".join(rows)


def _with_interval(by_step: Mapping[str, Mapping[int, float | None]], name: str, step: int) -> str:
    """A metric's value at a step, with its interval if it has one: 0.35 (0.31 to 0.39)."""
    value = format_number(by_step[name].get(step))
    lows, highs = by_step.get(f"{name}_low", {}), by_step.get(f"{name}_high", {})
    if step not in lows:
        return value
    return f"{value} ({format_number(lows[step])} to {format_number(highs[step])})"


def _line(text: str) -> str:
    """Text of unknown origin on one line, without characters that Markdown interprets."""
    return "".join(c if c.isprintable() and c not in "<>[]|\\" else " " for c in text)
