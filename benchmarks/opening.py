"""Does a large store open at once, and does every view answer at once, while a run is training beside it? Prints one line a question.

    python benchmarks/opening.py [--steps 2000] [--groups 8] [--size 16] [--times 20] [--keep FILE]

Fills a file with a run of that size (or takes the one that is there), starts app.py over it, begins a default run in the same server, and
asks for every view over HTTP as a browser does, another group each time, so that nothing kept helps. Asked: opens ≤ 1.5 s, p95 ≤ 300 ms.
With Chromium and playwright it opens the page in a real browser too. Ends with exit code 1 if a limit was missed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from inspector import fill

from grpo_core.store import Store
from ui.tabs.inspect import FIRST

ROOT = Path(__file__).parents[1]
OPEN_SECONDS, ANSWER_SECONDS = 1.5, 0.3
LOOKS = {
    "completions": "cards",
    "best and worst": "ends",
    "tokens": "tokens",
    "what if, a group": "whatif",
    "through time": "time",
    "two runs": "runs",
}


class Server:
    """app.py, spoken to as a tab of a browser speaks to it."""

    def __init__(self, db: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port), "--db", db],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.process.stdout.readline()
        config = self._ask("/config")
        self.ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
        self.values = {c["id"]: c["props"].get("value") for c in config["components"]}
        labels = {
            c["props"].get("label"): c["id"]
            for c in config["components"]
            if c["type"] in ("number", "textbox")
        }
        self.steps = labels["Steps"]
        self.tick = next(
            d for d in config["dependencies"] if any(t[1] == "tick" for t in d["targets"])
        )
        self.start = next(
            d
            for d in config["dependencies"]
            if any(t == [self.ids["start"], "click"] for t in d["targets"])
        )

    def _ask(self, path: str, data: dict[str, Any] | None = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        with urllib.request.urlopen(
            urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"}),
            timeout=60,
        ) as answer:
            return json.load(answer)

    def show(self, **shown: Any) -> list[tuple[int, Any]]:
        """What is new on the page; `shown`: elem_id (with _ for -) -> what it holds there."""
        now = self.values | {
            self.ids[name.replace("_", "-")]: value for name, value in shown.items()
        }
        return self._ask(
            "/studio/show", {"name": "poll", "given": [now.get(i) for i in self.tick["inputs"]]}
        )

    def remember(self, run: str) -> None:
        """What the page holds once it has shown this run, as a browser remembers it: then only what is asked for is drawn again."""
        self.values[self.ids["run"]] = run
        for place, value in self.show():
            if not (isinstance(value, dict) and value.get("__type__") == "update"):
                self.values[self.tick["outputs"][place]] = value

    def train(self, steps: int) -> None:
        self.values[self.steps] = steps
        self._ask(
            "/gradio_api/run/predict",
            {
                "fn_index": self.start["id"],
                "data": [self.values.get(i) for i in self.start["inputs"]],
            },
        )


def questions(last: int, rng: random.Random) -> dict[str, Any]:
    """Name of a view -> what the page holds when it asks for it, made anew for every request."""

    def inspect(look: str = "cards", search: str = "", mode: str = "groups", **filters: Any) -> Any:
        return lambda: {
            "state_inspect_seen": "{}",
            "state_inspect_looked": "{}",
            "state_tab": "inspect",
            "search": search,
            "look": look,
            "state_inspect_filters": json.dumps({**FIRST, "mode": mode, **filters}),
            "state_inspect_opened": f"{rng.randint(1, last)}/{rng.randint(0, 7)}",
            "state_inspect_said": json.dumps({"whatif": {"w:format": str(rng.random())}}),
        }

    views = {f"inspect: {name}": inspect(look) for name, look in LOOKS.items()}
    views |= {
        "inspect: one verdict": inspect(verdict="phantom"),
        "inspect: by spread": inspect(sort="reward_std"),
        "inspect: page 200": inspect(offset=5000),
        "inspect: groups with a rare text": inspect(search="carry first 12"),
        "inspect: groups with a common text": inspect(search="answer"),
        "inspect: all completions": inspect(mode="rollouts"),
        "inspect: completions, by advantage": inspect(mode="rollouts", where={"sort": "advantage"}),
        "inspect: completions, long and right": inspect(
            mode="rollouts", where={"reward_from": "1.2", "tokens_from": "390"}
        ),
        "inspect: completions with a rare text": inspect(mode="rollouts", search="carry first 12"),
        "inspect: completions with a common text": inspect(mode="rollouts", search="answer"),
        "inspect: completions with a text that is nowhere": inspect(
            mode="rollouts", search="xyzzy"
        ),
    }
    views["train: curves and a group"] = lambda: {
        "state_pin": f"{rng.randint(1, last)}/0",
        "smoothing": round(rng.random() * 0.9, 2),
    }
    views["runs"] = lambda: {"state_tab": "runs"}
    return views


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("steps", 2000), ("groups", 8), ("size", 16), ("times", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep", help="leave the file here, or take the one that is here")
    args = parser.parse_args()
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        path = args.keep or f"{folder}/opening.sqlite"
        if not Path(path).exists():
            fill(Store(path), args.steps, args.groups, args.size)
        run = next(r for r in Store(path).runs() if r.name == "large")
        server = Server(path)
        try:
            server.train(100_000)
            store = Store(path)
            while not next(r for r in store.runs() if r.id != run.id).steps_done:
                time.sleep(0.2)
            server.remember(run.id)
            for seconds in opened(server, run.id):
                missed += report("open the page in a browser", seconds, OPEN_SECONDS)
            for name, ask in questions(run.steps_done, random.Random(0)).items():
                missed += report(
                    name, [timed(server, ask()) for _ in range(args.times)], ANSWER_SECONDS
                )
            training = next(r for r in store.runs() if r.id != run.id)
            print(
                f"beside it {training.steps_done} steps were trained, the last at {store.steps(training.id)[-1]['step_seconds']:.2f} s"
            )
        finally:
            server.process.terminate()
            server.process.wait(timeout=30)
    print(f"missed: {', '.join(missed)}" if missed else "every limit kept")
    return len(missed) > 0


def timed(server: Server, shown: dict[str, Any]) -> float:
    started = time.perf_counter()
    server.show(**shown)
    return time.perf_counter() - started


def opened(server: Server, run: str) -> list[list[float]]:
    """Seconds from the address to a group on the screen, five fresh browsers' worth; nothing where there is no browser."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("open the page in a browser: not measured, there is no chromium or no playwright")
        return []
    seconds = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        for n in range(5):
            context = browser.new_context()
            page = context.new_page()
            started = time.perf_counter()
            page.goto(f"{server.url}/?tab=inspect&run={run}&step={n + 2}")
            page.locator("#look-body article").first.wait_for(timeout=60_000)
            seconds.append(time.perf_counter() - started)
            context.close()
        browser.close()
    return [seconds]


def report(name: str, seconds: list[float], limit: float) -> list[str]:
    inorder = sorted(seconds)
    p95 = inorder[min(len(inorder) - 1, round(0.95 * (len(inorder) - 1)))]
    print(
        f"{name:<48} median {inorder[len(inorder) // 2] * 1e3:7.0f} ms   p95 {p95 * 1e3:7.0f} ms   {'' if p95 <= limit else f'over {limit * 1e3:.0f} ms'}",
        flush=True,
    )
    return [name] if p95 > limit else []


if __name__ == "__main__":
    sys.exit(main())
