"""Section `task`: where prompts come from, how they are written, and which are held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from grpo_core.config.places import Name
from grpo_core.config.sections.fields import Section, setting

MAX_DEFAULT_HELDOUT = 200  # prompts that are held out where a run does not say how many
MAX_SIZE = 100_000  # prompts that a task of reasoning-gym makes
HELDOUT_ONE_IN = 10  # one prompt in ten is held out
FILE_INSTRUCTION = (
    "Answer the question. You may think first inside <think></think>. "
    "Write only the final answer inside <answer></answer>."
)


class TaskConfig(Section):
    """The prompts of a run and its held-out prompts."""

    name: str = setting(
        "sums",
        "Task",
        "Where prompts come from, and how an answer is graded.",
        min_length=1,
        max_length=64,
    )
    size: int = setting(
        2000,
        "Prompts made",
        "Tasks of reasoning-gym: how many prompts are made before the run. One in ten of them is "
        "held out.",
        unit="prompts",
        ge=10,
        le=MAX_SIZE,
    )
    seed: int = setting(
        0,
        "Prompt seed",
        "Tasks of reasoning-gym: another seed gives other prompts.",
        ge=0,
        le=2**31 - 1,
    )
    level: int | None = setting(
        None,
        "Level",
        "Tasks of reasoning-gym: the level of its curriculum, from 0, the easiest. "
        "Empty: the task's usual difficulty.",
        ge=0,
        le=100,
    )
    path: Name = setting(
        "",
        "Prompts from",
        "A CSV, TSV, JSONL or Parquet file, or a dataset on the Hub such as openai/gsm8k.",
        max_length=1024,
        hint="Name an existing file, or a dataset as owner/name or hf://datasets/owner/name.",
    )
    subset: Name = setting(
        "",
        "Subset",
        "Hub datasets: the configuration, such as main. Empty: the only one.",
        max_length=200,
    )
    split: Name = setting(
        "train", "Split", "Hub datasets: the split to train on.", min_length=1, max_length=200
    )
    heldout_source: Name = setting(
        "",
        "Held-out from",
        "Another file, or another split of the dataset, to evaluate on. "
        "Its prompts are removed from training. Empty: one prompt in ten is held out.",
        max_length=1024,
    )
    prompt_column: str = setting(
        "",
        "Prompt column",
        "The column with the prompt, as text or chat messages. Empty: chosen by its name. "
        "Alpaca's column `input` is added to `instruction`.",
        max_length=200,
    )
    answer_column: str = setting(
        "",
        "Answer column",
        "The column with the right answer. Use dots for a value inside a column. "
        "Empty: chosen by its name.",
        max_length=200,
    )
    answers: Literal["recognised", "as they are"] = setting(
        "recognised",
        "Answers",
        "`recognised` takes the final answer out of a worked solution: "
        "after the last #### (GSM8K), or in the last \\boxed (MATH).",
    )
    template: str = setting(
        "{prompt}",
        "Template",
        "Text of each prompt. {prompt} and any other {column} are replaced by values of the row.",
        min_length=1,
        max_length=20_000,
    )
    instruction: str = setting(
        FILE_INSTRUCTION,
        "Instruction",
        "Placed before each prompt for a chat model. "
        "A model without a chat template gets the prompt alone.",
        max_length=20_000,
    )
    system: str = setting(
        "",
        "System prompt",
        "First message of the chat. A model without a system role reads it before the first "
        "user message. Empty: none.",
        max_length=20_000,
    )
    max_rows: int = setting(
        1_000_000,
        "Rows at most",
        "Read at most this many rows.",
        unit="rows",
        ge=1,
        le=100_000_000,
    )
    too_long: Literal["refuse", "drop"] = setting(
        "refuse",
        "Too long prompts",
        "What to do with prompts that leave no room for a completion in the model's context: "
        "`refuse` the run, or `drop` them. Both report how many there are.",
    )
    environment: str = setting(
        "",
        "Environment",
        "What the policy acts in, with tools and in several turns: Calculator, a game such as "
        "textarena:Sudoku-v0, or a class or server that the operator named. A column `environment` "
        "of the prompts chooses by row. Empty: the task's own. none: no environment.",
        max_length=300,
    )
    heldout_size: int | None = setting(
        None,
        "Held-out prompts",
        "Prompts kept out of training and used to measure accuracy. "
        f"Empty: up to {MAX_DEFAULT_HELDOUT}, at most one in ten of a task's prompts.",
        unit="prompts",
        ge=0,
        le=5000,
        hint="Leave it empty, use 200 or more for a narrow interval, or 0 for no evaluation.",
    )
    second: Name = setting(
        "",
        "Second task",
        "Evaluated beside the held-out prompts but never trained on, to show whether the model "
        "forgets it. A built-in task, a file or a Hub dataset. Empty: none.",
        max_length=1024,
        hint="Leave it empty, or write a built-in task such as sort, a file, or owner/name.",
    )

    @property
    def max_heldout(self) -> int:
        """The most prompts that are held out."""
        return MAX_DEFAULT_HELDOUT if self.heldout_size is None else self.heldout_size

    @model_validator(mode="before")
    @classmethod
    def _path_implies_file(cls, data: Any) -> Any:
        """`--set task.path=…` alone selects the task `file`."""
        if isinstance(data, Mapping) and data.get("path") and "name" not in data:
            return {**data, "name": "file"}
        return data
