"""How long does a poll of the page take while a run trains?

    python benchmarks/polls.py [--tabs 1] [--seconds 40]

Starts app.py with a store of its own, starts a default run, and polls once a second from each of
`tabs` threads. Prints the latency of a poll and the time of a step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.server import Server
from grpo_core.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tabs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "runs.sqlite"
        server = Server(db)
        try:
            server.press_start()
            latencies = poll_from_tabs(server, options.tabs, options.seconds)
            report(Store(db), latencies, options.tabs)
        finally:
            server.close()


def poll_from_tabs(server: Server, num_tabs: int, seconds: float) -> list[float]:
    """Seconds of every poll of all tabs."""
    latencies: list[float] = []

    def tab() -> None:
        shown = dict(server.values)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            latency = server.poll(shown)
            latencies.append(latency)
            time.sleep(max(0.0, 1.0 - latency))

    tabs = [threading.Thread(target=tab) for _ in range(num_tabs)]
    for t in tabs:
        t.start()
        time.sleep(1 / num_tabs)
    for t in tabs:
        t.join()
    return latencies


def report(store: Store, latencies: list[float], num_tabs: int) -> None:
    run = store.runs()[0]
    percentiles = statistics.quantiles(latencies, n=100)
    step_seconds = statistics.median(s["step_seconds"] for s in store.steps(run.id))
    print(
        f"{len(latencies)} polls from {num_tabs} tabs over {run.steps_done} steps, "
        f"{os.cpu_count()} cores: median {percentiles[49] * 1000:.0f} ms, "
        f"p95 {percentiles[94] * 1000:.0f} ms, max {max(latencies) * 1000:.0f} ms; "
        f"step {step_seconds:.3f} s (median)"
    )


if __name__ == "__main__":
    main()
