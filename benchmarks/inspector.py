"""How long do the inspector's views take on a large store? Prints one line a view.

    python benchmarks/inspector.py [--steps 2000] [--groups 8] [--size 16] [--keep FILE] [--beside]

Fills a file with one run of completions of about 250 characters (or takes the run that is there)
and computes what the page shows. Prints the median and the 95th percentile.
--beside: a thread records a step every half second meanwhile, as training does.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from grpo_core.analysis import what_if as analysis
from grpo_core.config import nest, parse
from grpo_core.rubric import resolve_rubric
from grpo_core.store import Recorder, Store
from grpo_core.types import (
    Completion,
    Group,
    GroupsScored,
    Prompt,
    Rollout,
    RunStatus,
    StepCompleted,
    StepMetrics,
)

TEXT = (
    "the sum of numbers is so we add carry first second digit therefore answer check again result "
    "equals"
)
WORDS = TEXT.split()
VERDICTS = ("healthy", "healthy", "healthy", "phantom", "all_right", "all_wrong", "truncated")
STEPS_A_COMMIT = 100
TIMES, TIMES_WHOLE_RUN = 20, 3
LONG_AND_RIGHT = {"reward_from": "1.2", "tokens_from": "390"}


@dataclass(frozen=True, slots=True)
class Size:
    """Of one step."""

    groups: int  # P
    completions: int  # G


def add_size_arguments(parser: argparse.ArgumentParser) -> None:
    for name, default in (("steps", 2000), ("groups", 8), ("size", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", help="leave the file here, or take the one that is here")


def rollout(rng: random.Random) -> Rollout:
    right, form = float(rng.random() < 0.5), rng.choice((0.0, 0.5, 1.0))
    text = " ".join(
        rng.choice(WORDS) if rng.random() < 0.7 else str(rng.randint(0, 9999)) for _ in range(45)
    )
    completion = Completion(
        f"<think>{text}</think><answer>{rng.randint(0, 999)}</answer>",
        "length" if rng.random() < 0.05 else "stop",
        rng.randint(20, 400),
    )
    scores = {"accuracy": right, "format": form, "language": 1.0, "reasoning": 1.0}
    return Rollout(completion, scores, right + 0.2 * form + 0.1, rng.gauss(0, 1))


def group(rng: random.Random, num_completions: int) -> Group:
    n = rng.randint(0, 5000)
    return Group(
        Prompt(f"p{n}", f"What is {n} + {n + 1}?", str(2 * n + 1), "sums"),
        tuple(rollout(rng) for _ in range(num_completions)),
        rng.random(),
        0.3,
        rng.choice(VERDICTS),
    )


def record_step(record: Recorder, step: int, size: Size, rng: random.Random) -> None:
    groups = tuple(group(rng, size.completions) for _ in range(size.groups))
    record(GroupsScored(step, groups))
    metrics = StepMetrics(
        reward_mean=rng.random(),
        reward_std=0.4,
        kl=0.01,
        loss=-0.01,
        tokens=9000,
        step_seconds=0.5,
        tied_group_frac=0.2,
        advantage_std=0.9,
        truncated_frac=0.05,
        entropy=0.3,
        unique_frac=0.9,
        completion_tokens_mean=70.0,
    )
    record(StepCompleted(step, metrics, {"score/accuracy": rng.random()}))


def fill(store: Store, steps: int, size: Size) -> str:
    """Record a finished run of that many steps; its id."""
    config = parse(
        nest(
            {
                "train.steps": steps,
                "train.group_size": size.completions,
                "train.prompts_per_step": size.groups,
            }
        )
    )
    spelled_out = config.model_copy(update={"rubric": resolve_rubric(config.rubric)})
    run_id = store.create_run(spelled_out, "large")
    rng, started = random.Random(0), time.perf_counter()
    with store.writing() as writer, Recorder(store, run_id) as record:
        for first in range(1, steps + 1, STEPS_A_COMMIT):
            # One commit for many steps, because writing is not measured here.
            with writer.transaction():
                for step in range(first, min(first + STEPS_A_COMMIT, steps + 1)):
                    record_step(record, step, size, rng)
    store.set_status(run_id, RunStatus.FINISHED)
    num_rollouts = steps * size.groups * size.completions
    seconds = time.perf_counter() - started
    print(f"filled {num_rollouts:,} rollouts in {seconds:.0f} s, {store.file_bytes() / 1e6:.0f} MB")
    return run_id


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_size_arguments(parser)
    parser.add_argument("--beside", action="store_true", help="record steps meanwhile")
    args = parser.parse_args()
    size = Size(args.groups, args.size)
    with tempfile.TemporaryDirectory() as folder:
        path = args.keep or f"{folder}/bench.sqlite"
        if not Path(path).exists():
            fill(Store(path), args.steps, size)
        measure(path, size if args.beside else None)


def measure(path: str, beside: Size | None) -> None:
    """Print a line for each view. beside: the size of the steps that are recorded meanwhile."""
    started = time.perf_counter()
    store = Store(path)
    run = store.runs()[-1]
    store.groups(run.id)
    report("open, and the first page of groups", [time.perf_counter() - started])
    done = threading.Event()
    if beside is not None:
        threading.Thread(target=train_beside, args=(store, beside, done), daemon=True).start()
    for name, call in views(store, run.id).items():
        times = TIMES_WHOLE_RUN if name.startswith("what if, the whole") else TIMES
        report(name, [timed(call) for _ in range(times)])
    done.set()


def report(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    p95 = ordered[int(0.95 * (len(ordered) - 1))]
    median = statistics.median(ordered)
    print(f"{name:<46}{median * 1e3:8.1f} ms   p95 {p95 * 1e3:.1f}", flush=True)


def train_beside(store: Store, size: Size, done: threading.Event) -> None:
    config, rng, step = parse(nest({"train.steps": 1_000_000})), random.Random(1), 0
    run_id = store.create_run(config, "beside")
    with Recorder(store, run_id) as record:
        while not done.wait(0.5):
            step += 1
            record_step(record, step, size, rng)
    store.set_status(run_id, RunStatus.STOPPED)


def views(store: Store, run_id: str) -> dict[str, Callable[[], Any]]:
    """Name of a view -> a function that computes it with empty caches."""
    from ui.server.views import Views
    from ui.tabs.frame import components_of
    from ui.tabs.inspect import InspectInputs, ShowInspect
    from ui.tabs.inspect_filters import FIRST

    last = store.last_step_with_groups(run_id)
    assert last is not None, "the run has no groups"
    prompt_id = store.group(store.group_ids(run_id, last)[0]).prompt_id

    def page(
        view: str = "cards",
        options: dict[str, Any] | None = None,
        search: str = "",
        **filters: Any,
    ) -> Callable[[], Any]:
        inputs = InspectInputs(
            run=run_id,
            tab="inspect",
            search=search,
            low="",
            high="",
            filters=json.dumps({**FIRST, **filters}),
            opened=f"{last // 2}/1",
            seen="{}",
            view=view,
            order="best",
            options=json.dumps({view: options or {}}),
            group_seen="{}",
        )
        return lambda: ShowInspect(Views(store))(*components_of(inputs))

    def rollouts(search: str = "", **filters: Any) -> Callable[[], Any]:
        return page(search=search, mode="rollouts", **filters)

    config = analysis.settings(store.run(run_id).config, {"format": 1.0})
    return {
        "page: groups and completions": page(),
        "page: verdict": page(verdict="phantom"),
        "page: by spread": page(sort="reward_std"),
        "page: tokens": page("tokens"),
        "page: what if, a group": page("whatif", {"w:format": "1"}),
        "page: through time": page("time"),
        "page: two runs": page("runs"),
        "page: rollouts": rollouts(),
        "page: rollouts, long and right": rollouts(where=LONG_AND_RIGHT),
        "page: rollouts, by advantage": rollouts(where={"sort": "advantage"}),
        "page: rollouts, cut": rollouts(where={"finish": "length"}),
        "page: rollouts with a text (index first)": rollouts("carry first 12"),
        "page: rollouts with a common text": rollouts("answer"),
        "page: rollouts with a text that is nowhere": rollouts("xyzzy"),
        "what if, the whole run": lambda: analysis.what_if(store, run_id, config),
        "visits": lambda: store.visits(run_id, prompt_id),
        "verdicts over time": lambda: store.verdict_series(run_id),
    }


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
