"""Small real runs of TRL's GRPOTrainer on the bundled model."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from grpo_core.config import RunConfig
from grpo_core.models import load_policy
from grpo_core.store import Store
from grpo_core.tasks import load_task, train_prompts


def is_right(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    return [float(a in c) for c, a in zip(completions, answer, strict=True)]


def is_short(completions: list[str], **_: Any) -> list[float | None]:
    """1 for nothing, less for more; unscored for some, as a reward function may do."""
    return [None if c.endswith("7") else 1 - len(c) / 40 for c in completions]


def rows(num: int) -> Dataset:
    prompts = train_prompts(load_task(RunConfig().task), 0, 1, num)
    return Dataset.from_list([{"prompt": p.text, "answer": p.answer} for p in prompts])


def make_trainer(folder: Path, steps: int = 10, **options: Any) -> GRPOTrainer:
    """2 prompts with 4 completions a generation; options: of GRPOConfig."""
    transformers_logging.set_verbosity_error()
    set_seed(0)
    policy = load_policy(RunConfig().model, 0)
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": steps,
        "learning_rate": 1e-4,
        "beta": 0.05,
        "reward_weights": [1.0, 0.5],
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    trainer = GRPOTrainer(
        policy.model,
        reward_funcs=[is_right, is_short],
        processing_class=policy.tokenizer,
        train_dataset=rows(64),
        eval_dataset=rows(4),
        args=GRPOConfig(**(defaults | options)),
    )
    with contextlib.suppress(ValueError):
        trainer.remove_callback(PrinterCallback)
    return trainer


def weights(trainer: GRPOTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


class Logs(TrainerCallback):
    """A copy of TRL's own record of each generation, and whatever is to be done after a step."""

    def __init__(self, trainer: GRPOTrainer, after_step: dict[int, Callable[[], object]]):
        self.generations: list[dict[str, Any]] = []
        self._trainer, self._after = trainer, after_step
        trainer.add_callback(self)

    @property
    def history(self) -> list[dict[str, float]]:
        """What TRL logged."""
        return self._trainer.state.log_history

    def on_step_end(self, args, state, control, **_):
        logs = self._trainer._logs
        if self._trainer._metrics["train"].get("reward"):  # a generation was made in this step
            rewards = {name: list(values) for name, values in logs["rewards"].items()}
            self.generations.append(
                {
                    "step": state.global_step,
                    "prompt": list(logs["prompt"]),
                    "completion": list(logs["completion"]),
                    "advantage": list(logs["advantages"]),
                    **rewards,
                }
            )
        self._after.get(state.global_step, lambda: None)()


def stored(store: Store, run_id: str) -> list[dict[str, Any]]:
    """The rollouts of a run in the form of `Logs`, one dictionary a generation."""
    steps: dict[int, dict[str, Any]] = {}
    for group in store.iter_groups(run_id):
        made = steps.setdefault(group.step, defaultdict(list))
        made["step"] = group.step
        for r in group.rollouts:
            made["prompt"].append(group.prompt)
            made["completion"].append(r.text)
            made["advantage"].append(r.advantage)
            for name, score in r.scores.items():
                made[name].append(score)
    return [dict(made) for made in steps.values()]


def assert_same(recorded: list[dict[str, Any]], logged: list[dict[str, Any]]) -> None:
    """All groups, scores and advantages, to 1e-6."""
    assert [made["step"] for made in recorded] == [made["step"] for made in logged]
    for ours, theirs in zip(recorded, logged, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("prompt", "completion"):
            assert ours[name] == theirs[name]
        for name in ours.keys() - {"step", "prompt", "completion"}:
            expected = [None if math.isnan(value) else value for value in theirs[name]]
            assert [v is None for v in ours[name]] == [v is None for v in expected]
            assert [v or 0 for v in ours[name]] == pytest.approx(
                [v or 0 for v in expected], abs=1e-6
            )
