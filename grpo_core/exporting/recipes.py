"""A run as text for other tools: one command of GRPO Studio, or a script for TRL."""

from __future__ import annotations

import json
import shlex
from typing import Any

from grpo_core.config import RunConfig, flatten
from grpo_core.errors import StudioError
from grpo_core.exporting.trl_environment import (
    ARGUMENTS,
    CHECK,
    COMPLETION,
    COMPLETION_OF_TURNS,
    trl_environment,
)
from grpo_core.records.rubric import CHECK as RECORDED
from grpo_core.rubric import resolve_rubric
from grpo_core.tasks import environment_named

# Options of GRPO Studio -> TRL 1.16. TRL has no counterpart of other options.
LOSS_TYPES = {"token_mean": "dapo", "sequence_mean": "grpo", "constant": "dr_grpo"}
SCALES = {"group_std": "group", "group_mean": "none", "batch_std": "batch"}


def as_command(config: RunConfig) -> str:
    """The command line that starts this run again: every setting that is not the default.

    Raises StudioError for a run of another trainer.
    """
    _refuse_recorded(config)
    default, parts = flatten(RunConfig()), ["python -m grpo_core train"]
    for name, value in flatten(config).items():
        if value != default[name]:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            parts.append(f"--set {shlex.quote(f'{name}={text}')}")
    return " \\\n  ".join(parts) + "\n"


def as_trl_script(config: RunConfig) -> str:
    """A script that trains this run with TRL's GRPOTrainer: same prompts, rubric and settings.

    Settings without a counterpart in TRL are left out, and named in a comment at the top. Raises
    StudioError for a run of another trainer.
    """
    _refuse_recorded(config)
    environment = trl_environment(config)
    own = "**row_of(p), " if environment else ""
    return f'''"""A run of GRPO Studio as a script for TRL 1.16.

It needs grpo_core, where its prompts and rubric come from.
"""
{_missing_comment(config)}
import json
from functools import cache

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from grpo_core.config import parse
from grpo_core.models import load_policy
from grpo_core.models.policy import asked
from grpo_core.rubric import build_rubric
from grpo_core.tasks import load_task, train_prompts
from grpo_core.training.trainer import learning_rate
from grpo_core.types import Completion

{_peft_config(config)}{environment}
CONFIG = parse(json.loads({json.dumps(_settings(config))}))
model_config, t = CONFIG.model.model_copy(update={{"lora_rank": 0}}), CONFIG.train
policy = load_policy(model_config, t.seed)
task = load_task(CONFIG.task)
rubric = build_rubric(CONFIG.rubric)
prompts = [
    p
    for step in range(1, t.steps + 1)
    for p in train_prompts(task, t.seed, step, t.prompts_per_step)
]


@cache  # each criterion asks for each completion
def opening(i):
    return policy.opening(policy.encode(prompts[i], task.instruction))


{COMPLETION_OF_TURNS if environment else COMPLETION}

def criterion(name):
    def score(completion_ids, row, **more):
        scored = rubric.score_all(completed(completion_ids, row, more), [prompts[i] for i in row])
        return [scores[name] for scores in scored.scores]

    score.__name__ = name
    return score


if __name__ == "__main__":{CHECK if environment else ""}
    trainer = GRPOTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        peft_config=PEFT,{ARGUMENTS if environment else ""}
        reward_funcs=[criterion(name) for name in rubric.weights],
        train_dataset=Dataset.from_list(
            [
                {{{own}"prompt": asked(policy.tokenizer, p, task.instruction), "row": i}}
                for i, p in enumerate(prompts)
            ]
        ),
        args=GRPOConfig(
            learning_rate=learning_rate(CONFIG, policy),
            reward_weights=list(rubric.weights.values()),
            bf16=policy.model.dtype.itemsize == 2,
            use_cpu=policy.device.type == "cpu",
            **{_trl_arguments(config)!r},
        ),
    )
    trainer.train()
'''


def _refuse_recorded(config: RunConfig) -> None:
    if any(c.check == RECORDED for c in config.rubric.criteria):
        raise StudioError(
            "The run was trained elsewhere: its reward functions and prompts are not here, so it "
            "cannot be started again. Copy its settings and choose a task and a rubric."
        )


def _settings(config: RunConfig) -> str:
    """Every setting as JSON, with the criteria of the rubric spelled out."""
    whole = config.model_copy(update={"rubric": resolve_rubric(config.rubric)})
    return json.dumps(whole.model_dump(mode="json"))


def _missing_comment(config: RunConfig) -> str:
    """The settings that TRL cannot express, as comment lines."""
    a, r = config.algorithm, config.rubric
    has_counterpart = {
        "algorithm.advantage": a.advantage in SCALES,
        "algorithm.objective": a.objective in ("clip", "cispo"),
        "algorithm.aggregation": a.aggregation in LOSS_TYPES,
        "algorithm.grouping": a.grouping == "prompt",
        "algorithm.kl_estimator": a.kl_estimator == "k3" or not a.kl_coef,
        "algorithm.kl_control": a.kl_control == "fixed",
        "algorithm.dynamic_sampling": not a.dynamic_sampling,
        "algorithm.entropy_coef": not a.entropy_coef,
        "algorithm.entropy_target": a.entropy_target is None,
        "train.workers": config.train.workers == 1,
        "rubric.scale": not r.scale,
        "rubric.gate": not r.gate,
        "rubric.clip_low": r.clip_low is None,
        "rubric.clip_high": r.clip_high is None,
        "task.environment": not environment_named(config.task) or bool(trl_environment(config)),
        "rollout.engine": config.rollout.engine == "own",
        "rollout.tool_seconds": not environment_named(config.task),
    }
    values = flatten(config)
    missing = [name for name, has in has_counterpart.items() if not has]
    if not missing:
        return "# Every setting of the run has a counterpart in TRL.\n"
    lines = "".join(f"#   {name} = {values[name]!r}\n" for name in missing)
    return f"# TRL has no counterpart of these settings; the script leaves them out:\n{lines}"


def _trl_arguments(config: RunConfig) -> dict[str, Any]:
    """Arguments of TRL's GRPOConfig."""
    t, a = config.train, config.algorithm
    is_cispo = a.objective == "cispo"
    arguments: dict[str, Any] = {
        "max_steps": t.steps,
        "seed": t.seed,
        "per_device_train_batch_size": t.prompts_per_step * t.group_size,
        "num_generations": t.group_size,
        "max_completion_length": t.max_new_tokens,
        "temperature": t.temperature,
        "top_k": 0,
        "top_p": 1.0,
        "warmup_steps": t.warmup_steps,
        "lr_scheduler_type": "constant_with_warmup",
        "max_grad_norm": t.max_grad_norm,
        "shuffle_dataset": False,
        "disable_dropout": True,
        "scale_rewards": SCALES.get(a.advantage, "group"),
        "loss_type": "cispo" if is_cispo else LOSS_TYPES.get(a.aggregation, "dapo"),
        "importance_sampling_level": a.ratio_level,
        "epsilon": a.clip_eps_low,
        "epsilon_high": a.cispo_cap if is_cispo else a.clip_eps_high,
        "beta": a.kl_coef,
        "use_bias_correction_kl": a.kl_ratio_corrected,
        "num_iterations": a.updates_per_batch,
        "mask_truncated_completions": a.mask_truncated,
        "report_to": [],
        "logging_steps": 1,
        "output_dir": "trl-run",
    }
    if a.clip_delta is not None:
        arguments["delta"] = a.clip_delta
    if trl_environment(config):
        arguments["max_tool_calling_iterations"] = config.rollout.max_turns - 1
    return arguments


def _peft_config(config: RunConfig) -> str:
    m = config.model
    if not m.lora_rank:
        return "PEFT = None\n"
    return f"""from peft import LoraConfig

PEFT = LoraConfig(
    r={m.lora_rank},
    lora_alpha={m.lora_alpha or 2 * m.lora_rank},
    lora_dropout=0.0,
    target_modules="all-linear",
    task_type="CAUSAL_LM",
)
"""
