"""What a task is: prompts made from a seed, an exact grader, and a split that no run can move."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.types import Prompt

if TYPE_CHECKING:
    from grpo_core.tasks.table import PromptTable

HELDOUT_ONE_IN = 10  # one prompt in ten is held out
PATIENCE = 20_000  # draws without anything new after which a task counts as exhausted; about 0.1 s


@dataclass(frozen=True)
class Task:
    """A source of prompts and the judge of their answers.

    `make(rng)` returns (text, answer, meta), meta of JSON types only. `grade(answer_text, prompt)` returns 1.0 or 0.0; it ignores
    whitespace around the answer, never raises, and looks at a bounded number of characters, whatever it is given.
    """

    name: str
    title: str
    help: str
    instruction: str
    make: Callable[[random.Random], tuple[str, str, Mapping[str, Any]]] | None
    grade: Callable[[str, Prompt], float]
    table: PromptTable | None = None  # prompts of a file or dataset; then there is nothing to make

    def over(self, table: PromptTable, instruction: str | None = None) -> Task:
        """The same task with other rows."""
        return replace(
            self, table=table, instruction=self.instruction if instruction is None else instruction
        )


def instruction(what: str) -> str:
    """What a chat model is told. The bundled model never sees it: it reads the bare prompt text."""
    return f"{what} You may think first inside <think></think>. Write only the final answer inside <answer></answer>."


def extract_answer(text: str) -> str | None:
    """The content of the last complete <answer>...</answer> pair, untouched; None when there is none.

    The pair is the last <answer> that some </answer> follows, up to the first </answer> after it, so "<answer>1<answer>2</answer>"
    answers "2". Last, because a model that corrects itself means its last word. Linear time. Where the pair stands, and how many
    there are, is a matter of format, not of the answer.
    """
    opening = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    if opening < 0:
        return None
    start = opening + len("<answer>")
    return text[start : text.index("</answer>", start)]


def prompt_id(task: str, text: str) -> str:
    """A stable name for a prompt: 16 hex digits of blake2b over task and text."""
    return blake2b(f"{task}\n{text}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def is_heldout(prompt: Prompt) -> bool:
    """Whether a prompt belongs to evaluation. Decided by its own hash, so no size, seed or order can mix the two sides."""
    return int(prompt.id, 16) % HELDOUT_ONE_IN == 0


def heldout_prompts(task: Task, size: int) -> list[Prompt]:
    """The first `size` held-out prompts: the same for every run, and a prefix of every longer list."""
    prompts = _draw(task, f"{task.name}/heldout", heldout=True, count=size)
    if len(prompts) < size:
        raise InvalidConfig(
            [
                FieldProblem(
                    "task.heldout_size",
                    size,
                    f"the task {task.name!r} has only {len(prompts)} held-out prompts",
                    f"Use {len(prompts)} or fewer.",
                )
            ]
        )
    return prompts


def train_prompts(task: Task, seed: int, step: int, count: int) -> list[Prompt]:
    """The prompts of one training step: a function of (seed, step) alone, so that a resumed run draws the same.

    Never a held-out one. No two are equal, unless the task has fewer than `count` prompts; then they repeat in turn.
    """
    prompts = _draw(task, f"{task.name}/train/{seed}/{step}", heldout=False, count=count)
    if not prompts and count:
        raise InvalidConfig(
            [
                FieldProblem(
                    "task.name",
                    task.name,
                    "the task has no prompt to train on",
                    "Choose a task with more prompts.",
                )
            ]
        )
    return [prompts[i % len(prompts)] for i in range(count)]


def _draw(task: Task, key: str, *, heldout: bool, count: int) -> list[Prompt]:
    """Up to `count` different prompts of one side of the split; fewer when the task seems to have no more."""
    if task.table is not None:
        rows = (
            task.table.heldout[:count]
            if heldout
            else drawn(len(task.table.train), count, random.Random(key), task.table.train)
        )
        return [task.table.prompt(row) for row in rows]
    found: dict[str, Prompt] = {}
    idle = 0
    stream = _prompts(
        task, random.Random(key)
    )  # a string seed is hashed with sha512: the same in every process
    while len(found) < count and idle < PATIENCE:
        prompt = next(stream)
        idle += 1
        if is_heldout(prompt) == heldout and prompt.id not in found:
            found[prompt.id] = prompt
            idle = 0
    return list(found.values())


def drawn(size: int, count: int, rng: random.Random, of: Sequence[int]) -> list[int]:
    """`count` different ones of `of`, or all; the first of them do not depend on how many are asked for      Fisher-Yates, kept sparse"""
    moved: dict[int, int] = {}
    out = []
    for i in range(min(count, size)):
        j = rng.randrange(i, size)
        out.append(of[moved.get(j, j)])
        moved[j] = moved.get(i, i)
    return out


def _prompts(task: Task, rng: random.Random) -> Iterator[Prompt]:
    while True:
        text, answer, meta = task.make(rng)
        yield Prompt(prompt_id(task.name, text), text, answer, task.name, meta)
