"""Does a run of ours learn what a run of TRL's learns? The same model, prompts, rewards and hyper-parameters, trained by both, seed after seed.

    python benchmarks/trl_end_to_end.py [--seeds 0 1 2 3 4]

Compared is the mean reward of steps 40 to 60. A seed gives both sides the same prompts in the same order and the same start; what they sample
differs, so they agree when the difference of the means over seeds is below two standard errors. Needs tests/requirements.txt (trl).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging
from trl import GRPOTrainer

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.peer import arguments, criterion
from grpo_core.config import RunConfig, nest, parse
from grpo_core.models import load_policy
from grpo_core.rubric import build_rubric
from grpo_core.tasks import load_task, train_prompts
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import learning_rate, train
from grpo_core.types import StepCompleted

STEPS, FIRST, LAST = 60, 40, 60


def ours(config: RunConfig) -> list[float]:
    """Mean reward of each step."""
    events: list[Any] = []
    train(config, events.append, RunControl())
    return [e.metrics.reward_mean for e in events if isinstance(e, StepCompleted)]


def theirs(config: RunConfig) -> list[float]:
    """The same run by TRL's GRPOTrainer, every setting of ours written in its words."""
    t, a = config.train, config.algorithm
    policy, rubric, task = (
        load_policy(config.model, t.seed),
        build_rubric(config.rubric),
        load_task(config.task),
    )
    prompts = [
        p
        for step in range(1, t.steps + 1)
        for p in train_prompts(task, t.seed, step, t.prompts_per_step)
    ]
    assert all(
        policy.tokenizer(p.text)["input_ids"] == policy.encode(p, task.instruction) for p in prompts
    ), "TRL would read other prompts"
    rate = learning_rate(config, policy)
    optimizer = torch.optim.AdamW(
        policy.model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )
    # TRL's own warm-up begins one step later, at a learning rate of 0.
    warm_up = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / t.warmup_steps)
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            policy.model,
            reward_funcs=[criterion(name, rubric, policy, prompts) for name in rubric.weights],
            processing_class=policy.tokenizer,
            train_dataset=Dataset.from_list(
                [{"prompt": p.text, "row": i} for i, p in enumerate(prompts)]
            ),
            optimizers=(optimizer, warm_up),
            args=arguments(
                folder,
                prompts=t.prompts_per_step,
                group_size=t.group_size,
                max_steps=t.steps,
                seed=t.seed,
                max_completion_length=t.max_new_tokens,
                temperature=t.temperature,
                reward_weights=list(rubric.weights.values()),
                epsilon=a.clip_eps_low,
                epsilon_high=a.clip_eps_high,
                beta=a.kl_coef,
                use_bias_correction_kl=a.kl_ratio_corrected,
                max_grad_norm=t.max_grad_norm,
            ),
        )
        trainer.remove_callback(PrinterCallback)
        assert set(trainer.eos_token_ids) == policy.end_ids, "TRL would stop at other tokens"
        trainer.train()
    return [line["reward"] for line in trainer.state.log_history if "reward" in line]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(
        f"Mean reward of steps {FIRST} to {LAST}\n\n| seed | ours | TRL | difference |\n|---|---|---|---|"
    )
    rows = []
    for seed in parser.parse_args().seeds:
        config = parse(nest({"train.steps": STEPS, "train.seed": seed, "task.heldout_size": 0}))
        rows.append([statistics.fmean(run(config)[FIRST - 1 : LAST]) for run in (ours, theirs)])
        print(
            f"| {seed} | {rows[-1][0]:.4f} | {rows[-1][1]:.4f} | {rows[-1][0] - rows[-1][1]:+.4f} |",
            flush=True,
        )
    (mine, my_error), (other, other_error) = (
        mean_and_error(side) for side in zip(*rows, strict=True)
    )
    _, paired = mean_and_error([a - b for a, b in rows])
    error = (my_error**2 + other_error**2) ** 0.5
    print(
        f"| mean ± se | {mine:.4f} ± {my_error:.4f} | {other:.4f} ± {other_error:.4f} | {mine - other:+.4f} ± {error:.4f} (seed by seed ± {paired:.4f}) |\n\n"
        f"{abs(mine - other) / error:.2f} standard errors ({abs(mine - other) / paired:.2f} seed by seed): "
        f"{'agree' if abs(mine - other) < 2 * min(error, paired) else 'DIFFER'}"
    )


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5


if __name__ == "__main__":
    main()
