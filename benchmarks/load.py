"""Fifty clients and five browsers look at a run. Does it go on as fast, with the same numbers, and does everybody get an answer in time?

    python -m benchmarks.load --clients 50 --browsers 5 --seconds 300
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grpo_core.store import Store
from grpo_core.types import STEP_METRICS

ROOT = Path(__file__).parent.parent
TIMELESS = [n for n in STEP_METRICS if "seconds" not in n and "memory" not in n]


class Page:
    """A server of its own, and what a tab asks of it."""

    def __init__(self, db: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.db = f"http://127.0.0.1:{port}", db
        self.process = subprocess.Popen([sys.executable, "app.py", "--port", str(port), "--db", str(db)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()
        config = self.ask("/config")
        self.values = {c["id"]: c["props"].get("value") for c in config["components"]}
        self.tick = next(d for d in config["dependencies"] if any(t[1] == "tick" for t in d["targets"]))

    def ask(self, path: str, data: Any = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"}), timeout=30) as answer:
            return json.load(answer)

    def poll(self, shown: dict[int, Any]) -> float:
        """One request as a tab makes every second, remembering what it was shown; its seconds."""
        began = time.perf_counter()
        answer = self.ask("/gradio_api/run/predict", {"fn_index": self.tick["id"], "data": [shown.get(i) for i in self.tick["inputs"]]})
        for component, value in zip(self.tick["outputs"], answer["data"], strict=True):
            if not (isinstance(value, dict) and value.get("__type__") == "update"):
                shown[component] = value
            elif "value" in value:
                shown[component] = value["value"]
        return time.perf_counter() - began

    def start(self, steps: int) -> str:
        from gradio_client import Client

        return Client(self.url, verbose=False).predict(settings={"train.steps": steps}, name="load", wait_when="", api_name="/start")["id"]

    def memory_mib(self) -> float:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@contextlib.contextmanager
def tabs(url: str, count: int) -> Iterator[None]:
    """Real pages in Chromium."""
    if not count:
        yield
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        pages = [browser.new_context().new_page() for _ in range(count)]
        for page in pages:
            page.goto(url)
        yield
        browser.close()


def numbers(db: Path) -> list[dict[str, Any]]:
    store = Store(db)
    return [{n: s[n] for n in ("step", *TIMELESS)} for s in store.steps(store.runs()[0].id, 100_000)]


def pace(db: Path) -> float:
    """Median seconds of a step, the first five aside."""
    store = Store(db)
    return statistics.median(s["step_seconds"] for s in store.steps(store.runs()[0].id, 100_000)[5:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--browsers", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        watched, alone = (Path(folder) / f"{name}.sqlite" for name in ("watched", "alone"))
        page, latencies, errors = Page(watched), [], []
        try:
            run_id = page.start(100_000)
            time.sleep(5)
            before, until = page.memory_mib(), time.monotonic() + options.seconds

            def client() -> None:
                shown = dict(page.values)
                while time.monotonic() < until:
                    try:
                        latencies.append(page.poll(shown))
                        time.sleep(max(0.0, 1.0 - latencies[-1]))
                    except Exception as error:
                        errors.append(f"{type(error).__name__}: {error}")
                        time.sleep(1.0)

            clients = [threading.Thread(target=client) for _ in range(options.clients)]
            with tabs(page.url, options.browsers):
                for c in clients:
                    c.start()
                    time.sleep(1 / max(1, options.clients))
                for c in clients:
                    c.join()
            after, steps = page.memory_mib(), Store(watched).run(run_id).steps_done
        finally:
            page.close()
        page = Page(alone)
        try:
            page.start(steps)
            while Store(alone).runs()[0].status.is_live:
                time.sleep(1.0)
        finally:
            page.close()
        same = numbers(watched)[:steps] == numbers(alone)
        p95 = statistics.quantiles(latencies, n=100)[94] if len(latencies) > 1 else float("nan")
        slower = pace(watched) / pace(alone) - 1
        print(f"{options.clients} clients, {options.browsers} browsers, {options.seconds:.0f} s, {os.cpu_count()} cores: {len(latencies)} polls, {len(errors)} errors, "
              f"p95 {p95 * 1000:.0f} ms; {steps} steps, {slower:+.1%} step time; memory {before:.0f} -> {after:.0f} MiB; numbers {'the same' if same else 'DIFFER'} as alone")
        for error in errors[:5]:
            print(error)
        return int(bool(errors) or not same)


if __name__ == "__main__":
    sys.exit(main())
