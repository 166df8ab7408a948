"""What a run made: the policy after any saved step, ready to answer, and as a folder that plain transformers loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

import grpo_core
from grpo_core.analysis.text import format_number
from grpo_core.config import RunConfig, parse
from grpo_core.errors import StudioError
from grpo_core.exporting.recipes import as_command
from grpo_core.models import Policy, load_policy
from grpo_core.models.lora import lora_config, merge_adapters
from grpo_core.models.model_cache import ModelCache
from grpo_core.rollout import sample_groups
from grpo_core.rubric import build_rubric
from grpo_core.runs.resume import checkpoint_of
from grpo_core.store import CheckpointRow, RunRow, Store
from grpo_core.tasks import heldout_prompts, load_task
from grpo_core.training.checkpoint import WEIGHTS, put_weights
from grpo_core.types import Completion, Prompt, Rollout


@dataclass(frozen=True, slots=True)
class Side:
    """Answers of the policy after `step` steps (0 = before training)."""

    step: int
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class Played:
    """One prompt, answered at several steps, scored by the run's rubric."""

    prompt: Prompt
    as_read: str
    sides: tuple[Side, ...]


def put(policy: Policy, row: CheckpointRow) -> None:
    put_weights(policy.model, load_file(row.path / WEIGHTS))


def some_prompt(config: RunConfig, number: int) -> Prompt:
    """One of the run's held-out prompts, round and round; of a run without any, one of training."""
    task = load_task(config.task)
    prompts = heldout_prompts(task, config.task.heldout_size) if config.task.heldout_size else []
    if not prompts:
        from grpo_core.tasks import train_prompts

        prompts = train_prompts(task, config.train.seed, 1, 8)
    return prompts[number % len(prompts)]


def play(
    store: Store,
    models: ModelCache,
    run_id: str,
    prompt: Prompt,
    steps: Sequence[int],
    count: int,
    temperature: float,
    max_new_tokens: int | None = None,
) -> Played:
    """`count` answers of each step from the same random numbers; a temperature of 0 is greedy. Raises StudioError."""
    run = store.run(run_id)
    config = parse(run.config)
    task, rubric = load_task(config.task), build_rubric(config.rubric)
    sides, as_read = [], ""
    for step in steps:
        row = checkpoint_of(store, run, step) if step else None
        with models.use(
            config.model,
            config.train.seed,
            of=row and (run_id, step, row.sha256),
            change=None if row is None else lambda p, row=row: put(p, row),
        ) as policy:
            ids = policy.encode(prompt, task.instruction)
            room = config.train.max_new_tokens if max_new_tokens is None else max_new_tokens
            if policy.context is not None and len(ids) + room > policy.context:
                raise StudioError(
                    f"The prompt has {len(ids):,} tokens; with {room:,} new ones it does not fit the context of {policy.context:,}. Shorten it."
                )
            as_read = policy.tokenizer.decode(ids)
            sampled = sample_groups(
                policy,
                [ids],
                count,
                room,
                temperature,
                torch.Generator(policy.device).manual_seed(config.train.seed),
            )
            completions = [
                Completion(policy.decode(s.token_ids), s.finish_reason, len(s.token_ids))
                for s in sampled
            ]
        scored = rubric.score_all(completions, [prompt] * count)
        sides.append(
            Side(
                step,
                tuple(
                    Rollout(c, scores, reward, 0.0)
                    for c, scores, reward in zip(
                        completions, scored.scores, scored.rewards, strict=True
                    )
                ),
            )
        )
    return Played(prompt, as_read, tuple(sides))


# ---- a folder for plain transformers -----------------------------------------------------------------------------------------


def export_model(
    store: Store, run_id: str, folder: Path, step: int | None = None, adapter_only: bool = False
) -> Path:
    """Weights in safetensors, tokenizer, generation config and a model card; adapters merged, or alone in peft's format. Raises StudioError."""
    run = store.run(run_id)
    config, row = parse(run.config), checkpoint_of(store, run, step)
    if folder.exists() and any(folder.iterdir()):
        raise StudioError(f"the folder {str(folder)!r} is not empty. Name a new one.")
    # Adapters trained beside a 4-bit base are merged into the full one: merging into 4 bits would round them away.
    policy = load_policy(
        config.model.model_copy(update={"base_bits": "16"}), config.train.seed, torch.device("cpu")
    )
    put(policy, row)
    if adapter_only and not config.model.lora_rank:
        raise StudioError(
            "This run trained the whole model, so there is no adapter. Export the model."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if adapter_only:
            _save_adapter(policy, config, folder)
        else:
            merge_adapters(policy.model).save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        _generation_config(policy, config).save_pretrained(folder)
        (folder / "README.md").write_text(model_card(store, run, row.step, policy), "utf-8")
        (folder / "grpo_run.json").write_text(json.dumps(run.config, indent=2), "utf-8")
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise StudioError(
            f"the folder {str(folder)!r} cannot be written: {error.strerror or error}. Choose another."
        ) from None
    return folder


def _save_adapter(policy: Policy, config: RunConfig, folder: Path) -> None:
    weights = {
        f"base_model.model.{name.replace('.default', '')}": p.detach().contiguous()
        for name, p in policy.model.named_parameters()
        if p.requires_grad
    }
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    described = lora_config(config.model)
    described.base_model_name_or_path, described.inference_mode = config.model.name, True
    described.save_pretrained(folder)


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


def model_card(store: Store, run: RunRow, step: int, policy: Policy) -> str:
    """What was trained on what, with which rubric, what came of it, and how to do it again. Nothing that was not measured."""
    config = parse(run.config)
    steps, metrics = store.steps(run.id), store.metrics(run.id)
    stride = max(1, len(steps) // 10)
    curve = "".join(
        f"| {s['step']} | {format_number(s['reward_mean'])} | {format_number(s['kl'])} | {format_number(s['completion_tokens_mean'])} |\n"
        for s in steps[::stride]
        if s["step"] <= step
    )
    held = [
        (name, dict(metrics.get(name, [])))
        for name in sorted(metrics)
        if name.startswith(("heldout/", "second/")) and not name.endswith(("_low", "_high"))
    ]
    lows, highs = (
        {name: dict(metrics.get(name + end, [])) for name, _ in held} for end in ("_low", "_high")
    )

    def at(name: str, values: dict[int, float | None], when: int) -> str:
        interval = (
            f" ({format_number(lows[name][when])} to {format_number(highs[name][when])})"
            if when in lows[name]
            else ""
        )
        return f"{format_number(values.get(when))}{interval}"

    measured = sorted({s for _, values in held for s in values if s <= step})
    after = measured[-1] if measured and measured[-1] > 0 else None
    results = "".join(
        f"| `{name}` | {at(name, values, 0)} | {at(name, values, after) if after is not None else '–'} |\n"
        for name, values in held
    )
    rubric = "".join(
        f"| {c.name} | `{c.check}` | {c.weight:g} | `{json.dumps(c.params)}` |\n"
        for c in config.rubric.criteria
    )
    env = run.env or {}
    base = (
        f"base_model: {json.dumps(config.model.name)}\n"
        if "/" in config.model.name and not Path(config.model.name).exists()
        else ""
    )
    what = f"LoRA of rank {config.model.lora_rank}" if config.model.lora_rank else "all weights"
    source = (
        f"`{config.task.path}`" if config.task.path else f"the built-in task `{config.task.name}`"
    )
    return f"""---
library_name: transformers
tags: [grpo, reinforcement-learning]
{base}---

# {_line(run.name)}

`{_line(config.model.name)}` after {step} of {config.train.steps} steps of GRPO ({_line(config.algorithm.preset)}; {what} trained), by GRPO Studio {grpo_core.__version__}.

## Prompts

From {_line(source)}; {config.task.heldout_size} prompts were held out and never trained on.

## Rubric

| criterion | check | weight | parameters |
|---|---|---|---|
{rubric}
## Measured on held-out prompts

| | before | after step {after if after is not None else step} |
|---|---|---|
{results}
95 % intervals in brackets.

## Training

| step | reward | KL to the start | tokens |
|---|---|---|---|
{curve}
## Again

```sh
{as_command(config).rstrip()}
```

Versions: {", ".join(f"{k} {env[k]}" for k in ("python", "torch", "transformers") if k in env)}. Device: {_line(str(env.get("device", "not recorded")))}. Precision: {env.get("dtype", "not recorded")}.
"""


def _line(text: str) -> str:
    """Foreign text on one line, without what Markdown would obey."""
    return "".join(c if c.isprintable() and c not in "<>[]|\\" else " " for c in text)
