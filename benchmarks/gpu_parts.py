"""The measurements of benchmarks.gpu. Each takes a Scale and returns its figures by name."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.environments import Bench, ReadAnew
from benchmarks.sides import config_of, now, peak_memory_mib
from benchmarks.workloads import TINY as TINY_SHAPE
from benchmarks.workloads import WORKLOADS, Workload, make_folder
from grpo_core import cli
from grpo_core.config import ModelConfig
from grpo_core.environments.instances import Instances
from grpo_core.environments.registry import find_environment
from grpo_core.learner import Batch, Learner, LearnerSettings, packed, separate
from grpo_core.learner.logprobs import MakeLayout, token_logprobs
from grpo_core.models import Policy, load_policy
from grpo_core.models.device import cache_bytes
from grpo_core.models.lm_head import LogprobsFromStates
from grpo_core.rollout import SamplingParams, TurnSampler, sample_groups
from grpo_core.rollout import sample as rollout_sample
from grpo_core.rollout.fixed_caches import FixedCaches
from grpo_core.store import Store
from grpo_core.training.control import RunControl
from grpo_core.training.memory_estimate import ModelSize
from grpo_core.training.memory_estimate import memory as estimate
from grpo_core.training.trainer import train
from grpo_core.types import Rollout, StepCompleted

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the parts are, and where they run."""

    work: Workload  # model shape, prompts, lengths
    device: str
    matrix: int  # rows of the matrices that measure the card
    copied: int  # bytes
    steps: int  # of the default run
    workloads: tuple[str, str]  # compared with TRL: of one length, ragged

    @property
    def dtype(self) -> torch.dtype:
        return getattr(torch, self.work.dtype)


FULL = Scale(WORKLOADS["W4"], "cuda", 8192, 2**31, 80, ("W4", "W4-ragged"))
_TINY_WORK = Workload("tiny", 2, shape=TINY_SHAPE, prompt_tokens=12, new_tokens=6, dtype="bfloat16")
TINY = Scale(replace(_TINY_WORK, prompts=2, group_size=3), "cpu", 64, 2**16, 2, ("tiny", "tiny"))

# ---- the card ------------------------------------------------------------------------------------


def median_seconds(work: Callable[[], object], times: int = 5) -> float:
    """The median time of a call, after one that is not counted."""
    work()
    seconds = []
    for _ in range(times):
        started = now()
        work()
        seconds.append(now() - started)
    return statistics.median(seconds)


def bounds(scale: Scale) -> dict[str, Any]:
    """Versions, and what the card can do: bytes copied and operations of a matrix product."""
    device = torch.device(scale.device)
    on_gpu = device.type == "cuda"
    source = torch.empty(scale.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = median_seconds(lambda: target.copy_(source))
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if on_gpu else "",
        "copy_gb_per_second": 2 * scale.copied / copied / 1e9,
    }
    for name, dtype, precision in (
        ("bfloat16", torch.bfloat16, "highest"),
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
    ):
        torch.set_float32_matmul_precision(precision)
        a = torch.randn(scale.matrix, scale.matrix, device=device).to(dtype)
        seconds = median_seconds(lambda a=a: a @ a)
        result[f"{name}_tflop_per_second"] = 2 * scale.matrix**3 / seconds / 1e12
    torch.set_float32_matmul_precision("highest")
    return result


def _bounds(scale: Scale) -> tuple[float, float]:
    """Bytes a second of a copy, and operations a second in the model's precision."""
    found = bounds(scale)
    name = "bfloat16" if scale.dtype == torch.bfloat16 else "float32"
    return found["copy_gb_per_second"] * 1e9, found[f"{name}_tflop_per_second"] * 1e12


# ---- correctness ---------------------------------------------------------------------------------


def correctness(scale: Scale) -> dict[str, Any]:
    """Errors of every fast path against float64 on the CPU, beside those of the model's own code.

    `…_error_ratio` is the mean error in units of that of the model's own code in the same
    precision: near 1 where a path differs by rounding alone.
    """
    batch_rows = _ragged_rows()
    with _policy(_model_work(), scale) as policy:
        model = policy.model
        exact = copy.deepcopy(model).cpu().double()
        truth = token_logprobs(exact, _batch(batch_rows, torch.device("cpu")), 1.0, separate)[0]
        mask = _batch(batch_rows, torch.device("cpu")).completion_mask
        result: dict[str, Any] = {}
        errors = {}
        layouts: dict[str, MakeLayout | None] = {
            "own": separate,
            "packed": packed,
            "fastest": None,
        }
        for name, layout in layouts.items():
            with torch.no_grad():
                found = token_logprobs(model, _batch(batch_rows, policy.device), 1.0, layout)[0]
            difference = (found.double().cpu() - truth.detach()).abs()[mask]
            errors[name] = float(difference.mean())
            result[f"{name}_mean_error"] = errors[name]
            result[f"{name}_max_error"] = float(difference.max())
        for name in ("packed", "fastest"):
            result[f"{name}_error_ratio"] = errors[name] / errors["own"]
        result |= _head_error(scale)
        result |= _sampler_difference(policy, [prompt for prompt, _ in batch_rows[::4]])
    return result


def _model_work() -> Workload:
    """A model small enough for float64 on the CPU, with the head width of large ones."""
    shape = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "intermediate_size": 512,
        "vocab_size": 4096,
    }
    return Workload("for float64", 1, shape=shape, prompt_tokens=64, new_tokens=32)


def _ragged_rows() -> list[tuple[list[int], list[int]]]:
    """3 groups of 4: prompts of 40 to 7 tokens, completions of 1 to 30."""
    g = torch.Generator().manual_seed(0)

    def draw(n: int) -> list[int]:
        return torch.randint(3, 4096, (n,), generator=g).tolist()

    prompts = [draw(n) for n in (40, 7, 23)]
    lengths = [(1, 30, 12, 5), (9, 9, 2, 20), (30, 1, 17, 3)]
    return [(prompt, draw(n)) for prompt, ns in zip(prompts, lengths, strict=True) for n in ns]


def _batch(rows: list[tuple[list[int], list[int]]], device: torch.device) -> Batch:
    return Batch(
        [prompt for prompt, _ in rows[::4]], [c for _, c in rows], [True] * len(rows), 2, device
    )


def _head_error(scale: Scale) -> dict[str, float]:
    """Error of a chunked output layer's log-probabilities and gradient, relative to float64."""
    g = torch.Generator().manual_seed(0)
    states, weight = torch.randn(64, 128, generator=g), torch.randn(5000, 128, generator=g) / 11
    chosen = torch.randint(0, 5000, (64,), generator=g)
    results = []
    for device, dtype in ((torch.device("cpu"), torch.float64), (scale.device, scale.dtype)):
        x, w = (t.to(scale.dtype).to(device, dtype).requires_grad_() for t in (states, weight))
        picked, _ = LogprobsFromStates.apply(x, w, None, chosen.to(device), 1.0, False)
        (gradient,) = torch.autograd.grad(picked.sum(), w)
        results.append((picked.detach().double().cpu(), gradient.double().cpu()))
    (picked, gradient), (found, found_gradient) = results
    return {
        "head_max_error": float((found - picked).abs().max()),
        "head_gradient_error": float((found_gradient - gradient).norm() / gradient.norm()),
    }


def _sampler_difference(policy: Policy, prompts: list[list[int]]) -> dict[str, float]:
    """How far the sampler's log-probabilities are from the learner's, in nats."""
    rollouts = _sample(policy, prompts, SamplingParams(4, 16, 1.0, keep_logprobs=True))
    batch = _batch_of(rollouts, policy)
    with torch.no_grad():
        learner = token_logprobs(policy.model, batch, 1.0)[0]
    sampled = batch.padded_sampling_logprobs
    assert sampled is not None
    difference = (learner.float() - sampled).abs()[batch.completion_mask]
    return {
        "sampler_mean_difference": float(difference.mean()),
        "sampler_max_difference": float(difference.max()),
    }


# ---- speed ---------------------------------------------------------------------------------------


def decoding(scale: Scale) -> dict[str, Any]:
    """Tokens a second, beside the time in which the card reads weights and caches once a token."""
    work = scale.work
    with _policy(work, scale) as policy, _warnings() as warnings:
        prompts = _prompts(work)
        params = SamplingParams(work.group_size, work.new_tokens, 1.0)
        seconds = median_seconds(lambda: _sample(policy, prompts, params), times=2)
        num_rows = work.prompts * work.group_size
        per_token = cache_bytes(policy.model.config, policy.model.dtype.itemsize)
        # Own tokens of every row, half of them on average, and every prompt once.
        cache = per_token * (num_rows * work.new_tokens // 2 + work.prompts * work.prompt_tokens)
        weights = sum(p.numel() * p.element_size() for p in policy.model.parameters())
        copy_bytes_per_second, _ = _bounds(scale)
        # A copy reads and writes; decoding only reads, so the bound is at most this.
        bound = work.new_tokens * (weights + cache) / copy_bytes_per_second
        result = {
            "decode_seconds": seconds,
            "tokens_per_second": num_rows * work.new_tokens / seconds,
            "bandwidth_bound_ratio": seconds / bound,
            "warnings": "; ".join(warnings) or "none",
        }
        return result | _synchronisations(policy, prompts, work)


def _synchronisations(policy: Policy, prompts: list[list[int]], work: Workload) -> dict[str, float]:
    """Times a token on which the host reads a value from the device and so waits for it."""
    params = SamplingParams(work.group_size, min(32, work.new_tokens), 1.0)
    _sample(policy, prompts, params)
    activities, waits = [ProfilerActivity.CPU], {"aten::_local_scalar_dense", "aten::nonzero"}
    if policy.device.type == "cuda":
        # Every read of a value waits in one of these calls, and so does recording a CUDA graph.
        activities.append(ProfilerActivity.CUDA)
        waits = {f"cuda{what}Synchronize" for what in ("Stream", "Device", "Event")}
    with profile(activities=activities) as profiled:
        _sample(policy, prompts, params)
    count = sum(e.count for e in profiled.key_averages() if e.key in waits)
    return {"host_waits_per_token": count / params.max_new_tokens}


def waiting(scale: Scale) -> dict[str, Any]:
    """Tokens a second where memory has room for a quarter of the prompts and texts end early.

    Waiting prompts begin in the place of ended rows, or (waves) when all others have ended.
    """
    work = scale.work
    params = SamplingParams(work.group_size, work.new_tokens, 1.0)
    # Of random weights, so that a text has a third of the tokens on average.
    ends = frozenset(range(max(1, 3 * work.shape["vocab_size"] // work.new_tokens)))
    batches = [([*range(work.prompts)], max(1, work.prompts // 4))]
    result = {}
    with (
        _policy(work, scale) as policy,
        patch.object(rollout_sample, "decode_batches", lambda *_: batches),
    ):
        policy, prompts = replace(policy, end_ids=ends), _prompts(work)
        for name, joins in (("joined", True), ("waves", False)):
            with patch.object(FixedCaches, "can_join", joins):
                _sample(policy, prompts, params)
                started = now()
                rollouts = _sample(policy, prompts, params)
                num_tokens = sum(len(r.completion_ids) for r in rollouts)
                result[f"{name}_tokens_per_second"] = num_tokens / (now() - started)
    return result


def turns(scale: Scale) -> dict[str, Any]:
    """Sampling in four turns with tools, beside the same texts read anew in each turn.

    The sampler's log-probabilities beside the learner's show whether kept caches are right.
    """
    work = scale.work
    with (
        _policy(work, scale) as policy,
        Instances(find_environment("Calculator"), 5.0, lambda: None) as instances,
    ):
        num_rows = work.prompts * work.group_size
        instances.start([{}] * num_rows, [0] * num_rows)
        bench = Bench(policy, _prompts(work), work.group_size, instances)
        kept = median_seconds(lambda: bench.play(TurnSampler), times=2)
        anew = median_seconds(lambda: bench.play(ReadAnew), times=2)
        texts = bench.play(TurnSampler)
        return {
            "turns_seconds": kept,
            "read_anew_seconds": anew,
            "tool_seconds": texts.tool_seconds,
            "sampler_learner_max_difference": bench.apart(texts),
        }


def update(scale: Scale) -> dict[str, Any]:
    """Seconds of an update, beside 6 operations a weight and token at the card's matrix rate."""
    return _update(scale, lora_rank=0)


def lora(scale: Scale) -> dict[str, Any]:
    """The same with adapters of rank 16, and decoding with them."""
    work = scale.work
    with _policy(work, scale, lora_rank=16) as policy:
        params = SamplingParams(work.group_size, min(64, work.new_tokens), 1.0)
        prompts = _prompts(work)
        seconds = median_seconds(lambda: _sample(policy, prompts, params), times=2)
        num_tokens = work.prompts * work.group_size * params.max_new_tokens
    return {"decode_tokens_per_second": num_tokens / seconds} | _update(scale, lora_rank=16)


def _update(scale: Scale, lora_rank: int) -> dict[str, Any]:
    work = scale.work
    with _policy(work, scale, lora_rank=lora_rank) as policy:
        params = SamplingParams(work.group_size, work.new_tokens, 1.0)
        batch = _batch_of(_sample(policy, _prompts(work), params), policy)
        config = config_of(replace(work, shape={}), "")  # of the learner; the model is there
        settings = LearnerSettings(config.algorithm, config.train, 1e-5)
        learner = Learner(policy.model, None, settings)
        advantages = torch.linspace(-1, 1, len(batch), device=policy.device)
        with _warnings() as warnings:
            seconds = median_seconds(lambda: learner.update(batch, advantages), times=2)
        num_tokens = sum(map(len, batch.prompts)) + sum(map(len, batch.completions))
        _, rate = _bounds(scale)
        # Forward 2 operations a weight and token, backward 4; of LoRA 2, with frozen weights.
        operations = (4 if lora_rank else 6) * policy.num_parameters * num_tokens
        return {
            "update_seconds": seconds,
            "share_of_matrix_rate": operations / seconds / rate,
            "peak_mib": peak_memory_mib(),
            "warnings": "; ".join(warnings) or "none",
        }


def memory(scale: Scale) -> dict[str, Any]:
    """The estimate of "Check model" beside the measured peak of a run."""
    work = replace(scale.work, steps=2)
    with tempfile.TemporaryDirectory() as folder:
        make_folder(work, Path(folder))
        config = config_of(work, folder)
        steps: list[StepCompleted] = []
        train(
            config,
            lambda event: steps.append(event) if isinstance(event, StepCompleted) else None,
            RunControl(),
        )
        policy = load_policy(config.model, 0)
    num_parameters = policy.num_parameters
    size = ModelSize(policy.model.config, num_parameters, num_parameters, policy.model.dtype)
    parts, _ = estimate(config, size, recomputes=False)
    peak = max(s.metrics.peak_memory_mib or 0 for s in steps)
    estimated = sum(parts.values()) / 2**20
    return {
        "estimate_mib": estimated,
        "peak_mib": peak,
        "estimate_of_peak": estimated / peak,
        "seconds_of_a_step": steps[-1].metrics.step_seconds,
    }


# ---- whole runs ----------------------------------------------------------------------------------


def default_run(scale: Scale) -> dict[str, Any]:
    """The default run as a person starts it: its held-out accuracy rises as on a CPU."""
    with tempfile.TemporaryDirectory() as folder:
        return _numbers(_command(folder, "train", "--set", f"train.steps={scale.steps}"))


def resume(scale: Scale) -> dict[str, Any]:
    """A run of 4 steps, and a branch from its step 2: how far their losses and KLs are apart.

    0 on a CPU. A GPU sums in an order of its own.
    """
    options = ("train.steps=4", "train.checkpoint_every=2", "task.heldout_size=0")
    with tempfile.TemporaryDirectory() as folder:
        whole = _command(folder, "train", *(x for o in options for x in ("--set", o)))
        branch = _command(folder, "resume", "last", "--step", "2", "--name", "branch")
        store = Store(f"{folder}/runs.sqlite")
        rows = [store.steps_between(r["run_id"], 3, 4) for r in (whole, branch)]
        store.close()
    return _differences(*rows)


def deterministic(scale: Scale) -> dict[str, Any]:
    """The same 4 steps twice with train.deterministic, and once without.

    The differences are those of the first two runs. seconds_of_plain: the mean seconds of a step
    with it, divided by those of a step without.
    """
    common = ("train.steps=4", "train.checkpoint_every=0", "task.heldout_size=0")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        # "false" comes last: cuBLAS reads its setting once, when this process first uses it.
        for on in ("true", "true", "false"):
            options = (*common, f"train.deterministic={on}")
            run = _command(folder, "train", *(x for o in options for x in ("--set", o)))
            store = Store(f"{folder}/runs.sqlite")
            rows.append(store.steps_between(run["run_id"], 1, 4))
            store.close()
    # The first step also loads kernels.
    seconds = [statistics.fmean(s["step_seconds"] for s in steps[1:]) for steps in rows]
    return _differences(rows[0], rows[1]) | {"seconds_of_plain": seconds[1] / seconds[2]}


def _differences(one: Sequence[Any], other: Sequence[Any]) -> dict[str, Any]:
    """How far two runs are apart in the same steps."""
    pairs = list(zip(one, other, strict=True))
    return {
        f"{name}_largest_difference": max(abs(a[name] - b[name]) for a, b in pairs)
        for name in ("loss", "kl", "reward_mean")
    }


def w4(scale: Scale) -> dict[str, Any]:
    """A step beside TRL's: 0.5 billion parameters, 8 prompts of 512 tokens, 16 × 512 new ones."""
    return _beside_trl(scale.workloads[0])


def w4_ragged(scale: Scale) -> dict[str, Any]:
    """The same with lengths that differ from text to text."""
    return _beside_trl(scale.workloads[1])


def _beside_trl(workload: str) -> dict[str, Any]:
    options = ["--workload", workload, "--pairs", "1", "--threads", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    [result] = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        name: result[name] for name in ("speed_ratio", "memory_ratio", "ours", "peer", "failed")
    }


def _command(folder: str, *arguments: str) -> dict[str, Any]:
    """A command of the command line in this process: its last line of JSON."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as err:
        code = cli.main([*arguments, "--db", f"{folder}/runs.sqlite", "--json"])
    if code:
        raise RuntimeError(err.getvalue()[-2000:])
    return json.loads(out.getvalue().strip().splitlines()[-1])


def _numbers(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if isinstance(v, (int, float)) and math.isfinite(v)}


# ---- shared --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _policy(work: Workload, scale: Scale, lora_rank: int = 0) -> Iterator[Policy]:
    """A random-weight model of the workload's shape; its texts do not end early."""
    with tempfile.TemporaryDirectory() as folder:
        make_folder(replace(work, dtype=scale.work.dtype), Path(folder))
        settings = {"name": folder, "dtype": scale.work.dtype, "lora_rank": lora_rank}
        config = ModelConfig.model_validate(settings)
        policy = load_policy(config, 0, torch.device(scale.device))
    yield replace(policy, end_ids=frozenset({-1}))


def _prompts(work: Workload) -> list[list[int]]:
    g = torch.Generator().manual_seed(0)
    size = (work.prompts, work.prompt_tokens)
    return torch.randint(3, work.shape["vocab_size"], size, generator=g).tolist()


def _sample(policy: Policy, prompts: list[list[int]], params: SamplingParams) -> list[Rollout]:
    generator = torch.Generator(policy.device).manual_seed(0)
    return sample_groups(policy, prompts, params, generator)


def _batch_of(rollouts: list[Rollout], policy: Policy) -> Batch:
    prompts: list[Any] = []
    sizes: list[int] = []
    for rollout in rollouts:
        if not prompts or prompts[-1] is not rollout.prompt_ids:
            prompts.append(rollout.prompt_ids)
            sizes.append(0)
        sizes[-1] += 1
    logprobs = [r.sampling_logprobs for r in rollouts]
    return Batch(
        prompts,
        [r.completion_ids for r in rollouts],
        [True] * len(rollouts),
        policy.pad_id,
        policy.device,
        sampling_logprobs=None if logprobs[0] is None else logprobs,  # pyright: ignore
        sizes=sizes,
    )


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the product logs meanwhile: a fast path that was given up says so."""
    messages: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler, logger = Kept(logging.WARNING), logging.getLogger("grpo_studio")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
