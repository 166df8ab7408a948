"""What turns and tools cost a step of 64 live environments.

    python -m benchmarks.environments                                     # random weights
    python -m benchmarks.environments --model FOLDER --prompt-tokens 600 --prompts 2

A text has up to four turns. A turn ends at each token with probability 1/16 or so, and the
calculator answers with 24 tokens. Beside it: the same texts, read anew in each turn; and texts
with as many tokens in one turn, without tools.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.sides import config_of
from benchmarks.workloads import GROWING, Workload, make_folder
from grpo_core.config import ModelConfig
from grpo_core.environments.instances import Call, Instances
from grpo_core.environments.registry import find_environment
from grpo_core.learner import Batch, Learner, LearnerSettings
from grpo_core.learner.logprobs import token_logprobs
from grpo_core.models import Policy, load_policy
from grpo_core.rollout import (
    SamplingHooks,
    SamplingParams,
    TurnSampler,
    random_numbers,
    sample_groups,
    sampling,
)

TURNS, TOKENS, ANSWER_TOKENS, ENDS_EVERY = 4, 160, 24, 16


class ReadAnew(TurnSampler):
    """Keeps no caches."""

    def _keeps(self) -> bool:
        return False


@dataclass(slots=True)
class Texts:
    """Own tokens of each row, which of them the policy wrote, and their log-probabilities.

    tool_seconds: of all calls.
    """

    ids: list[list[int]]
    actions: list[list[bool]]
    logprobs: list[list[float]]
    tool_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Bench:
    """A policy, its prompts, and one calculator a row."""

    policy: Policy
    prompts: list[list[int]]
    group_size: int
    instances: Instances

    def play(self, kind: type[TurnSampler]) -> Texts:
        """Turns with tools."""
        ends = frozenset(range(0, self.vocabulary, ENDS_EVERY))
        policy, params = replace(self.policy, end_ids=ends), self.params(TOKENS)
        uniforms = random_numbers(len(self.prompts), params, self.generator())
        rows = list(range(len(self.prompts) * self.group_size))
        texts = Texts([[] for _ in rows], [[] for _ in rows], [[] for _ in rows])
        answer = list(range(3, 3 + ANSWER_TOKENS))
        with sampling(policy, uniforms.numel()):
            sampler = kind(policy, self.prompts, params, uniforms, SamplingHooks())
            rollouts = sampler.first()
            for turn in range(TURNS):
                going = []
                for i, r in zip(rows, rollouts, strict=True):
                    texts.ids[i] += r.completion_ids
                    texts.actions[i] += [True] * len(r.completion_ids)
                    texts.logprobs[i] += r.sampling_logprobs or ()
                    room = len(texts.ids[i]) + ANSWER_TOKENS < TOKENS
                    if r.completion.finish_reason == "stop" and room and turn < TURNS - 1:
                        going.append(i)
                if not going:
                    break
                started = time.perf_counter()
                calls = [Call(i, "calculate", {"expression": "34*57"}, i) for i in going]
                assert not any(a.error for a in self.instances.call(calls))
                texts.tool_seconds += time.perf_counter() - started
                for i in going:
                    texts.ids[i] += answer
                    texts.actions[i] += [False] * ANSWER_TOKENS
                    texts.logprobs[i] += [0.0] * ANSWER_TOKENS
                rows = going
                whole = [[*self.prompts[i // self.group_size], *texts.ids[i]] for i in rows]
                rollouts = sampler.next(rows, whole, [TOKENS - len(texts.ids[i]) for i in rows])
        return texts

    def write(self, num_tokens: int) -> Texts:
        """One turn of so many tokens a row."""
        policy = replace(self.policy, end_ids=frozenset({-1}))
        params = self.params(num_tokens)
        rollouts = sample_groups(policy, self.prompts, params, self.generator())
        ids = [[*r.completion_ids] for r in rollouts]
        logprobs = [[*(r.sampling_logprobs or ())] for r in rollouts]
        return Texts(ids, [[True] * len(row) for row in ids], logprobs)

    def generator(self) -> torch.Generator:
        return torch.Generator(self.policy.device).manual_seed(0)

    def update(self, texts: Texts) -> None:
        """The update of a step."""
        config = config_of(Workload("", 1, shape={}, new_tokens=TOKENS), "")
        settings = LearnerSettings(config.algorithm, config.train, 1e-6)
        batch = self.batch(texts)
        advantages = torch.ones(len(batch), device=self.policy.device)
        Learner(self.policy.model, None, settings).update(batch, advantages)

    def batch(self, texts: Texts) -> Batch:
        return Batch(
            self.prompts,
            texts.ids,
            [True] * len(texts.ids),
            self.policy.pad_id,
            self.policy.device,
            texts.logprobs,
            actions=None if all(map(all, texts.actions)) else texts.actions,
        )

    @torch.no_grad()
    def apart(self, texts: Texts) -> float:
        """How far the sampler's log-probabilities are from the learner's at most, in nats."""
        batch = self.batch(texts)
        learned, _ = token_logprobs(self.policy.model, batch, 1.0)
        assert batch.padded_sampling_logprobs is not None
        difference = (learned - batch.padded_sampling_logprobs).abs()
        return float(difference[batch.completion_mask].max())

    def params(self, num_tokens: int) -> SamplingParams:
        return SamplingParams(self.group_size, num_tokens, 1.0, keep_logprobs=True)

    @property
    def vocabulary(self) -> int:
        return self.policy.model.get_output_embeddings().weight.shape[0]  # pyright: ignore


def median(work: Callable[[], object], times: int) -> float:
    """The median seconds of a call, after one that is not counted."""
    seconds = []
    for _ in range(times + 1):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def measure(bench: Bench, times: int) -> None:
    """Print the seconds of each way, and of a whole step."""
    texts = bench.play(TurnSampler)
    num_rows = len(texts.ids)
    equal = sum(a == b for a, b in zip(texts.ids, bench.play(ReadAnew).ids, strict=True))
    mean = sum(map(len, texts.ids)) // num_rows
    plain = bench.write(mean)
    tools = statistics.median(bench.play(TurnSampler).tool_seconds for _ in range(times))
    rows = {
        "turns, caches kept": (lambda: bench.play(TurnSampler), texts, tools),
        "turns, read anew": (lambda: bench.play(ReadAnew), texts, tools),
        "one turn, no tools": (lambda: bench.write(mean), plain, 0.0),
    }
    observed = 1 - sum(map(sum, texts.actions)) / sum(map(len, texts.ids))
    print(f"{num_rows} rows of {mean} tokens on average, {observed:.0%} of them answers of tools")
    print(f"{equal} rows are the same when they are read anew; rounding decides in the others")
    print(
        f"log-probabilities of sampling and learning differ by {bench.apart(texts):.1e} at most\n"
    )
    print("| | sampling s | of it tools s | update s | step without tools s | ratio |")
    print("|---|---|---|---|---|---|")
    found = {}
    for name, (sample, written, tool_seconds) in rows.items():
        seconds = median(sample, times)
        update = median(lambda written=written: bench.update(written), times)
        found[name] = seconds, tool_seconds, update, seconds - tool_seconds + update
    last = [*found.values()][-1][-1]
    for name, values in found.items():
        figures = " | ".join(f"{v:.3f}" for v in values)
        print(f"| {name} | {figures} | {values[-1] / last:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder of a model; random weights of 4 layers without")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if not options.model:
            make_folder(Workload("", 1, shape=GROWING), Path(folder))
        config = ModelConfig(name=options.model or folder)
        policy = load_policy(config, 0, torch.device("cpu"))
    rng, size = random.Random(0), policy.model.get_output_embeddings().weight.shape[0]  # pyright: ignore
    prompts = [
        [rng.randrange(3, size) for _ in range(options.prompt_tokens)]
        for _ in range(options.prompts)
    ]
    with Instances(find_environment("Calculator"), 5.0, lambda: None) as instances:
        rows = options.prompts * options.group_size
        instances.start([{}] * rows, [0] * rows)
        measure(Bench(policy, prompts, options.group_size, instances), options.times)


if __name__ == "__main__":
    main()
