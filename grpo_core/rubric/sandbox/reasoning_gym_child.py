"""The helper behind the tasks of reasoning-gym: makes their prompts and scores answers to them.

Some of its scorers run eval, or a parser that does, on what a model wrote. So this process imports
the package, then locks itself up, before it reads the first answer; see jail.py.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from grpo_core.child_process import ONE_THREAD, NoValue, TooLate, one_line, serve
from grpo_core.rubric.sandbox.jail import lock_up
from grpo_core.rubric.sandbox.locked_file import LIBRARIES, package_folders

MAX_MEMORY = 3 << 30
MAX_QUESTION = 200_000  # characters
BATCH_SECONDS, BATCH_CHARS = 1.0, 2 << 20  # of the prompts in one answer
KEPT = 4_096  # entries whose answers are scored: a step or an evaluation asks for each many times


def load() -> None:
    """Import the package and lock up. Raises NoValue where that is impossible."""
    # A thread from before the lock would stay outside it, so there may be none.
    os.environ.update(ONE_THREAD)
    sys.dont_write_bytecode = True
    try:
        importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise NoValue(f"reasoning-gym cannot be imported: {one_line(str(error), 200)}") from None
    lock_up([*LIBRARIES, *package_folders()], MAX_MEMORY)


@lru_cache(maxsize=8)
def dataset(name: str, size: int, seed: int, level: int | None) -> Any:
    """The package's own prompts of a task. level: of its curriculum; None: its defaults."""
    factory = importlib.import_module("reasoning_gym.factory")
    if name not in factory.DATASETS:
        raise NoValue("this version of reasoning-gym has no such task")
    asked = {"seed": seed, "size": size}
    if level is None:
        return factory.create_dataset(name, **asked)
    curriculum = factory.create_curriculum(name)
    curriculum.set_global_level(level)
    config = curriculum.generate_configuration(asked)
    if hasattr(config, "validate"):
        config.validate()
    return factory.DATASETS[name][0](config)


@lru_cache(maxsize=KEPT)
def _entry(made: tuple[str, int, int, int | None], index: int) -> Mapping[str, Any]:
    entry = dataset(*made)[index]
    if len(entry["question"]) > MAX_QUESTION:
        raise NoValue(f"prompt {index:,} has more than {MAX_QUESTION:,} characters")
    return entry


def rows(
    name: str, size: int, seed: int, level: int | None, start: int
) -> list[tuple[str, str, Any]]:
    """Prompts from number `start` on: question, answer and metadata, as many as a second gives."""
    found: list[tuple[str, str, Any]] = []
    ends, chars = time.monotonic() + BATCH_SECONDS, 0
    for index in range(start, size):
        entry = dataset(name, size, seed, level)[index]
        question, answer = str(entry["question"]), str(entry["answer"])
        metadata = _plain(entry["metadata"])
        chars += len(question) + len(answer) + len(str(metadata))
        if found and chars > BATCH_CHARS:
            break
        found.append((question, answer, metadata))
        if time.monotonic() > ends:
            break
    return found


def score(made: tuple[str, int, int, int | None], index: int, question: str, answer: str) -> float:
    """What the task's own score_answer gives. An answer that its scorer cannot read scores 0.

    question: as the policy read it; NoValue if the prompt of that number is another one.
    """
    name, size, seed, level = made
    entry = _entry((name, size, seed, level), index)
    if " ".join(str(entry["question"]).split()) != " ".join(question.split()):
        raise NoValue("the installed reasoning-gym makes another prompt of this number")
    try:
        value = float(dataset(name, size, seed, level).score_answer(answer, entry))
    except (TooLate, MemoryError):
        raise
    except BaseException:  # of code that the answer contains, or of a parser that gives up
        return 0.0
    return min(1.0, max(0.0, value)) if value == value else 0.0


def _plain(value: Any) -> Any:
    """Metadata in JSON types, for reward functions. What is none of them becomes text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value if value == value else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = value if isinstance(value, list | tuple) else sorted(value, key=repr)
        return [_plain(v) for v in items]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)


if __name__ == "__main__":
    serve({"rows": rows, "score": score}, MAX_MEMORY, load)
