"""How fast does a large store open, and how fast is every view, while a run trains beside it?

    python benchmarks/opening.py [--steps 2000] [--groups 8] [--size 16] [--times 20] [--keep FILE]

Fills a file with a run of that size (or takes the file that is there), starts app.py on it, starts
a default run in the same server, and requests every view over HTTP as a browser does. Each request
shows another group, so caches do not help. Goals: opens in 1.5 s, 95th percentile of a view 300 ms.
With Chromium and playwright it also opens the page in a browser. Exit code 1: a goal was missed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.first_visit import group_shown_seconds, new_browser
from benchmarks.inspector import Size, add_size_arguments, fill
from benchmarks.server import Server
from grpo_core.store import RunRow, Store
from ui.tabs.inspect_filters import FIRST

OPEN_SECONDS, ANSWER_SECONDS = 1.5, 0.3
NUM_BROWSERS = 5
TRAINED_STEPS = 100_000  # more than the measurement lasts
LONG_AND_RIGHT = {"reward_from": "1.2", "tokens_from": "390"}
LOOKS = {
    "completions": "cards",
    "best and worst": "ends",
    "tokens": "tokens",
    "what if, a group": "whatif",
    "through time": "time",
    "two runs": "runs",
}

View = Callable[[], dict[str, Any]]  # element id with _ for - -> what the page holds there


def views(last_step: int, rng: random.Random) -> dict[str, View]:
    """Name of a view -> the page's values when it requests that view, new for every request."""

    def inspect(
        look: str = "cards", search: str = "", mode: str = "groups", **filters: Any
    ) -> View:
        return lambda: {
            "state_inspect_seen": "{}",
            "state_inspect_looked": "{}",
            "state_tab": "inspect",
            "search": search,
            "look": look,
            "state_inspect_filters": json.dumps({**FIRST, "mode": mode, **filters}),
            "state_inspect_opened": f"{rng.randint(1, last_step)}/{rng.randint(0, 7)}",
            "state_inspect_said": json.dumps({"whatif": {"w:format": str(rng.random())}}),
        }

    def completions(search: str = "", **filters: Any) -> View:
        return inspect(search=search, mode="rollouts", **filters)

    return {
        **{f"inspect: {name}": inspect(look) for name, look in LOOKS.items()},
        "inspect: one verdict": inspect(verdict="phantom"),
        "inspect: by spread": inspect(sort="reward_std"),
        "inspect: page 200": inspect(offset=5000),
        "inspect: groups with a rare text": inspect(search="carry first 12"),
        "inspect: groups with a common text": inspect(search="answer"),
        "inspect: all completions": completions(),
        "inspect: completions, by advantage": completions(where={"sort": "advantage"}),
        "inspect: completions, long and right": completions(where=LONG_AND_RIGHT),
        "inspect: completions with a rare text": completions("carry first 12"),
        "inspect: completions with a common text": completions("answer"),
        "inspect: completions with a text that is nowhere": completions("xyzzy"),
        "train: curves and a group": lambda: {
            "state_pin": f"{rng.randint(1, last_step)}/0",
            "smoothing": round(rng.random() * 0.9, 2),
        },
        "runs": lambda: {"state_tab": "runs"},
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_size_arguments(parser)
    parser.add_argument("--times", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.keep or f"{folder}/opening.sqlite"
        if not Path(path).exists():
            fill(Store(path), args.steps, Size(args.groups, args.size))
        server = Server(path)
        try:
            missed = measure(server, Store(path), args.times)
        finally:
            server.close()
    print(f"missed: {', '.join(missed)}" if missed else "every goal met")
    return len(missed) > 0


def measure(server: Server, store: Store, times: int) -> list[str]:
    """Print a line for each view; the names of those that missed their goal."""
    run = next(r for r in store.runs() if r.name == "large")

    def beside() -> RunRow:
        return next(r for r in store.runs() if r.id != run.id)

    server.values[server.labels["Steps"]] = TRAINED_STEPS
    server.press_start()
    while not beside().steps_done:
        time.sleep(0.2)
    show_run(server, run.id)
    missed = []
    if seconds := opening_seconds(server, run.id):
        missed += report("open the page in a browser", seconds, OPEN_SECONDS)
    for name, view in views(run.steps_done, random.Random(0)).items():
        seconds = [answer_seconds(server, view()) for _ in range(times)]
        missed += report(name, seconds, ANSWER_SECONDS)
    trained = beside()
    step_seconds = store.steps(trained.id)[-1]["step_seconds"]
    print(f"beside it {trained.steps_done} steps were trained, the last in {step_seconds:.2f} s")
    return missed


def show_run(server: Server, run_id: str) -> None:
    """Keep what the page shows of this run, as a browser does, so that later answers are short."""
    server.values[server.ids["run"]] = run_id
    for output, value in server.changes(server.values):
        if not (isinstance(value, dict) and value.get("__type__") == "update"):
            server.values[server.tick["outputs"][output]] = value


def answer_seconds(server: Server, shown: dict[str, Any]) -> float:
    values = {server.ids[name.replace("_", "-")]: value for name, value in shown.items()}
    started = time.perf_counter()
    server.changes(server.values | values)
    return time.perf_counter() - started


def opening_seconds(server: Server, run_id: str) -> list[float]:
    """Seconds from the address to a group on the screen, a fresh browser each time.

    Empty where there is no browser.
    """
    if shutil.which("chromium") is None or find_spec("playwright") is None:
        print("open the page in a browser: not measured, there is no chromium or no playwright")
        return []
    seconds = []
    for n in range(NUM_BROWSERS):
        with new_browser() as page:
            seconds.append(group_shown_seconds(page, server.url, run_id, n + 2))
    return seconds


def report(name: str, seconds: list[float], goal: float) -> list[str]:
    ordered = sorted(seconds)
    median = ordered[len(ordered) // 2]
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    verdict = "" if p95 <= goal else f"over {goal * 1e3:.0f} ms"
    times = f"median {median * 1e3:7.0f} ms   p95 {p95 * 1e3:7.0f} ms"
    print(f"{name:<48} {times}   {verdict}", flush=True)
    return [name] if p95 > goal else []


if __name__ == "__main__":
    sys.exit(main())
