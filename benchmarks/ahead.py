"""What does asking a judge while other groups are still sampled save? Steps with and without, in turn, and a judge that takes its time.

    python -m benchmarks.ahead [--pairs 5] [--judge-seconds 0.2]

Random weights of 4 layers; a completion ends at each token with probability 1/64, so groups are whole at different times, as in real runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.speed import GROWING, Workload, make_folder
from grpo_core.config import nest, parse
from grpo_core.models import load_policy
from grpo_core.rubric import CHECKS, build_rubric
from grpo_core.tasks import load_task
from grpo_core.training.control import RunControl
from grpo_core.training.rollout_batch import collect_rollouts
from grpo_core.training.timing import Clock


def judge(seconds: float) -> ThreadingHTTPServer:
    """Gives every answer 5 of 10, after a while."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(seconds)
            body = json.dumps(
                {"choices": [{"message": {"content": '{"reason": "so-so", "score": 5}'}}]}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--judge-seconds", type=float, default=0.2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRPO_STUDIO_CACHE"] = folder  # no answer of an earlier run
        make_folder(
            Workload("", steps=1, prompt_tokens=64, new_tokens=256, shape=GROWING), Path(folder)
        )
        endpoint = judge(options.judge_seconds)
        config = parse(
            nest(
                {
                    "model.name": folder,
                    "task.path": f"{folder}/prompts.jsonl",
                    "task.heldout_size": 0,
                    "train.max_new_tokens": 256,
                    "rubric.name": "custom",
                    "rubric.criteria": [
                        {
                            "name": "judge",
                            "check": "judge",
                            "weight": 1.0,
                            "params": {"url": f"http://127.0.0.1:{endpoint.server_port}/v1"},
                        }
                    ],
                }
            )
        )
        policy = load_policy(config.model, 0)
        policy = replace(policy, end_ids=frozenset(range(0, GROWING["vocab_size"], 64)))
        task, patient, eager = (
            load_task(config.task),
            replace(CHECKS["judge"], ahead=False),
            CHECKS["judge"],
        )
        seconds: dict[str, list[tuple[float, float]]] = {"afterwards": [], "ahead": []}
        for step in range(
            1, 2 * options.pairs + 1
        ):  # every step has its own texts, so that nothing comes from the cache
            name = "ahead" if step % 2 else "afterwards"
            CHECKS["judge"] = eager if name == "ahead" else patient
            control = RunControl()
            control.tell = Clock(lambda event: None)
            drawn = collect_rollouts(
                step, policy, task, build_rubric(config.rubric), config, control
            )
            seconds[name].append((drawn.sampling_seconds, drawn.scoring_seconds))
        for name, found in seconds.items():
            sampling, scoring = (statistics.median(column) for column in zip(*found, strict=True))
            print(
                f"{name}: sampling {sampling:.2f} s, scoring {scoring:.2f} s, both {statistics.median(map(sum, found)):.2f} s (medians of {len(found)})"
            )
        endpoint.shutdown()


if __name__ == "__main__":
    main()
