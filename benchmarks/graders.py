"""Mathematical answers: verdicts that agree, and the time of one, over the real-world pairs of tests/answer_pairs.py.

    python -m benchmarks.graders [--rounds 3]

Wall-clock as a run meets it, through the killable process, first round cold after its start; and the CPU time of the comparisons alone.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from answer_pairs import DIFFERENT, SAME

from grpo_core.rubric import CHECKS
from grpo_core.rubric.answers import grader_process
from grpo_core.rubric.sandbox.worker import math_equal, warm_up
from grpo_core.tasks.answers import same_answer
from grpo_core.types import Completion, Prompt

PAIRS = [(*pair, 1.0) for pair in SAME] + [(*pair, 0.0) for pair in DIFFERENT]


def through_the_process(said: str, right: str) -> float | None:
    check = CHECKS["math"]
    return check.score(
        Completion(rf"So the answer is \boxed{{{said}}}.", "stop", 5),
        Prompt("p", "q", right, "file"),
        check.params(),
    )


def alone(said: str, right: str) -> float | None:
    return 1.0 if same_answer(said, right) else math_equal(said, right)


def measure(compare: Callable[[str, str], float | None], clock: Callable[[], float]) -> str:
    seconds, wrong = [], 0
    for said, right, verdict in PAIRS:
        started = clock()
        wrong += compare(said, right) != verdict
        seconds.append(clock() - started)
    seconds.sort()
    at = {
        f"p{q}": seconds[min(len(seconds) - 1, int(len(seconds) * q / 100))] * 1e3
        for q in (50, 90, 99)
    }
    return (
        f"{1 - wrong / len(PAIRS):.1%} agree; "
        + ", ".join(f"{name} {ms:.1f} ms" for name, ms in at.items())
        + f", most {seconds[-1] * 1e3:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    logging.disable(logging.CRITICAL)
    started = time.perf_counter()
    grader_process().ask({"do": "math", "arguments": ["1", "1"], "seconds": 10}, 60)
    print(f"{len(PAIRS)} pairs; the process starts in {time.perf_counter() - started:.1f} s")
    for number in range(1, rounds + 1):
        print(
            f"round {number}, wall-clock through the process: {measure(through_the_process, time.perf_counter)}"
        )
    warm_up()
    print(f"CPU time of the comparisons alone: {measure(alone, time.process_time)}")


if __name__ == "__main__":
    main()
