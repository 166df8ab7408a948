"""How fast and how large is a step, beside TRL's? Every pair runs in processes of their own, one after the other, in turn.

    python -m grpo_core bench [--peer trl] [--workload NAME ...] [--pairs 3] [--threads N] [--json]

Both sides get the same model folder, prompts, lengths, hyper-parameters and number of threads. A side's time is that of its steps, loading left
out; memory is the process's peak resident size, or the device's on CUDA. The peers need tests/requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PHASES = ("sampling", "scoring", "update")


@dataclass(frozen=True)
class Workload:
    """What both sides do. A shape is a Qwen3 configuration for random weights; none: the bundled model on its own task, as long as it likes."""

    help: str
    steps: int
    warm: int = 0  # first steps that are not counted
    prompts: int = 8
    group_size: int = 8
    prompt_tokens: int = 0
    new_tokens: int = 48
    kl_coef: float = 0.0
    shape: dict[str, int] = field(default_factory=dict)
    dtype: str = "float32"
    cuda: bool = False
    save_memory: bool = (
        False  # both sides: layers computed twice; ours: micro-batches of 512 tokens
    )
    record: bool = False  # ours: into a store, with token records
    peer: str | None = None  # who is compared, where it is not TRL


SMALL = {
    "hidden_size": 384,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 1024,
    "vocab_size": 32_000,
}
WIDE = {
    "hidden_size": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 768,
    "vocab_size": 151_936,
}
GROWING = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 768,
    "vocab_size": 8_000,
}
HALF_BILLION = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 4864,
    "vocab_size": 151_936,
}

WORKLOADS: dict[str, Workload] = {
    "W1-kl0": Workload("default model and task, kl_coef 0", steps=60),
    "W1-kl.02": Workload("default model and task, kl_coef .02", steps=60, kl_coef=0.02),
    "W2": Workload(
        "25 M parameters, 4 prompts of 256 tokens, 8 × 64 new tokens",
        steps=2,
        warm=1,
        prompts=4,
        prompt_tokens=256,
        new_tokens=64,
        shape=SMALL,
    ),
    "W3": Workload(
        "vocabulary of 151,936, 2 prompts, 8 × 128 new tokens",
        steps=2,
        warm=1,
        prompts=2,
        prompt_tokens=64,
        new_tokens=128,
        shape=WIDE,
    ),
    "W3-small": Workload(
        "W3, layers computed twice on both sides, and ours in parts of 512 tokens",
        steps=2,
        warm=1,
        prompts=2,
        prompt_tokens=64,
        new_tokens=128,
        shape=WIDE,
        save_memory=True,
    ),
    "W4": Workload(
        "shape of Qwen2.5-0.5B, bfloat16, 8 prompts of 512 tokens, 16 × 512 new tokens",
        steps=4,
        warm=2,
        group_size=16,
        prompt_tokens=512,
        new_tokens=512,
        shape=HALF_BILLION,
        dtype="bfloat16",
        cuda=True,
    ),
    "recording-W1": Workload(
        "W1, into a store with token records, beside the same without",
        steps=60,
        record=True,
        peer="unrecorded",
    ),
    "recording-W2": Workload(
        "W2, into a store with token records, beside the same without",
        steps=4,
        warm=1,
        prompts=4,
        prompt_tokens=256,
        new_tokens=64,
        shape=SMALL,
        record=True,
        peer="unrecorded",
    ),
}
_BASE = Workload(
    "one size grows",
    steps=3,
    warm=1,
    prompts=2,
    group_size=8,
    prompt_tokens=256,
    new_tokens=64,
    shape=GROWING,
)
WORKLOADS |= {
    f"growth-G{n}": replace(_BASE, help=f"group size {n}", group_size=n)
    for n in (2, 4, 8, 16, 32, 64)
}
WORKLOADS |= {
    f"growth-L{n}": replace(
        _BASE, help=f"prompts of {n} tokens, group size 16", prompt_tokens=n, group_size=16
    )
    for n in (64, 256, 1024, 2048)
}
WORKLOADS |= {
    f"growth-T{n}": replace(_BASE, help=f"{n} new tokens", new_tokens=n)
    for n in (32, 128, 512, 1024)
}


# ---- one side, in a process of its own -------------------------------------------------------------------------------------


def run_side(side: str, work: Workload, folder: str, threads: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(threads)
    seconds, phases, tokens = {"ours": _ours, "unrecorded": _ours, "trl": _trl}[side](
        work, folder, side, threads
    )
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated() / 2**20
    else:
        import resource

        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
    counted, drawn = seconds[work.warm :], tokens[work.warm :]
    return {
        "step_seconds": statistics.fmean(counted),
        "tokens_per_second": sum(drawn) / sum(counted),
        "memory_mib": memory,
        **{
            f"{name}_seconds": statistics.fmean(values[work.warm :])
            for name, values in phases.items()
        },
    }


def _settings(work: Workload, folder: str) -> dict[str, Any]:
    settings = {
        "train.steps": work.steps,
        "train.prompts_per_step": work.prompts,
        "train.group_size": work.group_size,
        "train.max_new_tokens": work.new_tokens,
        "train.eval_every": 0,
        "task.heldout_size": 0,
        "algorithm.kl_coef": work.kl_coef,
        "train.token_records": int(work.record),
        "train.checkpoint_every": 0,
        "algorithm.measure_kl": work.kl_coef > 0,
    }  # TRL keeps no reference either where nothing needs it
    if work.save_memory:
        settings |= {"train.gradient_checkpointing": "on", "train.micro_batch_tokens": 512}
    if work.shape:
        settings |= {
            "model.name": folder,
            "model.dtype": work.dtype,
            "task.path": f"{folder}/prompts.jsonl",
            "rubric.name": "custom",
            "rubric.criteria": [{"name": "noise", "check": "noise", "weight": 1.0}],
            "train.learning_rate": 1e-5,
        }
    return settings


def _ours(
    work: Workload, folder: str, side: str, threads: int
) -> tuple[list[float], dict[str, list[float]], list[int]]:
    from contextlib import nullcontext

    from grpo_core.config import nest, parse
    from grpo_core.rubric.check import Check, Params
    from grpo_core.rubric.criteria import CHECKS
    from grpo_core.training import trainer
    from grpo_core.training.control import RunControl
    from grpo_core.types import StepCompleted

    CHECKS["noise"] = Check(
        lambda completion, prompt, params: noise(completion.text),
        Params,
        "For benchmarks: a number that differs from text to text.",
    )
    trainer.share_cores = lambda num_parameters: (
        None
    )  # both sides get the threads that were asked for
    if work.shape:  # random weights may end a text at any token: let none
        load = trainer.load_policy
        trainer.load_policy = lambda *a, **k: replace(load(*a, **k), end_ids=frozenset({-1}))
    config = parse(nest(_settings(work, folder)))
    done: list[Any] = []
    with tempfile.TemporaryDirectory() as place:
        recording: Any = nullcontext()
        if work.record and side == "ours":
            from grpo_core.store import (
                Recorder,
                Store,
            )  # only then: it takes memory that training without it does not

            store = Store(Path(place) / "bench.db")
            recording = Recorder(store, store.create_run(config, "bench"))
        with recording as recorder:
            started = None

            def emit(event: Any) -> None:
                if recorder is not None:
                    recorder(event)
                if isinstance(event, StepCompleted):
                    done.append((event.metrics, _now()))
                elif not done and type(event).__name__ == "ModelLoaded":
                    nonlocal started
                    started = _now()

            trainer.train(config, emit, RunControl())
    times = [started, *(at for _, at in done)]
    # By the clock and not by the step's own measure, which would leave the writing out.
    seconds = [b - a for a, b in pairwise(times)]
    return (
        seconds,
        {n: [getattr(m, f"{n}_seconds") for m, _ in done] for n in PHASES},
        [m.tokens for m, _ in done],
    )


def _trl(
    work: Workload, folder: str, side: str, threads: int
) -> tuple[list[float], dict[str, list[float]], list[int]]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from transformers.utils import logging
    from trl import GRPOTrainer

    logging.set_verbosity_error()
    from benchmarks.peer import arguments, criterion
    from grpo_core.config import nest, parse
    from grpo_core.models import load_policy
    from grpo_core.rubric import build_rubric
    from grpo_core.tasks import load_task, train_prompts

    if work.shape:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, work.dtype))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rows = [
            json.loads(line)
            for line in Path(folder, "prompts.jsonl").read_text("utf-8").splitlines()
        ]
        dataset, learning_rate, weights = (
            Dataset.from_list([{"prompt": r["prompt"]} for r in rows]),
            1e-5,
            None,
        )

        def rewards(completions: list[str], **_: Any) -> list[float]:
            return [noise(c) for c in completions]

        functions: list[Any] = [rewards]
        lengths: dict[str, Any] = {"generation_kwargs": {"min_new_tokens": work.new_tokens}}
    else:
        config = parse(nest(_settings(work, folder)))
        policy, rubric, task = (
            load_policy(config.model, 0),
            build_rubric(config.rubric),
            load_task(config.task),
        )
        prompts = [
            p
            for step in range(1, work.steps + 1)
            for p in train_prompts(task, 0, step, work.prompts)
        ]
        model, tokenizer, learning_rate, weights = (
            policy.model,
            policy.tokenizer,
            1e-4,
            list(rubric.weights.values()),
        )
        dataset = Dataset.from_list([{"prompt": p.text, "row": i} for i, p in enumerate(prompts)])
        functions, lengths = (
            [criterion(name, rubric, policy, prompts) for name in rubric.weights],
            {},
        )

    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = _now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(_now() - self.started)

    with tempfile.TemporaryDirectory() as place:
        trainer = GRPOTrainer(
            model,
            reward_funcs=functions,
            processing_class=tokenizer,
            train_dataset=dataset,
            callbacks=[Clock()],
            args=arguments(
                place,
                prompts=work.prompts,
                group_size=work.group_size,
                max_steps=work.steps,
                seed=0,
                max_completion_length=work.new_tokens,
                reward_weights=weights,
                beta=work.kl_coef,
                learning_rate=learning_rate,
                bf16=work.dtype == "bfloat16",
                use_cpu=not work.cuda,
                gradient_checkpointing=work.save_memory,
                **lengths,
            ),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    logged = [line for line in trainer.state.log_history if "num_tokens" in line]
    lengths_mean = [
        line["completions/mean_length"] * work.prompts * work.group_size for line in logged
    ]
    return seconds, {}, [round(n) for n in lengths_mean]


def noise(text: str) -> float:
    from zlib import crc32

    return crc32(text.encode()) % 1000 / 1000


def _now() -> float:
    import time

    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def make_folder(work: Workload, folder: Path) -> None:
    """A random-weight model of the workload's shape, a tokenizer of as many words, and a file of prompts."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = work.shape["vocab_size"]
    tokenizer = Tokenizer(
        models.WordLevel(
            {"<unknown>": 0, "<end>": 1, "<pad>": 2} | {f"w{i}": i for i in range(3, words)},
            unk_token="<unknown>",
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    context = work.prompt_tokens + work.new_tokens + 64
    config = Qwen3Config(
        **work.shape,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=2,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).to(getattr(torch, work.dtype)).save_pretrained(folder)
    rng = random.Random(0)
    lines = [
        json.dumps(
            {
                "prompt": " ".join(
                    f"w{rng.randrange(3, words)}" for _ in range(work.prompt_tokens)
                ),
                "answer": "w3",
            }
        )
        for _ in range(work.prompts * work.steps + 64)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


# ---- pairs -------------------------------------------------------------------------------------------------------------------


def measure(name: str, pairs: int, threads: int, peer: str, say: Any) -> dict[str, Any]:
    """One workload: ours and the peer in turn, `pairs` times. Medians, and the ratios pair by pair."""
    work = WORKLOADS[name]
    peer = work.peer or peer
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], peer: []}
    with tempfile.TemporaryDirectory() as place:
        if work.shape:
            make_folder(work, Path(place))
        for n in range(pairs):
            for side in sides:
                sides[side].append(_child(side, name, place, threads))
                say(
                    f"{name} pair {n + 1} {side}: {sides[side][-1]['step_seconds']:.3f} s/step, {sides[side][-1]['memory_mib']:.0f} MiB"
                )
    ours, theirs = sides["ours"], sides[peer]
    speed = [t["step_seconds"] / o["step_seconds"] for o, t in zip(ours, theirs, strict=True)]
    memory = [o["memory_mib"] / t["memory_mib"] for o, t in zip(ours, theirs, strict=True)]
    return {
        "workload": name,
        "help": work.help,
        "peer_name": peer,
        "threads": threads,
        "speed_ratio": statistics.median(speed),
        "memory_ratio": statistics.median(memory),
        "speed_ratios": speed,
        "memory_ratios": memory,
        "pairs": pairs,
        "ours": _medians(ours),
        "peer": _medians(theirs),
    }


def _child(side: str, name: str, folder: str, threads: int) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.speed",
        "--side",
        side,
        "--workload",
        name,
        "--folder",
        folder,
        "--threads",
        str(threads),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"},
        cwd=Path(__file__).parent.parent,
    )
    if done.returncode:
        raise SystemExit(f"{side} failed on {name}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def _medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    return {key: statistics.median(r[key] for r in runs) for key in runs[0]}


def chosen(names: Iterable[str] | None) -> list[str]:
    """W1 to W3 when nothing is asked for; a name may be the beginning of several."""
    import torch

    wanted = list(names or ("W",))
    found = [
        n
        for n, w in WORKLOADS.items()
        if any(n.startswith(x) for x in wanted) and (torch.cuda.is_available() or not w.cuda)
    ]
    if not found:
        raise SystemExit(
            f"--workload {' '.join(wanted)}: there is none such here. Known: {', '.join(WORKLOADS)}."
        )
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", choices=["trl"], default="trl")
    parser.add_argument(
        "--workload",
        nargs="+",
        help="; ".join(f"{n}: {w.help}" for n, w in WORKLOADS.items()).replace("%", "%%"),
    )
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
    )
    parser.add_argument("--save", help=f"write the result to {RESULTS.name}/NAME.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> None:
    if arguments.side:
        print(
            json.dumps(
                run_side(
                    arguments.side,
                    WORKLOADS[arguments.workload[0]],
                    arguments.folder,
                    arguments.threads,
                )
            )
        )
        return
    results = [
        measure(
            name,
            arguments.pairs,
            arguments.threads,
            arguments.peer,
            lambda line: print(line, file=sys.stderr, flush=True),
        )
        for name in chosen(arguments.workload)
    ]
    if arguments.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{arguments.save}.json").write_text(
            json.dumps(
                {"machine": machine(), "results": results, "growth": growth(results)}, indent=1
            )
            + "\n",
            "utf-8",
        )
    if arguments.json:
        print(json.dumps(results))
        return
    for r in results:
        ours, theirs = r["ours"], r["peer"]
        print(
            f"{r['workload']:14} ours {ours['step_seconds']:8.3f} s {ours['memory_mib']:7.0f} MiB {ours['tokens_per_second']:8.0f} tokens/s   {r['peer_name']} "
            f"{theirs['step_seconds']:8.3f} s {theirs['memory_mib']:7.0f} MiB   speed × {r['speed_ratio']:.2f} ({', '.join(f'{x:.2f}' for x in r['speed_ratios'])})   "
            f"memory × {r['memory_ratio']:.2f}   "
            + ", ".join(f"{n} {ours[f'{n}_seconds']:.3f}" for n in PHASES)
        )
    for family, g in growth(results).items():
        print(
            f"{family}: seconds grow as size^{g['ours_exponent']:.2f}, the peer's as size^{g['peer_exponent']:.2f}; per unit {g['slope_ratio']:.2f} of the peer's"
        )


def growth(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of workloads growth-<letter><size>: how the seconds of a step grow with size, as size^exponent and per unit of size, on both sides."""
    families: dict[str, list[tuple[int, float, float]]] = {}
    for r in results:
        if found := re.fullmatch(r"(growth-[A-Z])(\d+)", r["workload"]):
            families.setdefault(found[1], []).append(
                (int(found[2]), r["ours"]["step_seconds"], r["peer"]["step_seconds"])
            )
    grown = {}
    for family, rows in families.items():
        if len(rows) > 1:
            sizes, *sides = zip(*sorted(rows), strict=True)
            grown[family] = {
                f"{side}_{what}": statistics.linear_regression(
                    *(
                        [[math.log(x) for x in v] for v in (sizes, seconds)]
                        if what == "exponent"
                        else (sizes, seconds)
                    )
                ).slope
                for side, seconds in zip(("ours", "peer"), sides, strict=True)
                for what in ("exponent", "slope")
            }
            grown[family]["slope_ratio"] = grown[family]["ours_slope"] / grown[family]["peer_slope"]
    return grown


def machine() -> dict[str, Any]:
    from importlib.metadata import version

    import torch

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()} CPU cores, {platform.machine()}"
    )
    return {
        "device": device,
        "python": platform.python_version(),
        **{n: version(n) for n in ("torch", "transformers", "trl")},
    }


if __name__ == "__main__":
    its = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(its)
    its.add_argument("--json", action="store_true", help="the last line is a list of all results")
    run(its.parse_args())
