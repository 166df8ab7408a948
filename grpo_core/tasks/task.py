"""A task: a source of prompts, an exact grader, and a split into training and held-out prompts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol

from grpo_core.config.sections.task import HELDOUT_ONE_IN, MAX_DEFAULT_HELDOUT
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.tasks.columns import NO_ENVIRONMENT, row_environment
from grpo_core.types import Prompt

if TYPE_CHECKING:
    from grpo_core.tasks.table import PromptTable

# A generator that gives nothing new so many times in a row is exhausted; takes about 0.1 s.
MAX_IDLE_DRAWS = 20_000


@dataclass(frozen=True)
class Task:
    """A source of prompts and the grader of their answers.

    `make(rng)` returns (text, answer, meta), meta of JSON types only.
    `grade(answer_text, prompt)` returns 1.0 or 0.0 and ignores white space around the answer.
    It never raises, and reads a bounded number of characters of any input.
    """

    name: str
    title: str
    help: str
    instruction: str
    make: Callable[[random.Random], tuple[str, str, Mapping[str, Any]]] | None
    grade: Callable[[str, Prompt], float]
    table: PromptTable | None = None  # prompts of a file or dataset; then `make` is None
    environment: str = ""  # what the policy acts in; "": nothing, a completion has one turn
    by_row: bool = False  # a row's column `environment` comes before it

    def with_table(self, table: PromptTable, instruction: str | None = None) -> Task:
        """The same task with these prompts and, if given, another instruction."""
        instruction = self.instruction if instruction is None else instruction
        return replace(self, table=table, instruction=instruction)


def environment_of(task: Task, prompt: Prompt) -> str:
    """What the policy acts in to answer a prompt: its row's column, else the task's; "": nothing.

    A row names "none" for nothing, and is empty for the task's.
    """
    columns = prompt.meta.get("columns") if task.by_row else None
    named = row_environment(columns) if isinstance(columns, Mapping) else ""
    return "" if named == NO_ENVIRONMENT else named or task.environment


def environments_of(task: Task) -> list[str]:
    """All that `environment_of` may name for a prompt of the task; "": nothing."""
    named = task.table.environments if task.by_row and task.table is not None else ()
    return list(
        dict.fromkeys([task.environment, *("" if n == NO_ENVIRONMENT else n for n in named)])
    )


def instruction(what: str) -> str:
    """The instruction to a chat model. A model without a chat template reads the bare prompt."""
    return (
        f"{what} You may think first inside <think></think>. "
        "Write only the final answer inside <answer></answer>."
    )


def extract_answer(text: str) -> str | None:
    """The content of the last complete <answer>...</answer> pair, unchanged; None without a pair.

    The pair is the last <answer> before some </answer>, up to the first </answer> after it:
    "<answer>1<answer>2</answer>" gives "2". The last pair counts, because a model may correct
    itself. Where the pair is, and how many there are, is for format checks. Takes linear time.
    """
    opening = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    if opening < 0:
        return None
    start = opening + len("<answer>")
    return text[start : text.index("</answer>", start)]


def prompt_id(task: str, text: str) -> str:
    """A stable id of a prompt: 16 hex digits of blake2b over task and text."""
    return blake2b(f"{task}\n{text}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def is_heldout(prompt: Prompt) -> bool:
    """Whether a prompt is for evaluation only.

    Its own hash decides, so no size, seed or order can move a prompt to the other side.
    """
    return int(prompt.id, 16) % HELDOUT_ONE_IN == 0


def heldout_prompts(task: Task, size: int | None) -> list[Prompt]:
    """The first `size` held-out prompts: the same for every run, and a prefix of a longer list.

    size None: up to MAX_DEFAULT_HELDOUT, as many as the task holds out.
    Raises InvalidConfig on `task.heldout_size` if the task has fewer than a given size.
    """
    count = MAX_DEFAULT_HELDOUT if size is None else size
    prompts = _draw(task, f"{task.name}/heldout", heldout=True, count=count)
    if size is not None and len(prompts) < size:
        problem = FieldProblem(
            "task.heldout_size",
            size,
            f"the task {task.name!r} has only {len(prompts)} held-out prompts",
            f"Use {len(prompts)} or fewer, or leave it empty for as many as there are.",
        )
        raise InvalidConfig([problem])
    return prompts


def remarks(task: Task, heldout: Sequence[Prompt], size: int | None) -> str:
    """What a person must know before training on these prompts; "" for nothing.

    heldout, size: the held-out prompts, and how many the configuration asks for.
    """
    lines = []
    if task.table is not None:
        counts = task.table.counts
        prompts = counts.rows - counts.empty
        if counts.empty:
            lines.append(f"{counts.empty:,} of {counts.rows:,} rows have no prompt: left out.")
        if 0 < counts.unanswered < prompts:
            lines.append(f"{counts.unanswered:,} of {prompts:,} prompts have no answer.")
        if counts.contradictions:
            lines.append(
                f"{counts.contradictions:,} rows repeat a prompt with a different answer. "
                "The first answer is used."
            )
    if size is None and not heldout:
        lines.append("No prompt is held out, so accuracy is not measured.")
    return " ".join(lines)


def train_prompts(task: Task, seed: int, step: int, count: int) -> list[Prompt]:
    """The prompts of one training step; none is held out.

    They depend on (seed, step) alone, so a resumed run draws the same ones. All differ, unless
    the task has fewer than `count` prompts; then they repeat in turn.
    Raises InvalidConfig on `task.name` if the task has no training prompt.
    """
    prompts = _draw(task, f"{task.name}/train/{seed}/{step}", heldout=False, count=count)
    if not prompts and count:
        problem = FieldProblem(
            "task.name",
            task.name,
            "the task has no prompt to train on",
            "Choose a task with more prompts.",
        )
        raise InvalidConfig([problem])
    return [prompts[i % len(prompts)] for i in range(count)]


def _draw(task: Task, key: str, *, heldout: bool, count: int) -> list[Prompt]:
    """Up to `count` different prompts of one side of the split; fewer if there are no more."""
    # Python hashes a string seed with sha512, so the draw is the same in every process.
    rng = random.Random(key)
    if (table := task.table) is not None:
        rows = table.heldout[:count] if heldout else sample_distinct(table.train, count, rng)
        return [table.prompt(row, task.name) for row in rows]
    prompts: dict[str, Prompt] = {}
    idle = 0
    stream = _generate(task, rng)
    while len(prompts) < count and idle < MAX_IDLE_DRAWS:
        prompt = next(stream)
        idle += 1
        if is_heldout(prompt) == heldout and prompt.id not in prompts:
            prompts[prompt.id] = prompt
            idle = 0
    return list(prompts.values())


class _Rows(Protocol):
    """A sequence or an array of row numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def sample_distinct(items: _Rows, count: int, rng: random.Random) -> list[Any]:
    """`count` different items, or all; a smaller count gives a prefix of a larger one.

    Fisher-Yates shuffle that stores only the items it moved: O(count) memory.
    """
    moved: dict[int, int] = {}
    sampled = []
    for i in range(min(count, len(items))):
        j = rng.randrange(i, len(items))
        sampled.append(items[moved.get(j, j)])
        moved[j] = moved.get(i, i)
    return sampled


def _generate(task: Task, rng: random.Random) -> Iterator[Prompt]:
    assert task.make is not None, "a task without a table generates its prompts"
    while True:
        text, answer, meta = task.make(rng)
        yield Prompt(prompt_id(task.name, text), text, answer, task.name, meta)
