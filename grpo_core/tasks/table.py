"""Prompts on disk: a source is read once into an Arrow file that gives any row on its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from grpo_core.config import TaskConfig
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.tasks.columns import (
    Columns,
    RowPrompt,
    choose_columns,
    fill_template,
    row_to_prompt,
)
from grpo_core.tasks.source import BadSource, Row, is_file, read_rows
from grpo_core.types import Prompt

ROWS_PER_BATCH = 1024
TASK_NAME = "file"
HELDOUT_ONE_IN = 10  # as in tasks.task, which cannot be imported here
SCHEMA = pa.schema(
    [
        ("key", pa.uint64()),
        ("answer_key", pa.uint64()),
        ("heldout", pa.bool_()),
        ("bytes", pa.uint32()),
        ("text", pa.large_string()),
        ("answer", pa.large_string()),
        ("before", pa.large_string()),
        ("meta", pa.large_string()),
    ]
)
# Version of the Arrow file. Part of its name, so that no version reads another one's file.
FORMAT = "2"


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts from reading a source; shown before a run."""

    rows: int
    empty: int  # rows without a prompt
    duplicates: int  # prompts that repeat, up to case and white space
    contradictions: int  # duplicates with another answer
    leaks: int  # training prompts that are also held out; they leave training
    unanswered: int  # prompts without an answer
    cut: bool  # the source has more rows than max_rows


class PromptTable:
    """Rows of a memory-mapped Arrow file.

    `train` and `heldout` are row numbers. Only they are in memory: 8 bytes per prompt.
    """

    def __init__(
        self, path: Path, columns: Columns, counts: Counts, train: np.ndarray, heldout: np.ndarray
    ):
        self.path = path
        self.columns = columns
        self.counts = counts
        self.train = train
        self.heldout = heldout
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))

    def prompt(self, row: int) -> Prompt:
        batch, offset = divmod(int(row), ROWS_PER_BATCH)
        [r] = self._reader.get_batch(batch).slice(offset, 1).to_pylist()
        return Prompt(
            f"{r['key']:016x}",
            r["text"],
            r["answer"],
            TASK_NAME,
            {
                "before": json.loads(r["before"]),
                "prompt_column": self.columns.prompt,
                "answer_column": self.columns.answer,
                **json.loads(r["meta"]),
            },
        )

    @property
    def fingerprint(self) -> str:
        """Changes with any prompt, any answer and their order; not with file name or date.

        Ignores case and white space.
        """
        keys = self._column("key").tobytes() + self._column("answer_key").tobytes()
        return blake2b(keys, digest_size=8).hexdigest()

    def longer_than(self, num_bytes: int) -> np.ndarray:
        """Row numbers of prompts of more than `num_bytes` bytes, earlier messages included."""
        return np.flatnonzero(self._column("bytes") > num_bytes)

    def without(self, rows: np.ndarray) -> PromptTable:
        """The same file, with these rows in neither `train` nor `heldout`."""
        return PromptTable(
            self.path,
            self.columns,
            self.counts,
            np.setdiff1d(self.train, rows),
            self.heldout[~np.isin(self.heldout, rows)],
        )

    def _column(self, name: str) -> np.ndarray:
        batches = (
            self._reader.get_batch(i).column(name).to_numpy(zero_copy_only=False)
            for i in range(self._reader.num_record_batches)
        )
        return np.concatenate([np.empty(0, np.uint64), *batches])


def open_table(config: TaskConfig) -> PromptTable:
    """The prompts that a task configuration names.

    A source is read once, and again only after its file changed; else the cache has it.
    Raises InvalidConfig naming the field: no readable file, no such column, no prompts.
    """
    key = json.dumps(
        [
            FORMAT,
            _identity(config.path),
            _identity(config.heldout_source),
            config.path,
            config.heldout_source,
            config.subset,
            config.split,
            config.prompt_column,
            config.answer_column,
            config.template,
            config.system,
            config.answers,
            config.max_rows,
        ]
    )
    name = blake2b(key.encode("utf-8", "replace"), digest_size=12).hexdigest()
    # The table does not depend on how many prompts are evaluated.
    config = config.model_copy(update={"heldout_size": 0})
    # Frozen pydantic models are hashable at run time; pyright does not see it.
    return _open(name, config)  # pyright: ignore[reportArgumentType]


@lru_cache(maxsize=4)
def _open(name: str, config: TaskConfig) -> PromptTable:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    data, about = folder / f"{name}.arrow", folder / f"{name}.json"
    if not (data.exists() and about.exists()):
        _build(config, data, about)
    known = json.loads(about.read_text("utf-8"))
    columns, counts = Columns(**known["columns"]), Counts(**known["counts"])
    with np.load(data.with_suffix(".npz")) as split:
        return PromptTable(data, columns, counts, split["train"], split["heldout"])


def cache_folder() -> Path:
    """Where prompts are kept between runs: $GRPO_STUDIO_CACHE, else the user's cache."""
    root = (
        os.environ.get("GRPO_STUDIO_CACHE")
        or os.environ.get("XDG_CACHE_HOME")
        or Path.home() / ".cache"
    )
    return Path(root) / "grpo-studio" / "prompts"


def _identity(path: str) -> list[Any]:
    """Modification time and size of a file; [] for a Hub dataset."""
    if not path or not is_file(path):
        return []
    stat = Path(path).expanduser().resolve().stat()
    return [stat.st_mtime_ns, stat.st_size]


class _SourceReader:
    """Reads a task's source as rows of SCHEMA, and counts them."""

    def __init__(self, config: TaskConfig):
        self.config = config
        self.columns: Columns | None = None  # chosen at the first row
        self.num_rows = self.num_empty = self.num_unanswered = 0
        self.cut = False

    def rows(self) -> Iterator[dict[str, Any]]:
        """The training source's rows, then those of the held-out source, if there is one."""
        path, heldout = self.config.path, self.config.heldout_source
        yield from self._read(path, self.config.split, heldout=False)
        if heldout and is_file(heldout):
            yield from self._read(heldout, self.config.split, heldout=True)
        elif heldout:  # another split of the same dataset
            yield from self._read(path, heldout, heldout=True)

    def _read(self, path: str, split: str, *, heldout: bool) -> Iterator[dict[str, Any]]:
        config = self.config
        for count, row in enumerate(read_rows(path, config.subset, split)):
            if count == config.max_rows:
                self.cut = True
                return
            if self.columns is None:
                self.columns = choose_columns(row, config.prompt_column, config.answer_column)
                _check_template(config.template, row)
            self.num_rows += 1
            verbatim = config.answers == "as they are"
            prompt = row_to_prompt(row, self.columns, config.template, config.system, verbatim)
            if prompt is None:
                self.num_empty += 1
                continue
            self.num_unanswered += not prompt.answer
            yield _record(prompt, heldout)


def _record(prompt: RowPrompt, heldout: bool) -> dict[str, Any]:
    """One row of SCHEMA."""
    text, answer = _storable(prompt.text), _storable(prompt.answer)
    before = _storable(json.dumps(prompt.before, ensure_ascii=False))
    meta = {"columns": prompt.meta, "chat": prompt.is_chat}
    return {
        "key": normal_key(text),
        "answer_key": normal_key(answer),
        "heldout": heldout,
        "bytes": len(text.encode()) + len(before.encode()),
        "text": text,
        "answer": answer,
        "before": before,
        "meta": _storable(json.dumps(meta, ensure_ascii=False, default=str)),
    }


def _storable(text: str) -> str:
    """The text without lone surrogates: a JSON escape can hold one, an Arrow file cannot."""
    return text.encode("utf-8", "replace").decode()


def _build(config: TaskConfig, data: Path, about: Path) -> None:
    """Read the source into `data` (.arrow), with its row numbers (.npz) and description (.json).

    The description is written last, so a build that was interrupted is repeated.
    """
    source = _SourceReader(config)
    with tempfile.NamedTemporaryFile(dir=data.parent, suffix=".part", delete=False) as part:
        try:
            keys, answers, is_heldout = _write(part, source.rows())
            if not len(keys):
                hint = "The file has no rows."
                if source.columns:
                    hint = f"Check the column {source.columns.prompt!r}."
                raise BadSource(config.path, "it has no row with a prompt in it", hint)
            has_heldout = bool(config.heldout_source)
            counts, train, heldout = _split(keys, answers, is_heldout, has_heldout)
            part.close()
            with tempfile.NamedTemporaryFile(dir=data.parent, suffix=".npz", delete=False) as split:
                np.savez(split, train=train, heldout=heldout)
            os.replace(split.name, data.with_suffix(".npz"))
            os.replace(part.name, data)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
    assert source.columns is not None  # there is a row
    described = {
        "columns": {"prompt": source.columns.prompt, "answer": source.columns.answer},
        "counts": {
            "rows": source.num_rows,
            "empty": source.num_empty,
            "unanswered": source.num_unanswered,
            "cut": source.cut,
            **counts,
        },
    }
    temporary = about.with_suffix(f".{os.getpid()}.part")
    temporary.write_text(json.dumps(described), "utf-8")
    os.replace(temporary, about)


def _check_template(template: str, row: Row) -> None:
    marker = "\0"
    if marker not in fill_template(template, marker, row):
        problem = FieldProblem(
            "task.template",
            template,
            "it has no {prompt} in it, so all prompts would be equal",
            "Write {prompt} where the prompt goes.",
        )
        raise InvalidConfig([problem])


def _write(file: Any, rows: Iterator[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write the rows. Returns keys, answer keys and held-out flags, each (rows,)."""
    keys, answers, flags = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], [np.empty(0, bool)]
    with pa.ipc.new_file(file, SCHEMA) as writer:
        while chunk := list(islice(rows, ROWS_PER_BATCH)):
            batch = pa.RecordBatch.from_pylist(chunk, SCHEMA)
            writer.write_batch(batch)
            keys.append(batch.column("key").to_numpy())
            answers.append(batch.column("answer_key").to_numpy())
            flags.append(batch.column("heldout").to_numpy(zero_copy_only=False))
    return np.concatenate(keys), np.concatenate(answers), np.concatenate(flags)


def _split(
    keys: np.ndarray, answers: np.ndarray, is_heldout: np.ndarray, has_heldout_source: bool
) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    """Counts, and the row numbers of training and held-out prompts, without duplicates.

    A held-out source decides what is held out, and training loses its prompts. Without one, the
    prompt's own hash holds out one in ten.
    """
    sides = [~is_heldout, is_heldout] if has_heldout_source else [np.ones(len(keys), bool)]
    distinct, duplicates, contradictions = [], 0, 0
    for side in sides:
        at = np.flatnonzero(side)
        _, first, group = np.unique(keys[at], return_index=True, return_inverse=True)
        distinct.append(np.sort(at[first]))
        duplicates += len(at) - len(first)
        contradictions += int((answers[at] != answers[at[first[group]]]).sum())
    if has_heldout_source:
        train, heldout = distinct
        leaked = np.isin(keys[train], keys[heldout])
        leaks, train = int(leaked.sum()), train[~leaked]
    else:
        [rows] = distinct
        held = keys[rows] % HELDOUT_ONE_IN == 0
        leaks, train, heldout = 0, rows[~held], rows[held]
    # Ordered by hash, so that a smaller held-out set is the start of a larger one, and not simply
    # the file's first rows.
    heldout = heldout[np.argsort(keys[heldout], kind="stable")]
    counts = {"duplicates": duplicates, "contradictions": contradictions, "leaks": leaks}
    return counts, train, heldout


def normal_key(text: str) -> int:
    """A 64-bit hash that ignores case and white space: "What is 2+2?" equals "what is  2+2?"."""
    normal = " ".join(text.casefold().split())
    return int.from_bytes(blake2b(normal.encode(), digest_size=8).digest(), "big")


def keep_upload(source: Path) -> Path:
    """Copy an upload to the cache and return its new path. Equal content is stored once."""
    digest = blake2b(digest_size=8)
    with source.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", source.stem).strip("-")[:60] or "prompts"
    name = f"{readable}-{digest.hexdigest()}{source.suffix.lower()}"
    target = cache_folder().parent / "uploads" / name
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not target.exists():
        part = target.with_suffix(".part")
        shutil.copyfile(source, part)
        part.replace(target)
    return target
