"""What does it save to call a judge while other groups are still sampled?

    python -m benchmarks.async_scoring [--pairs 5] [--judge-seconds 0.2]

Steps with and without scoring during sampling, in turn, and a judge that takes its time. Random
weights of 4 layers; a completion ends at each token with probability 1/64, so groups are complete
at different times, as in real runs.
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

from benchmarks.workloads import GROWING, Workload, make_folder
from grpo_core.config import RunConfig, nest, parse
from grpo_core.models import load_policy
from grpo_core.rubric import CHECKS, build_rubric
from grpo_core.tasks import load_task
from grpo_core.training.control import RunControl
from grpo_core.training.rollout_batch import Session, collect_rollouts

NEW_TOKENS, MEAN_LENGTH = 256, 64


def start_judge(seconds: float) -> ThreadingHTTPServer:
    """A judge that gives every answer 5 of 10 after that many seconds."""
    verdict = json.dumps({"reason": "so-so", "score": 5})
    body = json.dumps({"choices": [{"message": {"content": verdict}}]}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(seconds)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def judged_config(folder: str, url: str) -> RunConfig:
    criterion = {"name": "judge", "check": "judge", "weight": 1.0, "params": {"url": url}}
    return parse(
        nest(
            {
                "model.name": folder,
                "task.path": f"{folder}/prompts.jsonl",
                "task.heldout_size": 0,
                "train.max_new_tokens": NEW_TOKENS,
                "rubric.name": "custom",
                "rubric.criteria": [criterion],
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--judge-seconds", type=float, default=0.2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRPO_STUDIO_CACHE"] = folder  # without verdicts of an earlier run
        work = Workload("", steps=1, prompt_tokens=64, new_tokens=NEW_TOKENS, shape=GROWING)
        make_folder(work, Path(folder))
        judge = start_judge(options.judge_seconds)
        measure(judged_config(folder, f"http://127.0.0.1:{judge.server_port}/v1"), options.pairs)
        judge.shutdown()


def measure(config: RunConfig, pairs: int) -> None:
    ends = frozenset(range(0, GROWING["vocab_size"], MEAN_LENGTH))
    policy = replace(load_policy(config.model, 0), end_ids=ends)
    task = load_task(config.task)
    checks = {
        "during sampling": CHECKS["judge"],
        "after sampling": replace(CHECKS["judge"], is_async=False),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in checks}
    names = list(checks) * pairs
    # Every step has texts of its own, so nothing comes from the cache of verdicts.
    for step, name in enumerate(names, 1):
        CHECKS["judge"] = checks[name]
        rubric = build_rubric(config.rubric)
        batch = collect_rollouts(Session(config, policy, task, rubric, RunControl().points), step)
        seconds[name].append((batch.sampling_seconds, batch.scoring_seconds))
    for name, pairs_of in seconds.items():
        sampling, scoring = (statistics.median(column) for column in zip(*pairs_of, strict=True))
        both = statistics.median(map(sum, pairs_of))
        print(
            f"scored {name}: sampling {sampling:.2f} s, scoring {scoring:.2f} s, "
            f"both {both:.2f} s (medians of {len(pairs_of)})"
        )


if __name__ == "__main__":
    main()
