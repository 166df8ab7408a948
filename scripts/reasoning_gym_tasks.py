"""Write grpo_core/tasks/reasoning_gym.json: the tasks of reasoning-gym, with an example of each.

    pip install reasoning-gym && python -m scripts.reasoning_gym_tasks

A task is left out where its scorer does not give its own answer full score, or gives it to any.
"""

from __future__ import annotations

import json
import logging
import signal
import time
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grpo_core.rubric.sandbox.reasoning_gym_child import dataset, score

PATH = Path(__file__).parents[1] / "grpo_core" / "tasks" / "reasoning_gym.json"
ITEMS, LEVEL_ITEMS = 20, 3
SECONDS = 10  # for the items of a task, and of a level
NONSENSE = ("xyzzy", "-987654321.5", "no answer")
EXAMPLE_CHARS, ANSWER_CHARS = 160, 60
COMPOSITE = "it mixes other tasks, so train on one of them"


class TooLong(BaseException):
    """The time of a task or level is over."""


def main() -> None:
    """Test every task of the installed package and write the list."""
    from reasoning_gym.factory import DATASETS  # pyright: ignore[reportMissingImports]

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _too_long)
    tasks: dict[str, Any] = {}
    left_out = {"composite": COMPOSITE}
    for name, (kind, _) in sorted(DATASETS.items()):
        if name in left_out:
            continue
        found = _described(name, kind.__module__.split(".")[1])
        if isinstance(found, str):
            left_out[name] = found
        else:
            tasks[name] = found
        print(name, found, flush=True)
    data = {"tasks": tasks, "left_out": left_out}
    PATH.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"{len(tasks)} tasks, {len(left_out)} left out: {PATH}")


def _described(name: str, group: str) -> dict[str, Any] | str:
    """The row of a task, or why it is left out."""
    data = dataset(name, ITEMS, 0, None)
    entries, seconds = _timed(lambda i: data[i], ITEMS)
    if any(entry["answer"] is None for entry in entries):
        return "it gives no answer, so nobody can check how it scores one"
    if any(data.score_answer(e["answer"], e) != 1 for e in entries):
        return "its scorer does not give its own answer full score"
    made = name, ITEMS, 0, None
    questions = [(i, entry["question"]) for i, entry in enumerate(entries)]
    if all(score(made, i, question, text) == 1 for i, question in questions for text in NONSENSE):
        return "its scorer gives any answer full score"
    shown = min(entries, key=lambda e: len(e["question"]))
    return {
        "group": group,
        "levels": _num_levels(name),
        "seconds": float(f"{seconds:.1g}"),
        "example": _line(shown["question"], EXAMPLE_CHARS),
        "answer": _line(shown["answer"], ANSWER_CHARS),
    }


def _num_levels(name: str) -> int:
    """How many levels of the curriculum make prompts within the time; 0 without a curriculum."""
    from reasoning_gym import factory  # pyright: ignore[reportMissingImports]

    if not factory.has_curriculum(name):
        return 0
    levels = max(len(a.levels) for a in factory.create_curriculum(name).attributes.values())
    for level in range(levels):
        try:
            data = dataset(name, LEVEL_ITEMS, 0, level)
            made, _ = _timed(lambda i, data=data: data[i], LEVEL_ITEMS)
        except Exception as error:  # a generator at a level too hard for it may raise anything
            print(f"  {name}, level {level}: {error!r:.100}")
            return level
        if len(made) < LEVEL_ITEMS:
            print(f"  {name}, level {level}: too slow")
            return level
    return levels


def _timed(make: Callable[[int], Any], count: int) -> tuple[list[Any], float]:
    """Items made within the time, and the seconds that one took."""
    items: list[Any] = []
    started = time.monotonic()
    signal.alarm(SECONDS)
    try:
        for i in range(count):
            items.append(make(i))
    except TooLong:
        pass
    finally:
        signal.alarm(0)
    return items, (time.monotonic() - started) / max(1, len(items))


def _line(text: str, most: int) -> str:
    shown = "".join(c for c in text if unicodedata.category(c) not in ("Mn", "Cf", "Co", "Cn"))
    line = " ".join(shown.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def _too_long(*_: Any) -> None:
    raise TooLong


if __name__ == "__main__":
    main()
