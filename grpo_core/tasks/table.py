"""Prompts on disk: a source is read once into an Arrow file, from which any row is fetched without loading the others."""

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
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from grpo_core.config import TaskConfig
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.tasks.columns import Columns, asked, choose_columns, fill
from grpo_core.tasks.source import BadSource, is_file, read_rows
from grpo_core.types import Prompt

ROWS_A_BATCH = 1024
NAME = "file"
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
FORMAT = "1"  # of the Arrow file; part of its name, so that another version's file is never read


@dataclass(frozen=True, slots=True)
class Counts:
    """What was found while reading; shown before a run and kept with the preview."""

    rows: int
    empty: int  # asked nothing
    duplicates: int  # the same prompt again, up to case and spaces
    contradictions: int  # of these, with another answer
    leaks: int  # training prompts that are also held out: taken out of training
    unanswered: int  # prompts without an answer
    cut: bool  # the source has more rows than max_rows


class PromptTable:
    """Rows of a memory-mapped Arrow file. `train` and `heldout` are row numbers; only they are in memory: 8 bytes a prompt."""

    def __init__(
        self, path: Path, columns: Columns, counts: Counts, train: np.ndarray, heldout: np.ndarray
    ):
        self.path, self.columns, self.counts, self.train, self.heldout = (
            path,
            columns,
            counts,
            train,
            heldout,
        )
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))

    def prompt(self, row: int) -> Prompt:
        """One row."""
        r = (
            self._reader.get_batch(int(row) // ROWS_A_BATCH)
            .slice(int(row) % ROWS_A_BATCH, 1)
            .to_pylist()[0]
        )
        return Prompt(
            f"{r['key']:016x}",
            r["text"],
            r["answer"],
            NAME,
            {"before": json.loads(r["before"]), "columns": json.loads(r["meta"])},
        )

    @property
    def fingerprint(self) -> str:
        """Differs where a prompt or an answer does, up to case and white space, or their order; not by file name or date."""
        return blake2b(
            self._column("key").tobytes() + self._column("answer_key").tobytes(), digest_size=8
        ).hexdigest()

    def longer_than(self, num_bytes: int) -> np.ndarray:
        """Row numbers of prompts of more than so many bytes, earlier messages included: only these can be too many tokens."""
        return np.flatnonzero(self._column("bytes") > num_bytes)

    def without(self, rows: np.ndarray) -> PromptTable:
        """The same file with some rows never drawn."""
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
    """The prompts that a task configuration names. Read once; after that from the cache, until the file changes.

    Raises InvalidConfig naming the field: a file that is none, a column that is not there, nothing to train on.
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
    return _open(
        blake2b(key.encode("utf-8", "replace"), digest_size=12).hexdigest(),
        config.model_copy(update={"heldout_size": 0}),
    )


@lru_cache(maxsize=4)
def _open(name: str, config: TaskConfig) -> PromptTable:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    data, about = folder / f"{name}.arrow", folder / f"{name}.json"
    if not (data.exists() and about.exists()):
        _build(config, data, about)
    known = json.loads(about.read_text("utf-8"))
    with np.load(folder / f"{name}.npz") as split:
        return PromptTable(
            data,
            Columns(**known["columns"]),
            Counts(**known["counts"]),
            split["train"],
            split["heldout"],
        )


def cache_folder() -> Path:
    """Where prompts are kept between runs: $GRPO_STUDIO_CACHE, else the user's cache."""
    root = (
        os.environ.get("GRPO_STUDIO_CACHE")
        or os.environ.get("XDG_CACHE_HOME")
        or Path.home() / ".cache"
    )
    return Path(root) / "grpo-studio" / "prompts"


def _identity(path: str) -> list[Any]:
    if not path or not is_file(path):
        return []
    found = Path(path).expanduser().resolve().stat()
    return [found.st_mtime_ns, found.st_size]


def _build(config: TaskConfig, data: Path, about: Path) -> None:
    """Read the source into `data`; the description is written last, so that a build that was cut off is done again."""
    columns: list[Columns] = []
    empty = unanswered = total = 0
    cut = False

    def rows(path: str, heldout: bool) -> Iterator[dict[str, Any]]:
        nonlocal empty, unanswered, total, cut
        source = read_rows(
            path,
            config.subset,
            config.split if not heldout or is_file(path) else config.heldout_source,
        )
        for count, row in enumerate(source):
            if count == config.max_rows:
                cut = True
                return
            if not columns:
                columns.append(choose_columns(row, config.prompt_column, config.answer_column))
                _check_template(config.template, row)
            total += 1
            if (
                a := asked(
                    row, columns[0], config.template, config.system, config.answers == "as they are"
                )
            ) is None:
                empty += 1
                continue
            unanswered += not a.answer
            before = json.dumps(a.before, ensure_ascii=False)
            # utf-8 with replacement: a lone surrogate in a JSON escape has no place in an Arrow file.
            clean = [
                s.encode("utf-8", "replace").decode()
                for s in (
                    a.text,
                    a.answer,
                    before,
                    json.dumps(a.meta, ensure_ascii=False, default=str),
                )
            ]
            yield {
                "key": normal_key(clean[0]),
                "answer_key": normal_key(clean[1]),
                "heldout": heldout,
                "bytes": len(clean[0].encode()) + len(before.encode()),
                **dict(zip(("text", "answer", "before", "meta"), clean, strict=True)),
            }

    both = rows(config.path, False)
    if config.heldout_source:
        both = chain(
            both,
            rows(config.heldout_source if is_file(config.heldout_source) else config.path, True),
        )
    with tempfile.NamedTemporaryFile(dir=data.parent, suffix=".part", delete=False) as part:
        try:
            keys, answers, flags = _write(part, both)
            counts, train, heldout = _split(keys, answers, flags, bool(config.heldout_source))
            if not len(keys):
                raise BadSource(
                    config.path,
                    "it has no row with a prompt in it",
                    f"Check the column {columns[0].prompt!r}."
                    if columns
                    else "The file has no rows.",
                )
            part.close()
            with tempfile.NamedTemporaryFile(dir=data.parent, suffix=".npz", delete=False) as split:
                np.savez(split, train=train, heldout=heldout)
            os.replace(split.name, data.with_suffix(".npz"))
            os.replace(part.name, data)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
    described = {
        "columns": {"prompt": columns[0].prompt, "answer": columns[0].answer},
        "counts": {"rows": total, "empty": empty, "unanswered": unanswered, "cut": cut, **counts},
    }
    temporary = about.with_suffix(f".{os.getpid()}.part")
    temporary.write_text(json.dumps(described), "utf-8")
    os.replace(temporary, about)


def _check_template(template: str, row: Any) -> None:
    marker = "\0"
    if marker not in fill(template, marker, row):
        raise InvalidConfig(
            [
                FieldProblem(
                    "task.template",
                    template,
                    "it has no {prompt} in it, so all prompts would be equal",
                    "Write {prompt} where the prompt goes.",
                )
            ]
        )


def _write(file: Any, rows: Iterator[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keys, answers, flags = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)], [np.empty(0, bool)]
    with pa.ipc.new_file(file, SCHEMA) as writer:
        while chunk := list(islice(rows, ROWS_A_BATCH)):
            batch = pa.RecordBatch.from_pylist(chunk, SCHEMA)
            writer.write_batch(batch)
            keys.append(batch.column("key").to_numpy())
            answers.append(batch.column("answer_key").to_numpy())
            flags.append(batch.column("heldout").to_numpy(zero_copy_only=False))
    return np.concatenate(keys), np.concatenate(answers), np.concatenate(flags)


def _split(
    keys: np.ndarray, answers: np.ndarray, flags: np.ndarray, own_heldout: bool
) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    """First occurrences only; one in ten held out by the prompt's own hash, or what the held-out source says, which training then lacks."""
    sides = [~flags, flags] if own_heldout else [np.ones(len(keys), bool)]
    firsts, duplicates, contradictions = [], 0, 0
    for side in sides:
        at = np.flatnonzero(side)
        _, first, group = np.unique(keys[at], return_index=True, return_inverse=True)
        firsts.append(np.sort(at[first]))
        duplicates += len(at) - len(first)
        contradictions += int((answers[at] != answers[at[first[group]]]).sum())
    if own_heldout:
        train, heldout = firsts
        leaked = np.isin(keys[train], keys[heldout])
        leaks, train = int(leaked.sum()), train[~leaked]
    else:
        leaks, out = 0, keys[firsts[0]] % 10 == 0
        train, heldout = firsts[0][~out], firsts[0][out]
    heldout = heldout[
        np.argsort(keys[heldout], kind="stable")
    ]  # by hash: a smaller held-out set is the start of a larger one, and not the file's first rows
    return (
        {"duplicates": duplicates, "contradictions": contradictions, "leaks": leaks},
        train,
        heldout,
    )


def normal_key(text: str) -> int:
    """64 bits that are equal for texts equal up to case and white space: "What is 2+2?" and "what is  2+2?" are one prompt."""
    return int.from_bytes(
        blake2b(" ".join(text.casefold().split()).encode(), digest_size=8).digest(), "big"
    )


def keep_upload(source: Path) -> Path:
    """Copies an upload to where it stays, and returns that place. The same content twice is one file."""
    digest = blake2b(digest_size=8)
    with source.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", source.stem).strip("-")[:60] or "prompts"
    target = (
        cache_folder().parent
        / "uploads"
        / f"{readable}-{digest.hexdigest()}{source.suffix.lower()}"
    )
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not target.exists():
        part = target.with_suffix(".part")
        shutil.copyfile(source, part)
        part.replace(target)
    return target
