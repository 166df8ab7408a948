"""Does a run of ours learn what a run of TRL's learns?

    python benchmarks/trl_end_to_end.py [--seeds 0 1 2 3 4]

The same model, prompts, rewards and hyper-parameters, trained by both, seed after seed. Compared
is the mean reward of steps 40 to 60. A seed gives both sides the same prompts in the same order
and the same weights; the sampled tokens differ. So the two agree when the difference of the means
over seeds is below two standard errors. Needs tests/requirements.txt (trl).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging
from trl.trainer.grpo_trainer import GRPOTrainer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.peer import arguments, criterion
from grpo_core.config import RunConfig, nest, parse
from grpo_core.models import Policy, load_policy
from grpo_core.rubric import build_rubric
from grpo_core.tasks import load_task, train_prompts
from grpo_core.training.control import RunControl
from grpo_core.training.trainer import learning_rate, train
from grpo_core.types import Event, Prompt, StepCompleted

STEPS, FIRST, LAST = 60, 40, 60


def ours(config: RunConfig) -> list[float]:
    """Mean reward of each step."""
    rewards: list[float] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepCompleted):
            assert event.metrics.reward_mean is not None, f"step {event.step} has no reward"
            rewards.append(event.metrics.reward_mean)

    train(config, listen, RunControl())
    return rewards


def theirs(config: RunConfig) -> list[float]:
    """Mean reward of each step of the same run by TRL, with every setting of ours in its words."""
    t, a = config.train, config.algorithm
    policy, rubric = load_policy(config.model, t.seed), build_rubric(config.rubric)
    prompts = all_prompts(config, policy)
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


def all_prompts(config: RunConfig, policy: Policy) -> list[Prompt]:
    """The prompts of all steps, in order."""
    task, t = load_task(config.task), config.train
    prompts = [
        prompt
        for step in range(1, t.steps + 1)
        for prompt in train_prompts(task, t.seed, step, t.prompts_per_step)
    ]
    for prompt in prompts:
        ids = policy.encode(prompt, task.instruction)
        assert policy.tokenizer(prompt.text)["input_ids"] == ids, "TRL reads other prompts"
    return prompts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    seeds = parser.parse_args().seeds
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(f"Mean reward of steps {FIRST} to {LAST}\n")
    print("| seed | ours | TRL | difference |\n|---|---|---|---|")
    rows: list[tuple[float, float]] = []
    for seed in seeds:
        config = parse(nest({"train.steps": STEPS, "train.seed": seed, "task.heldout_size": 0}))
        a, b = (statistics.fmean(side(config)[FIRST - 1 : LAST]) for side in (ours, theirs))
        rows.append((a, b))
        print(f"| {seed} | {a:.4f} | {b:.4f} | {a - b:+.4f} |", flush=True)
    compare(rows)


def compare(rows: Sequence[tuple[float, float]]) -> None:
    """Print the last row of the table, and whether the two sides agree."""
    mean, error = mean_and_error([a for a, _ in rows])
    their_mean, their_error = mean_and_error([b for _, b in rows])
    _, paired_error = mean_and_error([a - b for a, b in rows])
    joint_error = (error**2 + their_error**2) ** 0.5
    difference = mean - their_mean
    agree = abs(difference) < 2 * min(joint_error, paired_error)
    print(
        f"| mean ± se | {mean:.4f} ± {error:.4f} | {their_mean:.4f} ± {their_error:.4f} | "
        f"{difference:+.4f} ± {joint_error:.4f} (seed by seed ± {paired_error:.4f}) |\n\n"
        f"{abs(difference) / joint_error:.2f} standard errors "
        f"({abs(difference) / paired_error:.2f} seed by seed): {'agree' if agree else 'DIFFER'}"
    )


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5


if __name__ == "__main__":
    main()
