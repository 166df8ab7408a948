"""Reads a task's source row by row: chooses its columns, counts its rows, finds equal prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import chain, islice
from typing import Any

from grpo_core.config import TaskConfig
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.tasks.cells import BadCell, plain
from grpo_core.tasks.columns import (
    Columns,
    Reading,
    RowPrompt,
    choose_columns,
    fill_template,
    row_environment,
    row_to_prompt,
    with_later_columns,
)
from grpo_core.tasks.files import BadSource, is_file
from grpo_core.tasks.reasoning_gym import gym_rows, is_gym
from grpo_core.tasks.source import Row, read_rows

FIRST_ROWS = 1_000  # their names decide which columns are read
MAX_NAMES = 1_000  # of environments; a column with more holds something else
FIRST_CHARACTERS = 64 << 20  # of fewer rows, where rows are large
CELL_HINT = (
    "A prompt is text or a chat of text messages, an answer one text or number. "
    "Correct the row, or name another column."
)


class SourceReader:
    """Reads a task's source as records of a prompt table, and counts them."""

    def __init__(self, config: TaskConfig):
        self.config = config
        self.columns: Columns | None = None  # of the training source, chosen at its first rows
        self.num_rows = self.num_empty = self.num_unanswered = 0
        self.environments: dict[str, int] = {}  # that rows name, with the first such row
        self.cut = False

    def records(self) -> Iterator[dict[str, Any]]:
        """The training source's records, then those of the held-out source, if there is one.

        Raises InvalidConfig; BadSource also names the row.
        """
        config = self.config
        yield from self._side(config.path, config.split, heldout=False)
        if config.heldout_source:
            # Beside a dataset, a name that is no file is another split of it.
            is_split = not is_file(config.path) and not is_file(config.heldout_source)
            path = config.path if is_split else config.heldout_source
            split = config.heldout_source if is_split else config.split
            yield from self._side(path, split, heldout=True)

    def _side(self, path: str, split: str, *, heldout: bool) -> Iterator[dict[str, Any]]:
        """The records of one source. Raises BadSource if it has none."""
        found = False
        for record in self._read(path, split, heldout=heldout):
            found = True
            yield record
        if not found:
            name = self.config.heldout_source if heldout else path
            field = "task.heldout_source" if heldout else "task.path"
            hint = "The file has no rows."
            if self.columns and not heldout:
                hint = f"Check the column {self.columns.prompt!r}."
            raise BadSource(name, "it has no row with a prompt in it", hint, field)

    def _read(self, path: str, split: str, *, heldout: bool) -> Iterator[dict[str, Any]]:
        config = self.config
        is_made = is_gym(config.name)
        rows = gym_rows(config) if is_made else read_rows(path, config.subset, split)
        rows = islice(rows, config.max_rows + 1)
        first = _first_rows(rows)
        if not first:
            return
        columns = choose_columns(first, config.prompt_column, config.answer_column)
        _check_template(config.template, first[0])
        names = {name for row in first for name in row}
        reading = Reading(config.template, config.answers == "as they are", names)
        for number, row in enumerate(chain(first, rows), 1):
            if number > config.max_rows:
                self.cut = True
                return
            if not row.keys() <= names:
                _check_later_names(config, row.keys() - names, number)
                names |= row.keys()
                columns = with_later_columns(columns, row)
            if not heldout:
                self.columns = columns
            self.num_rows += 1
            try:
                prompt = row_to_prompt(row, columns, reading)
            except BadCell as error:
                raise BadSource(path, f"row {number:,}, {error}", CELL_HINT) from None
            if prompt is None:
                self.num_empty += 1
                continue
            self.num_unanswered += not prompt.answer
            if (name := row_environment(prompt.meta)) and len(self.environments) < MAX_NAMES:
                self.environments.setdefault(name, number)
            yield _record(prompt, config.system, heldout)


def _first_rows(rows: Iterator[Row]) -> list[Row]:
    first, size = [], 0
    for row in rows:
        first.append(row)
        size += len(repr(row))
        if len(first) == FIRST_ROWS or size > FIRST_CHARACTERS:
            break
    return first


def _check_template(template: str, row: Row) -> None:
    marker = "\0"
    if marker not in fill_template(template, marker, dict.fromkeys(row)):
        problem = FieldProblem(
            "task.template",
            template,
            "it does not contain {prompt}, so all prompts would be equal",
            "Write {prompt} where the prompt belongs.",
        )
        raise InvalidConfig([problem])


def _check_later_names(config: TaskConfig, names: set[str], number: int) -> None:
    """Earlier prompts kept {name} as text, because no row had such a column. Raises BadSource."""
    text = config.template
    if used := [name for name in names if f"{{{name}}}" in text or f"{{{name}." in text]:
        problem = (
            f"row {number:,} is the first with the column {used[0]!r}, which is in the template"
        )
        hint = f"Give one of the first {FIRST_ROWS:,} rows this column; it may be empty."
        raise BadSource(config.path, problem, hint)


def _record(prompt: RowPrompt, system: str, heldout: bool) -> dict[str, Any]:
    """One row of a prompt table. The system prompt of all prompts is no part of the key."""
    text, answer = _storable(prompt.text), _storable(prompt.answer)
    messages = [{"role": "system", "content": system}] if system else []
    before = _storable(json.dumps([*messages, *prompt.before], ensure_ascii=False))
    meta = {"columns": prompt.meta, "chat": prompt.is_chat}
    return {
        "key": prompt_key(prompt.before, text),
        "answer_key": normal_key(answer),
        "heldout": heldout,
        "bytes": len(text.encode()) + len(before.encode()),
        "text": text,
        "answer": answer,
        "before": before,
        "meta": _storable(_as_json(meta)),
    }


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=plain)
    except TypeError:  # an object of a dataset with names that are no text
        return json.dumps(plain(value), ensure_ascii=False)


def _storable(text: str) -> str:
    """The text without lone surrogates: a JSON escape can hold one, an Arrow file cannot."""
    return text.encode("utf-8", "replace").decode()


def prompt_key(before: Sequence[Mapping[str, str]], text: str) -> int:
    """A 64-bit hash of all that a row gives the model; a single message is hashed as its text."""
    if not before:
        return normal_key(text)
    turns = [*((m["role"], m["content"]) for m in before), ("user", text)]
    return _hash(json.dumps([(role, _normal(content)) for role, content in turns]))


def normal_key(text: str) -> int:
    """A 64-bit hash that ignores case and white space: "What is 2+2?" equals "what is  2+2?"."""
    return _hash(_normal(text))


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())
