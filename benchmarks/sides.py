"""One side of the speed benchmark, in a process of its own: our trainer, or TRL's."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zlib import crc32

import torch

from benchmarks.workloads import Workload
from grpo_core.config import RunConfig, nest, parse
from grpo_core.models import load_policy
from grpo_core.rubric import CHECKS, Check, build_rubric
from grpo_core.rubric.check import Params
from grpo_core.tasks import load_task, train_prompts
from grpo_core.training import trainer
from grpo_core.training.control import RunControl
from grpo_core.types import Event, ModelLoaded, StepCompleted

PHASES = ("sampling", "scoring", "update")
LEARNING_RATE = 1e-5  # with random weights


@dataclass(frozen=True, slots=True)
class Measured:
    """Of every step: its seconds, the seconds of its phases (ours only), its tokens.

    peak_mib: of our steps; a GPU's peak is reset before each.
    """

    seconds: list[float]
    tokens: list[int]
    phases: dict[str, list[float]] = field(default_factory=dict)
    peak_mib: float = 0.0


def run_side(side: str, work: Workload, folder: str, threads: int) -> dict[str, float]:
    """Train the workload on one side. side: ours, unrecorded (ours without a store) or trl."""
    torch.set_num_threads(threads)
    measured = _trl(work, folder) if side == "trl" else _ours(work, folder, side == "ours")
    seconds, tokens = measured.seconds[work.warm :], measured.tokens[work.warm :]
    result = {
        "step_seconds": statistics.fmean(seconds),
        "tokens_per_second": sum(tokens) / sum(seconds),
        "memory_mib": max(measured.peak_mib, peak_memory_mib()),
    }
    for name, values in measured.phases.items():
        result[f"{name}_seconds"] = statistics.fmean(values[work.warm :])
    return result


def peak_memory_mib() -> float:
    """Of the device on CUDA, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux


def config_of(work: Workload, folder: str) -> RunConfig:
    settings: dict[str, Any] = {
        "train.steps": work.steps,
        "train.prompts_per_step": work.prompts,
        "train.group_size": work.group_size,
        "train.max_new_tokens": work.new_tokens,
        "train.eval_every": 0,
        "task.heldout_size": 0,
        "algorithm.kl_coef": work.kl_coef,
        "train.token_records": int(work.record),
        "train.checkpoint_every": 0,
        # TRL keeps no reference either where nothing needs it.
        "algorithm.measure_kl": work.kl_coef > 0,
    }
    if work.save_memory:
        settings |= {"train.gradient_checkpointing": "on", "train.micro_batch_tokens": 512}
    if work.shape:
        _add_noise_check()
        settings |= {
            "model.name": folder,
            "model.dtype": work.dtype,
            "task.path": f"{folder}/prompts.jsonl",
            "rubric.name": "custom",
            "rubric.criteria": [{"name": "noise", "check": "noise", "weight": 1.0}],
            "train.learning_rate": LEARNING_RATE,
        }
    return parse(nest(settings))


def noise(text: str) -> float:
    """A reward that differs from text to text, 0 to 1."""
    return crc32(text.encode()) % 1000 / 1000


def _add_noise_check() -> None:
    """Let this process's rubrics use `noise`. Not done on import: tests list all checks."""
    CHECKS["noise"] = Check(
        lambda completion, prompt, params: noise(completion.text),
        Params,
        "For benchmarks: a number that differs from text to text.",
    )


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


# ---- ours ----------------------------------------------------------------------------------------


def _ours(work: Workload, folder: str, recorded: bool) -> Measured:
    config, load = config_of(work, folder), trainer.load_policy

    def load_endless(*args: Any, **options: Any) -> Any:
        # Random weights may end a text at any token. No text may end early.
        return replace(load(*args, **options), end_ids=frozenset({-1}))

    def keep_threads(num_parameters: int, num_processes: int) -> None:
        """Both sides use the threads of the command line."""

    endless = work.shape and not work.ragged
    steps, times = [], []
    with tempfile.TemporaryDirectory() as name:
        recording = _recorder(config, name) if work.record and recorded else nullcontext()
        with (
            patch.object(trainer, "load_policy", load_endless if endless else load),
            patch.object(trainer, "share_cores", keep_threads),
            recording as recorder,
        ):

            def emit(event: Event) -> None:
                if recorder is not None:
                    recorder(event)
                if isinstance(event, StepCompleted):
                    steps.append(event.metrics)
                if isinstance(event, StepCompleted | ModelLoaded):
                    times.append(now())

            trainer.train(config, emit, RunControl())
    # By the clock, because a step's own time leaves out the writing.
    seconds = [b - a for a, b in pairwise(times)]
    phases = {name: [getattr(s, f"{name}_seconds") for s in steps] for name in PHASES}
    peak = max(s.peak_memory_mib or 0.0 for s in steps)
    return Measured(seconds, [s.tokens for s in steps], phases, peak)


def _recorder(config: RunConfig, folder: str) -> AbstractContextManager[Any]:
    # Imported only here: it takes memory that training without it does not need.
    from grpo_core.store import Recorder, Store

    store = Store(Path(folder) / "bench.db")
    return Recorder(store, store.create_run(config, "bench"))


# ---- TRL's ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Setup:
    """What TRL's trainer is given."""

    model: Any
    tokenizer: Any
    rows: list[dict[str, Any]]
    rewards: list[Any]
    options: dict[str, Any]  # as TRL names them


def _trl(work: Workload, folder: str) -> Measured:
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from transformers.utils import logging
    from trl.trainer.grpo_trainer import GRPOTrainer

    from benchmarks.peer import arguments

    logging.set_verbosity_error()
    setup = _random_setup(work, folder) if work.shape else _bundled_setup(work, folder)
    seconds: list[float] = []

    class Clock(TrainerCallback):
        started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(now() - self.started)

    with tempfile.TemporaryDirectory() as output:
        peer = GRPOTrainer(
            setup.model,
            reward_funcs=setup.rewards,
            processing_class=setup.tokenizer,
            train_dataset=Dataset.from_list(setup.rows),
            callbacks=[Clock()],
            args=arguments(
                output,
                prompts=work.prompts,
                group_size=work.group_size,
                max_steps=work.steps,
                seed=0,
                max_completion_length=work.new_tokens,
                beta=work.kl_coef,
                bf16=work.dtype == "bfloat16",
                use_cpu=not work.cuda,
                gradient_checkpointing=work.save_memory,
                **setup.options,
            ),
        )
        peer.remove_callback(PrinterCallback)
        peer.train()
    lengths = [
        line["completions/mean_length"] for line in peer.state.log_history if "num_tokens" in line
    ]
    return Measured(seconds, [round(n * work.prompts * work.group_size) for n in lengths])


def _random_setup(work: Workload, folder: str) -> _Setup:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def rewards(completions: list[str], **_: Any) -> list[float]:
        return [noise(c) for c in completions]

    lines = Path(folder, "prompts.jsonl").read_text("utf-8").splitlines()
    return _Setup(
        AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, work.dtype)),
        AutoTokenizer.from_pretrained(folder),
        [{"prompt": json.loads(line)["prompt"]} for line in lines],
        [rewards],
        {
            "learning_rate": LEARNING_RATE,
            "generation_kwargs": {} if work.ragged else {"min_new_tokens": work.new_tokens},
        },
    )


def _bundled_setup(work: Workload, folder: str) -> _Setup:
    from benchmarks.peer import criterion

    config = config_of(work, folder)
    policy, rubric = load_policy(config.model, 0), build_rubric(config.rubric)
    task = load_task(config.task)
    prompts = [
        prompt
        for step in range(1, work.steps + 1)
        for prompt in train_prompts(task, 0, step, work.prompts)
    ]
    return _Setup(
        policy.model,
        policy.tokenizer,
        [{"prompt": p.text, "row": i} for i, p in enumerate(prompts)],
        [criterion(name, rubric, policy, prompts) for name in rubric.weights],
        {"learning_rate": 1e-4, "reward_weights": list(rubric.weights.values())},
    )
