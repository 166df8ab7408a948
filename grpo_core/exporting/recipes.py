"""A run written down for other tools: as one command of ours, and as a script for TRL. Pure text out of a configuration."""

from __future__ import annotations

import json
import shlex
from typing import Any

from grpo_core.config import RunConfig, flatten
from grpo_core.rubric import resolve_rubric


def as_command(config: RunConfig) -> str:
    """The command line that starts this run again: every setting that is not the default."""
    default, parts = flatten(RunConfig()), ["python -m grpo_core train"]
    for name, value in flatten(config).items():
        if value != default[name]:
            parts.append(
                "--set "
                + shlex.quote(
                    f"{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
                )
            )
    return " \\\n  ".join(parts) + "\n"


# Ours -> TRL's word for it; what is not here TRL 1.16 has no word for.
LOSS_TYPES = {"token_mean": "dapo", "sequence_mean": "grpo", "constant": "dr_grpo"}
SCALES = {"group_std": "group", "group_mean": "none", "batch_std": "batch"}


def as_trl_script(config: RunConfig) -> str:
    """The same run for TRL's GRPOTrainer: its prompts, rubric and hyper-parameters; what TRL cannot say stands on top as a comment."""
    t, a, m = config.train, config.algorithm, config.model
    missing = [
        f"{name} = {value!r}"
        for name, value, there in (
            ("algorithm.advantage", a.advantage, a.advantage in SCALES),
            ("algorithm.objective", a.objective, a.objective in ("clip", "cispo")),
            ("algorithm.aggregation", a.aggregation, a.aggregation in LOSS_TYPES),
            ("algorithm.grouping", a.grouping, a.grouping == "prompt"),
            ("algorithm.kl_estimator", a.kl_estimator, a.kl_estimator == "k3" or not a.kl_coef),
            ("algorithm.kl_control", a.kl_control, a.kl_control == "fixed"),
            ("algorithm.dynamic_sampling", a.dynamic_sampling, not a.dynamic_sampling),
            ("algorithm.entropy_coef", a.entropy_coef, not a.entropy_coef),
            ("algorithm.entropy_target", a.entropy_target, a.entropy_target is None),
            ("rubric.scale", config.rubric.scale, not config.rubric.scale),
            ("rubric.gate", config.rubric.gate, not config.rubric.gate),
            ("rubric.clip_low", config.rubric.clip_low, config.rubric.clip_low is None),
            ("rubric.clip_high", config.rubric.clip_high, config.rubric.clip_high is None),
        )
        if not there
    ]
    written = config.model_copy(update={"rubric": resolve_rubric(config.rubric)})
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
        "loss_type": "cispo" if a.objective == "cispo" else LOSS_TYPES.get(a.aggregation, "dapo"),
        "importance_sampling_level": a.ratio_level,
        "epsilon": a.clip_eps_low,
        "epsilon_high": a.cispo_cap if a.objective == "cispo" else a.clip_eps_high,
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
    lora = (
        f"""from peft import LoraConfig

PEFT = LoraConfig(r={m.lora_rank}, lora_alpha={m.lora_alpha or 2 * m.lora_rank}, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
"""
        if m.lora_rank
        else "PEFT = None\n"
    )
    head = "".join(f"#   {line}\n" for line in missing)
    head = (
        f"# TRL has no word for these settings; the script leaves them out:\n{head}"
        if missing
        else "# Every setting of the run has a word in TRL.\n"
    )
    return f'''"""The run of GRPO Studio as a script for TRL 1.16. Run it beside grpo_core: prompts and rubric come from there."""
{head}
import json

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from grpo_core.config import parse
from grpo_core.models import load_policy
from grpo_core.rubric import build_rubric
from grpo_core.tasks import load_task, train_prompts
from grpo_core.trainer import learning_rate
from grpo_core.types import Completion

{lora}
CONFIG = parse(json.loads({json.dumps(json.dumps(written.model_dump(mode="json")))}))
policy, task, rubric = load_policy(CONFIG.model.model_copy(update={{"lora_rank": 0}}), CONFIG.train.seed), load_task(CONFIG.task), build_rubric(CONFIG.rubric)
prompts = [p for step in range(1, CONFIG.train.steps + 1) for p in train_prompts(task, CONFIG.train.seed, step, CONFIG.train.prompts_per_step)]


def as_trl_reads(p):
    if not policy.tokenizer.chat_template:
        return policy.tokenizer.decode(policy.encode(p, task.instruction))
    content = f"{{task.instruction}}\\n\\n{{p.text}}" if task.instruction else p.text
    return [*p.meta.get("before", ()), {{"role": "user", "content": content}}]


def criterion(name):
    def score(completion_ids, row, **_):
        completions = [Completion(policy.decode(ids), "stop" if ids[-1] in policy.end_ids else "length", len(ids)) for ids in completion_ids]
        return [scores[name] for scores in rubric.score_all(completions, [prompts[i] for i in row]).scores]
    score.__name__ = name
    return score


if __name__ == "__main__":
    trainer = GRPOTrainer(
        model=policy.model, processing_class=policy.tokenizer, peft_config=PEFT, reward_funcs=[criterion(name) for name in rubric.weights],
        train_dataset=Dataset.from_list([{{"prompt": as_trl_reads(p), "row": i}} for i, p in enumerate(prompts)]),
        args=GRPOConfig(learning_rate=learning_rate(CONFIG, policy), reward_weights=list(rubric.weights.values()), bf16=policy.model.dtype.itemsize == 2,
                        use_cpu=policy.device.type == "cpu", **{arguments!r}))
    trainer.train()
'''
