"""Fifty clients and five browsers look at a run. Does it go on as fast, with the same numbers, and does everybody get an answer in time?

    python -m benchmarks.load --clients 50 --browsers 5 --seconds 300

Every client is a gradio_client of its own that asks for the run's status, and beside it polls the page as a tab does, both once a second.
The same run is made for as long before and after, with nobody looking: machines are faster at one time than at another. What is compared
are the steps that all three runs came to, so the same tokens: their seconds in all, evaluation and writing included, and every number of them.

Visitors have machines of their own. Here they share the server's, so they take only what it leaves, and often wait for a core before they see an
answer that has long come. How long an answer takes is therefore measured by one visitor more, in a process that waits for nobody.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
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

import psutil
from gradio_client import Client

from grpo_core.store import Store
from grpo_core.types import STEP_METRICS

ROOT = Path(__file__).parent.parent
FIRST = 5  # steps of warming up
TIMELESS = [n for n in STEP_METRICS if "seconds" not in n and "memory" not in n]


class Page:
    """A server of its own, and what a tab asks of it."""

    def __init__(self, db: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.db = f"http://127.0.0.1:{port}", db
        self.process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port), "--db", str(db)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.process.stdout.readline()
        self._learn()

    @classmethod
    def at(cls, url: str) -> Page:
        """One that runs already."""
        page = cls.__new__(cls)
        page.url = url
        page._learn()
        return page

    def _learn(self) -> None:
        config = self.ask("/config")
        self.values = {c["id"]: c["props"].get("value") for c in config["components"]}
        self.tick = next(
            d for d in config["dependencies"] if any(t[1] == "tick" for t in d["targets"])
        )

    def ask(self, path: str, data: Any = None) -> Any:
        body = None if data is None else json.dumps(data).encode()
        with urllib.request.urlopen(
            urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"}),
            timeout=30,
        ) as answer:
            return json.load(answer)

    def poll(self, shown: dict[int, Any]) -> float:
        """One request as a tab makes every second, remembering what it was shown; its seconds."""
        began = time.perf_counter()
        for place, value in self.ask(
            "/studio/show", {"name": "poll", "given": [shown.get(i) for i in self.tick["inputs"]]}
        ):
            component = self.tick["outputs"][place]
            if not (isinstance(value, dict) and value.get("__type__") == "update"):
                shown[component] = value
            elif "value" in value:
                shown[component] = value["value"]
        return time.perf_counter() - began

    def visit(
        self,
        client: Client,
        run_id: str,
        shown: dict[int, Any],
        polls: list[float],
        asked: list[float],
    ) -> None:
        """What a visitor does every second: one poll and one status, their seconds added to the lists."""
        polls.append(self.poll(shown))
        began = time.perf_counter()
        client.predict(run=run_id, api_name="/status")
        asked.append(time.perf_counter() - began)

    def client(self) -> Client:
        return Client(
            self.url, verbose=False, ssl_verify=False
        )  # plain http: reading the certificates of the world for every question costs more than the question

    def start(self, steps: int) -> str:
        return self.client().predict(
            settings={"train.steps": steps}, name="load", wait_when="", api_name="/start"
        )["id"]

    def memory_mib(self) -> float:
        return (
            int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            * os.sysconf("SC_PAGE_SIZE")
            / 2**20
        )

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)


@contextlib.contextmanager
def tabs(url: str, count: int, errors: list[str]) -> Iterator[None]:
    """Real pages in Chromium; what goes wrong on them is added to `errors` when they close."""
    if not count:
        yield
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        pages = [browser.new_context().new_page() for _ in range(count)]
        for page in pages:
            page.on("pageerror", lambda error: errors.append(f"page: {error}"))
            page.on(
                "response",
                lambda answer: (
                    errors.append(f"page: {answer.status} {answer.url}")
                    if answer.status >= 400
                    else None
                ),
            )
            page.on(
                "requestfailed",
                lambda request: (
                    errors.append(f"page: {request.failure} {request.url}")
                    if "ABORTED" not in str(request.failure)
                    else None
                ),
            )
            page.goto(url, timeout=120_000)
            page.get_by_role("button", name="Start training").wait_for(timeout=120_000)
        yield
        for page in pages:
            page.wait_for_timeout(10)  # lets it say what happened meanwhile
        browser.close()


@contextlib.contextmanager
def stand_back(*but: subprocess.Popen) -> Iterator[None]:
    """This process and all that it started, but for the sessions of these, takes only the cores that they leave.

    Afterwards this process and its session, which is the shell's, are what they were, where one may: the run alone comes next.
    """
    sessions, mine, nice = (
        {os.getsid(process.pid) for process in but},
        Path("/proc/self/autogroup"),
        psutil.Process().nice(),
    )
    before = mine.read_text().split()[-1] if mine.exists() else ""
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) not in sessions:
                process.nice(19)
                # Linux shares cores out among sessions before it looks at nice, and a browser makes sessions of its own.
                with contextlib.suppress(FileNotFoundError):  # not where it is built without that
                    Path(f"/proc/{process.pid}/autogroup").write_text("19")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, psutil.AccessDenied):  # only root may take more again
            psutil.Process().nice(nice)
            if before:
                mine.write_text(before)


def look(url: str, run_id: str, seconds: float) -> None:
    """The visitor who waits for nobody: prints a line when it is there, then what it saw as JSON, seconds of each poll and of each status."""
    page = Page.at(url)
    client, shown, polls, asked = page.client(), dict(page.values), [], []
    print("here", flush=True)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        page.visit(client, run_id, shown, polls, asked)
        time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))
    print(json.dumps([polls, asked]))


def steps_of(db: Path) -> list[dict[str, Any]]:
    store = Store(db)
    return store.steps(store.runs()[0].id, 100_000)


def seconds_of(steps: list[dict[str, Any]], *phases: str) -> float:
    return sum(step[f"{phase}_seconds"] or 0.0 for step in steps for phase in phases)


def alone(db: Path, seconds: float) -> None:
    page = Page(db)
    try:
        page.start(100_000)
        time.sleep(seconds)
    finally:
        page.close()


# what was promised -> whether a figure keeps it
PROMISES = {
    "errors": lambda n: n == 0,
    "p95 of a poll, ms": lambda ms: ms <= 300,
    "p95 of a status, ms": lambda ms: ms <= 300,
    "slower than alone, %": lambda percent: percent <= 5,
    "memory grew, %": lambda percent: percent <= 5,
    "numbers that differ": lambda n: n == 0,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--browsers", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--look", nargs=2, metavar=("URL", "RUN"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look:
        look(*options.look, options.seconds)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        watched, before, after = (
            Path(folder) / f"{name}.sqlite" for name in ("watched", "before", "after")
        )
        alone(before, options.seconds)
        page, polls, asked, errors = Page(watched), [], [], []
        try:
            clients, until = [page.client() for _ in range(options.clients)], 0.0
            run_id = page.start(100_000)

            def visitor(client: Client) -> None:
                shown = dict(page.values)
                time.sleep(random.random())
                while time.monotonic() < until:
                    began = time.monotonic()
                    try:
                        page.visit(client, run_id, shown, polls, asked)
                        here.add(client.session_hash)
                    except Exception as error:
                        errors.append(f"{type(error).__name__}: {error}")
                    time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))

            here: set[str] = (
                set()
            )  # those that the server has met: each is some 0.9 MiB of it from then on
            visitors = [threading.Thread(target=visitor, args=(client,)) for client in clients]
            with contextlib.ExitStack() as leaving:
                leaving.enter_context(tabs(page.url, options.browsers, errors))
                watcher = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "benchmarks.load",
                        "--look",
                        page.url,
                        run_id,
                        "--seconds",
                        str(options.seconds),
                    ],
                    cwd=ROOT,
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,
                )
                leaving.callback(watcher.kill)
                leaving.enter_context(stand_back(page.process, watcher))
                watcher.stdout.readline()
                until = time.monotonic() + options.seconds
                for v in visitors:
                    v.start()
                latest = time.monotonic() + options.seconds / 5
                time.sleep(
                    options.seconds / 10
                )  # whoever looks is there by then, what they look at is cached: from here on nothing may grow
                while len(here) < len(clients) and time.monotonic() < latest:
                    time.sleep(1)
                met, memory = len(here), [page.memory_mib()]
                while time.monotonic() < until:
                    time.sleep(options.seconds / 10)
                    memory.append(page.memory_mib())
                for v in visitors:
                    v.join()
                memory.append(page.memory_mib())
                seen = [
                    percentile(seconds) * 1000
                    for seconds in json.loads(watcher.communicate()[0] or "[[], []]")
                ]
                if watcher.returncode:
                    errors.append(f"the watcher ended with {watcher.returncode}")
        finally:
            page.close()
        alone(after, options.seconds)
        runs = {
            "alone": steps_of(before),
            "watched": steps_of(watched),
            "alone again": steps_of(after),
        }
        common = min(map(len, runs.values()))
        same = [steps[FIRST:common] for steps in runs.values()]
        took = dict(
            zip(
                runs,
                (seconds_of(steps, "step", "evaluation", "writing") for steps in same),
                strict=True,
            )
        )
        phases = {
            phase: [seconds_of(steps, phase) for steps in same]
            for phase in ("sampling", "scoring", "update", "evaluation", "writing")
        }
        figures = {
            "errors": len(errors),
            "p95 of a poll, ms": seen[0],
            "p95 of a status, ms": seen[1],
            "slower than alone, %": 100
            * (2 * took["watched"] / (took["alone"] + took["alone again"]) - 1),
            "memory grew, %": 100 * (memory[-1] / memory[0] - 1),
            "numbers that differ": sum(
                a[n] != b[n]
                for steps in (runs["alone"], runs["alone again"])
                for a, b in zip(runs["watched"], steps, strict=False)
                for n in TIMELESS
            ),
        }
        print(
            f"{options.clients} clients, {options.browsers} browsers, {options.seconds:.0f} s, {os.cpu_count()} cores, {len(polls)} polls, {len(asked)} statuses; "
            f"as the others saw it, cores short: poll p95 {percentile(polls) * 1000:.0f} ms, status {percentile(asked) * 1000:.0f} ms\n"
            f"{common} steps in common, seconds for all but the first {FIRST}: "
            + ", ".join(f"{took[name]:.1f} {name}" for name in runs)
            + "; "
            + ", ".join(
                f"{phase} " + " / ".join(f"{s:.1f}" for s in seconds)
                for phase, seconds in phases.items()
            )
            + "\n"
            f"MiB of the server, {met} of {len(clients)} visitors in: "
            + " ".join(f"{m:.0f}" for m in memory)
            + "\n\n| figure | measured | kept |\n|---|---|---|"
        )
        for name, value in figures.items():
            print(f"| {name} | {value:.1f} | {'yes' if PROMISES[name](value) else 'NO'} |")
        for error in errors[:5]:
            print(error)
        return int(not all(PROMISES[name](value) for name, value in figures.items()))


def percentile(seconds: list[float]) -> float:
    """The 95th."""
    return statistics.quantiles(seconds, n=100)[94] if len(seconds) > 1 else float("nan")


if __name__ == "__main__":
    sys.exit(main())
