"""Prompts on disk: a source is read once into an Arrow file that gives any row on its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from grpo_core.config import TaskConfig
from grpo_core.config.sections.task import HELDOUT_ONE_IN
from grpo_core.errors import StudioError
from grpo_core.tasks.columns import Columns
from grpo_core.tasks.files import is_file, open_regular
from grpo_core.tasks.reasoning_gym import gym_identity
from grpo_core.tasks.source import check_kind
from grpo_core.tasks.source_reader import SourceReader
from grpo_core.types import Prompt

ROWS_PER_BATCH = 1024
TASK_NAME = "file"
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
    duplicates: int  # prompts that repeat in all that the model reads, up to case and white space
    contradictions: int  # duplicates with another answer
    leaks: int  # training prompts that are also held out; they leave training
    unanswered: int  # prompts without an answer
    cut: bool  # the source has more rows than max_rows


@dataclass(frozen=True, slots=True)
class About:
    """What is known of a source. environments: those that rows name, with the first such row."""

    columns: Columns
    counts: Counts
    environments: Mapping[str, int]


class PromptTable:
    """Rows of a memory-mapped Arrow file.

    `train` and `heldout` are row numbers. Only they are in memory: 8 bytes per prompt.
    """

    def __init__(self, path: Path, about: About, train: np.ndarray, heldout: np.ndarray):
        self.path = path
        self.about = about
        self.columns, self.counts = about.columns, about.counts
        self.environments = about.environments
        self.train = train
        self.heldout = heldout
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))

    def prompt(self, row: int, task: str = TASK_NAME) -> Prompt:
        """The prompt of a row. task: the name of its task, which grades its answers."""
        batch, offset = divmod(int(row), ROWS_PER_BATCH)
        [r] = self._reader.get_batch(batch).slice(offset, 1).to_pylist()
        return Prompt(
            f"{r['key']:016x}",
            r["text"],
            r["answer"],
            task,
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

    def one_of_each_chat(self) -> list[int]:
        """Row numbers: for each sequence of roles before a prompt, the first row that has it."""
        contents, first = r'"content": "(?:[^"\\]|\\.)*"', {}
        # pyarrow makes its functions when it is imported, so no type checker sees them.
        replace = pc.replace_substring_regex  # pyright: ignore[reportAttributeAccessIssue]
        for i in range(self._reader.num_record_batches):
            column = self._reader.get_batch(i).column("before")
            shapes = replace(column, contents, "").dictionary_encode()
            numbers, places = np.unique(shapes.indices.to_numpy(), return_index=True)
            for number, place in zip(numbers, places, strict=True):
                row = i * ROWS_PER_BATCH + int(place)
                first.setdefault(shapes.dictionary[number].as_py(), row)
        return list(first.values())

    def without(self, rows: np.ndarray) -> PromptTable:
        """The same file, with these rows in neither `train` nor `heldout`."""
        return PromptTable(
            self.path,
            self.about,
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
            *gym_identity(config),
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
    data, about = folder / f"{name}.arrow", folder / f"{name}.json"
    try:
        return _kept(data, about)
    except (OSError, ValueError, LookupError, TypeError, BadZipFile):
        pass  # not read yet, or a damaged copy
    try:
        _build(config, data, about)
        return _kept(data, about)
    except OSError as error:
        raise StudioError(
            f"The prompts of {config.path!r:.200} cannot be kept: {error.strerror or error}. "
            "Free some space, or set GRPO_STUDIO_CACHE to another folder."
        ) from None


def _kept(data: Path, about: Path) -> PromptTable:
    """The table of a source that was read before. Raises many errors if there is none."""
    known = json.loads(about.read_text("utf-8"))
    found = About(Columns(**known["columns"]), Counts(**known["counts"]), known["environments"])
    with np.load(data.with_suffix(".npz")) as split:
        return PromptTable(data, found, split["train"], split["heldout"])


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


def _build(config: TaskConfig, data: Path, about: Path) -> None:
    """Read the source into `data` (.arrow), with its row numbers (.npz) and description (.json).

    The description is written last, so a build that was interrupted is repeated.
    """
    data.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    source = SourceReader(config)
    with tempfile.NamedTemporaryFile(dir=data.parent, suffix=".part", delete=False) as part:
        try:
            keys, answers, is_heldout = _write(part, source.records())
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
        "columns": asdict(source.columns),
        "counts": {
            "rows": source.num_rows,
            "empty": source.num_empty,
            "unanswered": source.num_unanswered,
            "cut": source.cut,
            **counts,
        },
        "environments": source.environments,
    }
    temporary = about.with_suffix(f".{os.getpid()}.part")
    temporary.write_text(json.dumps(described), "utf-8")
    os.replace(temporary, about)


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


def keep_upload(source: Path) -> Path:
    """Copy an upload to the cache and return its new path, which ends in its name.

    Equal content under one name is stored once. Raises BadSource for a kind of file that is not
    read, and OSError.
    """
    check_kind(str(source))
    digest = blake2b(digest_size=8)
    with open_regular(source) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", source.stem).strip("-")[:60] or "prompts"
    uploads = cache_folder().parent / "uploads"
    target = uploads / digest.hexdigest() / f"{readable}{source.suffix.lower()}"
    for folder in (uploads, target.parent):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not target.exists():
        part = target.with_suffix(".part")
        with open_regular(source) as file, part.open("wb") as out:
            shutil.copyfileobj(file, out)
        part.replace(target)
    return target
