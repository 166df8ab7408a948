"""Does the page stay alive while training? Asks the server what a tab asks every second, while a default run trains.

    python benchmarks/polls.py [--tabs 1] [--seconds 40]

Starts app.py on a store of its own, begins a default run, polls from `tabs` clients and prints the latency of a poll.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from grpo_core.store import Store

ROOT = Path(__file__).parent.parent


def ask(url: str, data: dict | None = None) -> dict:
    body = None if data is None else json.dumps(data).encode()
    with urllib.request.urlopen(
        urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=30
    ) as answer:
        return json.load(answer)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tabs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=40)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        db = Path(folder) / "runs.sqlite"
        server = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port), "--db", str(db)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            server.stdout.readline()
            config = ask(url + "/config")
            values = {c["id"]: c["props"].get("value") for c in config["components"]}
            calls = config["dependencies"]
            tick = next(d for d in calls if any(t[1] == "tick" for t in d["targets"]))
            clicked = {
                c["id"] for c in config["components"] if c["props"].get("elem_id") == "start"
            }
            start = next(
                d for d in calls if any(t[0] in clicked and t[1] == "click" for t in d["targets"])
            )

            def poll(shown: dict) -> float:
                began = time.perf_counter()
                for place, value in ask(
                    url + "/studio/show",
                    {"name": "poll", "given": [shown.get(i) for i in tick["inputs"]]},
                ):
                    if not (
                        isinstance(value, dict) and value.get("__type__") == "update"
                    ):  # as a browser remembers what it shows
                        shown[tick["outputs"][place]] = value
                    elif "value" in value:
                        shown[tick["outputs"][place]] = value["value"]
                return time.perf_counter() - began

            ask(
                url + "/gradio_api/run/predict",
                {
                    "fn_index": start["id"],
                    "data": [values.get(i) for i in start["inputs"]],
                    "session_hash": "starts",
                },
            )
            latencies: list[float] = []

            def tab() -> None:
                shown = dict(values)
                until = time.monotonic() + options.seconds
                while time.monotonic() < until:
                    latencies.append(poll(shown))
                    time.sleep(max(0.0, 1.0 - latencies[-1]))

            tabs = [threading.Thread(target=tab) for _ in range(options.tabs)]
            for t in tabs:
                t.start()
                time.sleep(1 / options.tabs)
            for t in tabs:
                t.join()
            run = Store(db).runs()[0]
            p = statistics.quantiles(latencies, n=100)
            print(
                f"{len(latencies)} polls from {options.tabs} tabs over {run.steps_done} steps, {os.cpu_count()} cores: "
                f"median {p[49] * 1000:.0f} ms, p95 {p[94] * 1000:.0f} ms, max {max(latencies) * 1000:.0f} ms; "
                f"step {statistics.median(s['step_seconds'] for s in Store(db).steps(run.id)):.3f} s (median)"
            )
        finally:
            server.terminate()
            server.wait(timeout=20)


if __name__ == "__main__":
    main()
