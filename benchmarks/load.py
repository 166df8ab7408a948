"""Does a run go on as fast, with the same numbers, while clients and browsers watch it?

    python -m benchmarks.load --clients 50 --browsers 5 --seconds 300
    python -m benchmarks.load --clients 0 --browsers 10 --seconds 30 --poll-ms 150     ten tabs

Each client is a gradio_client of its own. Once a second it requests the run's status, and polls the
page as a tab does. The same run is made for as long before and after, with nobody watching, because
a machine's speed changes. The three runs are compared on the steps that all of them reached, so on
the same tokens: their seconds in all, evaluation and writing included, and every number of them.

Real visitors use machines of their own. Here they share the server's, so they run at the lowest
priority and often wait for a core before they see an answer that came long ago. The time of an
answer is therefore measured by one more visitor, in a process of normal priority.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from gradio_client import Client

from benchmarks.server import ROOT, Page, Server, wait_for_line
from grpo_core.store import Store
from grpo_core.types import STEP_METRICS

WARM_UP = 5  # first steps that are not compared
TRAINED_STEPS = 100_000  # more than the measurement lasts
TIMELESS = [n for n in STEP_METRICS if "seconds" not in n and "memory" not in n]
PHASES = ("sampling", "scoring", "update", "evaluation", "writing")
Steps = list[dict[str, Any]]


@dataclass(slots=True)
class Seen:
    """What visitors saw: seconds of each poll and of each status, and what went wrong."""

    polls: list[float] = field(default_factory=list)
    statuses: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    # Sessions that the server knows. From then on each takes some 0.9 MiB of it.
    sessions: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Watched:
    """The measurement of the watched run."""

    seen: Seen
    measured: Seen  # by the visitor of normal priority
    memory: list[float]  # MiB of the server, from a tenth of the time on, every tenth
    arrived: int  # visitors whose sessions existed at the first of these


def make_client(url: str) -> Client:
    # No certificates for plain http: reading them takes longer than the answer.
    return Client(url, verbose=False, ssl_verify=False)


def start_run(url: str, steps: int) -> str:
    client = make_client(url)
    settings = {"train.steps": steps}
    return client.predict(settings=settings, name="load", wait_when="", api_name="/start")["id"]


class Visitor:
    """One client and one tab."""

    def __init__(self, page: Page, run_id: str = ""):
        self.page, self.client, self.run_id = page, make_client(page.url), run_id
        self.shown = dict(page.values)

    def visit(self, seen: Seen) -> None:
        """One poll and one status."""
        seen.polls.append(self.page.poll(self.shown))
        began = time.perf_counter()
        self.client.predict(run=self.run_id, api_name="/status")
        seen.statuses.append(time.perf_counter() - began)

    def visit_until(self, until: float, seen: Seen) -> None:
        """Once a second, from a random moment on."""
        time.sleep(random.random())
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                self.visit(seen)
                seen.sessions.add(self.client.session_hash)
            except Exception as error:
                seen.errors.append(f"{type(error).__name__}: {error}")
            time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))


@contextlib.contextmanager
def browsers(url: str, count: int, errors: list[str]) -> Iterator[None]:
    """Real pages in Chromium; what goes wrong on them is added to `errors` when they close."""
    if not count:
        yield
        return
    from playwright.sync_api import Request, Response, sync_playwright

    def on_response(answer: Response) -> None:
        if answer.status >= 400:
            errors.append(f"page: {answer.status} {answer.url}")

    def on_failure(request: Request) -> None:
        if "ABORTED" not in str(request.failure):
            errors.append(f"page: {request.failure} {request.url}")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        pages = [browser.new_context().new_page() for _ in range(count)]
        for page in pages:
            page.on("pageerror", lambda error: errors.append(f"page: {error}"))
            page.on("response", on_response)
            page.on("requestfailed", on_failure)
            page.goto(url, timeout=120_000)
            page.get_by_role("button", name="Start training").wait_for(timeout=120_000)
        yield
        for page in pages:
            page.wait_for_timeout(10)  # so that playwright delivers the events so far
        browser.close()


@contextlib.contextmanager
def lowest_priority(*but: subprocess.Popen[str]) -> Iterator[None]:
    """Give this process and all that it started, except the sessions of `but`, the lowest priority.

    Afterwards this process and its session, which is the shell's, get their priority back where
    the system allows it: the run alone comes next.
    """
    spared = {os.getsid(process.pid) for process in but}
    autogroup = Path("/proc/self/autogroup")
    before = autogroup.read_text().split()[-1] if autogroup.exists() else ""
    nice = psutil.Process().nice()
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) not in spared:
                process.nice(19)
                # Linux shares cores among sessions before it considers nice, and a browser makes
                # sessions of its own. The file is missing where the kernel is built without that.
                with contextlib.suppress(FileNotFoundError):
                    Path(f"/proc/{process.pid}/autogroup").write_text("19")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, psutil.AccessDenied):  # only root may raise it again
            psutil.Process().nice(nice)
            if before:
                autogroup.write_text(before)


# ---- the visitor that measures, in a process of its own ------------------------------------------


def watch(url: str, run_id: str, seconds: float) -> None:
    """Print a line when ready, then the seconds of each poll and of each status as JSON."""
    visitor, seen = Visitor(Page(url), run_id), Seen()
    print("ready", flush=True)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        visitor.visit(seen)
        time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))
    print(json.dumps([seen.polls, seen.statuses]))


def start_watcher(url: str, run_id: str, seconds: float) -> subprocess.Popen[str]:
    options = ["--watch", url, run_id, "--seconds", str(seconds)]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read_watcher(watcher: subprocess.Popen[str]) -> Seen:
    polls, statuses = json.loads(watcher.communicate()[0] or "[[], []]")
    errors = [f"the watcher ended with {watcher.returncode}"] if watcher.returncode else []
    return Seen(polls, statuses, errors)


# ---- the three runs ------------------------------------------------------------------------------


def run_alone(db: Path, seconds: float) -> None:
    server = Server(db)
    try:
        start_run(server.url, TRAINED_STEPS)
        time.sleep(seconds)
    finally:
        server.close()


def run_watched(db: Path, options: argparse.Namespace) -> Watched:
    server, seen = Server(db), Seen()
    try:
        visitors = [Visitor(server) for _ in range(options.clients)]
        run_id = start_run(server.url, TRAINED_STEPS)
        for visitor in visitors:
            visitor.run_id = run_id
        with contextlib.ExitStack() as leaving:
            leaving.enter_context(browsers(server.url, options.browsers, seen.errors))
            watcher = start_watcher(server.url, run_id, options.seconds)
            leaving.callback(watcher.kill)
            leaving.enter_context(lowest_priority(server.process, watcher))
            wait_for_line(watcher)
            until = time.monotonic() + options.seconds
            threads = [threading.Thread(target=v.visit_until, args=(until, seen)) for v in visitors]
            for thread in threads:
                thread.start()
            wait_for_sessions(seen, len(visitors), options.seconds)
            arrived, memory = len(seen.sessions), [server.memory_mib()]
            while time.monotonic() < until:
                time.sleep(options.seconds / 10)
                memory.append(server.memory_mib())
            for thread in threads:
                thread.join()
            memory.append(server.memory_mib())
            return Watched(seen, read_watcher(watcher), memory, arrived)
    finally:
        server.close()


def wait_for_sessions(seen: Seen, num_visitors: int, seconds: float) -> None:
    """A tenth to a fifth of the time: then visitors are there and caches full.

    From here on nothing may grow.
    """
    latest = time.monotonic() + seconds / 5
    time.sleep(seconds / 10)
    while len(seen.sessions) < num_visitors and time.monotonic() < latest:
        time.sleep(1)


# ---- figures -------------------------------------------------------------------------------------

# Figure -> whether it meets its goal; that of a poll is --poll-ms.
GOALS = {
    "errors": lambda n: n == 0,
    "p95 of a status, ms": lambda ms: ms <= 300,
    "slower than alone, %": lambda percent: percent <= 5,
    "memory grew, %": lambda percent: percent <= 5,
    "numbers that differ": lambda n: n == 0,
}


def steps_of(db: Path) -> Steps:
    store = Store(db)
    return store.steps(store.runs()[0].id, 100_000)


def total_seconds(steps: Steps, *phases: str) -> float:
    return sum(step[f"{phase}_seconds"] or 0.0 for step in steps for phase in phases)


def percentile(seconds: list[float]) -> float:
    """The 95th, in milliseconds."""
    return statistics.quantiles(seconds, n=100)[94] * 1000 if len(seconds) > 1 else float("nan")


def figures_of(
    watched: Watched, runs: dict[str, Steps], took: dict[str, float]
) -> dict[str, float]:
    alone = (took["alone"] + took["alone again"]) / 2
    return {
        "errors": len(watched.seen.errors) + len(watched.measured.errors),
        "p95 of a poll, ms": percentile(watched.measured.polls),
        "p95 of a status, ms": percentile(watched.measured.statuses),
        "slower than alone, %": 100 * (took["watched"] / alone - 1),
        "memory grew, %": 100 * (watched.memory[-1] / watched.memory[0] - 1),
        "numbers that differ": sum(
            a[name] != b[name]
            for steps in (runs["alone"], runs["alone again"])
            for a, b in zip(runs["watched"], steps, strict=False)
            for name in TIMELESS
        ),
    }


def report(watched: Watched, runs: dict[str, Steps], options: argparse.Namespace) -> bool:
    """Print everything; whether every goal is met."""
    common = min(map(len, runs.values()))
    same = {name: steps[WARM_UP:common] for name, steps in runs.items()}
    took = {name: total_seconds(s, "step", "evaluation", "writing") for name, s in same.items()}
    seen = watched.seen
    print(
        f"{options.clients} clients, {options.browsers} browsers, {options.seconds:.0f} s, "
        f"{os.cpu_count()} cores, {len(seen.polls)} polls, {len(seen.statuses)} statuses; "
        f"as the others saw it, cores short: poll p95 {percentile(seen.polls):.0f} ms, "
        f"status {percentile(seen.statuses):.0f} ms"
    )
    totals = ", ".join(f"{seconds:.1f} {name}" for name, seconds in took.items())
    print(f"{common} steps in common, seconds for all but the first {WARM_UP}: {totals}")
    for phase in PHASES:
        seconds = " / ".join(f"{total_seconds(steps, phase):.1f}" for steps in same.values())
        print(f"{phase} {seconds}")
    memory = " ".join(f"{mib:.0f}" for mib in watched.memory)
    print(f"MiB of the server, {watched.arrived} of {options.clients} visitors there: {memory}")
    print("\n| figure | measured | goal met |\n|---|---|---|")
    figures = figures_of(watched, runs, took)
    met = {name: goal(figures[name]) for name, goal in GOALS.items()}
    met["p95 of a poll, ms"] = figures["p95 of a poll, ms"] <= options.poll_ms
    for name, value in figures.items():
        print(f"| {name} | {value:.1f} | {'yes' if met[name] else 'NO'} |")
    for error in [*seen.errors, *watched.measured.errors][:5]:
        print(error)
    return all(met.values())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--browsers", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--poll-ms", type=float, default=300, help="goal for the p95 of a poll")
    parser.add_argument("--watch", nargs=2, metavar=("URL", "RUN"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        url, run_id = options.watch
        watch(url, run_id, options.seconds)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        names = ("alone", "watched", "alone again")
        files = {name: Path(folder) / f"{name.replace(' ', '-')}.sqlite" for name in names}
        run_alone(files["alone"], options.seconds)
        watched = run_watched(files["watched"], options)
        run_alone(files["alone again"], options.seconds)
        met = report(watched, {name: steps_of(db) for name, db in files.items()}, options)
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
