"""Mathematical answers: how many verdicts are right, and how long does one take?

    python -m benchmarks.graders [--rounds 3]

Over the answer pairs of tests/rubric/answer_pairs.py: wall-clock time as a run sees it, through the
killable process, the first round just after its start; and CPU time of the comparisons alone.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from grpo_core.rubric import CHECKS
from grpo_core.rubric.answers import graders
from grpo_core.rubric.sandbox.formula_tokens import Unread
from grpo_core.rubric.sandbox.mathematics import math_equal
from grpo_core.tasks.answers import same_answer
from grpo_core.types import Completion, Prompt
from tests.rubric.answer_pairs import DIFFERENT, SAME

PAIRS = [(*pair, 1.0) for pair in SAME] + [(*pair, 0.0) for pair in DIFFERENT]
START_SECONDS = 60


def through_the_process(given: str, right: str) -> float | None:
    check = CHECKS["math"]
    completion = Completion(rf"So the answer is \boxed{{{given}}}.", "stop", 5)
    return check.score(completion, Prompt("p", "q", right, "file"), check.params())


def alone(given: str, right: str) -> float | None:
    try:
        return 1.0 if same_answer(given, right) else math_equal(given, right)
    except Unread:
        return None


def measure(compare: Callable[[str, str], float | None], clock: Callable[[], float]) -> str:
    seconds, wrong = [], 0
    for given, right, verdict in PAIRS:
        started = clock()
        wrong += compare(given, right) != verdict
        seconds.append(clock() - started)
    seconds.sort()
    times = []
    for q in (50, 90, 99):
        at = min(len(seconds) - 1, int(len(seconds) * q / 100))
        times.append(f"p{q} {seconds[at] * 1e3:.1f} ms")
    agree = 1 - wrong / len(PAIRS)
    return f"{agree:.1%} agree; {', '.join(times)}, most {seconds[-1] * 1e3:.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    logging.disable(logging.CRITICAL)
    started = time.perf_counter()
    request = {"do": "math", "arguments": ["1", "1"], "seconds": 10}
    graders()[0].request(request, START_SECONDS)
    print(f"{len(PAIRS)} pairs; the process starts in {time.perf_counter() - started:.1f} s")
    for i in range(1, rounds + 1):
        result = measure(through_the_process, time.perf_counter)
        print(f"round {i}, wall-clock through the process: {result}")
    print(f"CPU time of the comparisons alone: {measure(alone, time.process_time)}")


if __name__ == "__main__":
    main()
