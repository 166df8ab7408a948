"""How long do the inspector's views take on a large store? Prints one line a view, with the median and the 95th percentile.

    python benchmarks/inspector.py [--steps 2000] [--groups 8] [--size 16] [--keep FILE] [--beside]

Fills a file with one run of completions of about 250 characters (or takes the run that is there) and asks what the page asks.
--beside: while a thread records a step every half second, as training does.
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from grpo_core.analysis import what_if as whatif
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

WORDS = [
    "the",
    "sum",
    "of",
    "numbers",
    "is",
    "so",
    "we",
    "add",
    "carry",
    "first",
    "second",
    "digit",
    "therefore",
    "answer",
    "check",
    "again",
    "result",
    "equals",
]
VERDICTS = ("healthy", "healthy", "healthy", "phantom", "all_right", "all_wrong", "truncated")


def rollout(rng: random.Random) -> Rollout:
    right, form = float(rng.random() < 0.5), rng.choice((0.0, 0.5, 1.0))
    text = " ".join(
        rng.choice(WORDS) if rng.random() < 0.7 else str(rng.randint(0, 9999)) for _ in range(45)
    )
    return Rollout(
        Completion(
            f"<think>{text}</think><answer>{rng.randint(0, 999)}</answer>",
            "length" if rng.random() < 0.05 else "stop",
            rng.randint(20, 400),
        ),
        {"accuracy": right, "format": form, "language": 1.0, "reasoning": 1.0},
        right + 0.2 * form + 0.1,
        rng.gauss(0, 1),
    )


def record_step(record: Recorder, step: int, groups: int, size: int, rng: random.Random) -> None:
    prompts = (rng.randint(0, 5000) for _ in range(groups))
    record(
        GroupsScored(
            step,
            tuple(
                Group(
                    Prompt(f"p{n}", f"What is {n} + {n + 1}?", str(2 * n + 1), "sums"),
                    tuple(rollout(rng) for _ in range(size)),
                    rng.random(),
                    0.3,
                    rng.choice(VERDICTS),
                )
                for n in prompts
            ),
        )
    )
    record(
        StepCompleted(
            step,
            StepMetrics(
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
            ),
            {"score/accuracy": rng.random()},
        )
    )


def fill(store: Store, steps: int, groups: int, size: int) -> str:
    config = parse(
        nest({"train.steps": steps, "train.group_size": size, "train.prompts_per_step": groups})
    )
    run_id = store.create_run(
        config.model_copy(update={"rubric": resolve_rubric(config.rubric)}), "large"
    )
    rng, started = random.Random(0), time.perf_counter()
    with store.writing() as writer, Recorder(store, run_id) as record:
        for first in range(1, steps + 1, 100):
            with writer.transaction():  # one commit for many steps: this is not what is measured
                for step in range(first, min(first + 100, steps + 1)):
                    record_step(record, step, groups, size, rng)
    store.set_status(run_id, RunStatus.FINISHED)
    print(
        f"filled {steps * groups * size:,} rollouts in {time.perf_counter() - started:.0f} s, {store.file_bytes() / 1e6:.0f} MB"
    )
    return run_id


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--keep", help="leave the file here, or take the one that is here")
    parser.add_argument("--beside", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.keep or f"{folder}/bench.sqlite"
        if not Path(path).exists():
            fill(Store(path), args.steps, args.groups, args.size)
        measure(path, args)


def measure(path: str, args: argparse.Namespace) -> None:
    started = time.perf_counter()
    store = Store(path)
    run = store.runs()[-1]
    store.groups(run.id)
    print(
        f"{'open, and the first page of groups':<46}{(time.perf_counter() - started) * 1e3:8.1f} ms"
    )
    done = threading.Event()
    if args.beside:
        threading.Thread(target=train_beside, args=(store, args, done), daemon=True).start()
    for name, ask in questions(store, run.id).items():
        seconds = sorted(
            timed(ask) for _ in range(3 if name.startswith("what if, the whole") else 20)
        )
        print(
            f"{name:<46}{statistics.median(seconds) * 1e3:8.1f} ms   p95 {seconds[int(0.95 * (len(seconds) - 1))] * 1e3:.1f}",
            flush=True,
        )
    done.set()


def train_beside(store: Store, args: argparse.Namespace, done: threading.Event) -> None:
    config, rng, step = parse(nest({"train.steps": 1_000_000})), random.Random(1), 0
    run_id = store.create_run(config, "beside")
    with Recorder(store, run_id) as record:
        while not done.wait(0.5):
            record_step(record, step := step + 1, args.groups, args.size, rng)
    store.set_status(run_id, RunStatus.STOPPED)


def questions(store: Store, run_id: str) -> dict[str, Callable[[], Any]]:
    from ui.server.views import Views
    from ui.tabs.inspect import FIRST, ShowGroups, ShowInspect
    from ui.tabs.inspect_group import ShowOpened

    last = store.last_step_with_groups(run_id)
    prompt = store.group(store.group_ids(run_id, last)[0]).prompt_id

    def page(
        look: str = "cards",
        mode: str = "groups",
        said: dict[str, Any] | None = None,
        search: str = "",
        **filters: Any,
    ) -> Callable[[], Any]:
        def ask() -> Any:
            views = Views(store)  # nothing kept from the time before
            return ShowInspect(ShowGroups(views), ShowOpened(views))(
                run_id,
                "inspect",
                search,
                "",
                "",
                json.dumps({**FIRST, "mode": mode, **filters}),
                f"{last // 2}/1",
                "{}",
                look,
                "best",
                json.dumps({look: said or {}}),
                "{}",
            )

        return ask

    config = whatif.settings(store.run(run_id).config, {"format": 1.0})
    return {
        "page: groups and completions": page(),
        "page: verdict": page(verdict="phantom"),
        "page: by spread": page(sort="reward_std"),
        "page: tokens": page("tokens"),
        "page: what if, a group": page("whatif", said={"w:format": "1"}),
        "page: through time": page("time"),
        "page: two runs": page("runs"),
        "page: rollouts": page(mode="rollouts"),
        "page: rollouts, long and right": page(
            mode="rollouts", where={"reward_from": "1.2", "tokens_from": "390"}
        ),
        "page: rollouts, by advantage": page(mode="rollouts", where={"sort": "advantage"}),
        "page: rollouts, cut": page(mode="rollouts", where={"finish": "length"}),
        "page: rollouts with a text (index first)": page(mode="rollouts", search="carry first 12"),
        "page: rollouts with a common text": page(mode="rollouts", search="answer"),
        "page: rollouts with a text that is nowhere": page(mode="rollouts", search="xyzzy"),
        "what if, the whole run": lambda: whatif.what_if(store, run_id, config),
        "visits": lambda: store.visits(run_id, prompt),
        "verdicts over time": lambda: store.verdict_series(run_id),
    }


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
