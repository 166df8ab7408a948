"""Reads what another trainer wrote into the store, once or while it grows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from grpo_core.config.places import may_read
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.records.formats import FORMATS, Format
from grpo_core.records.formats.rows import log
from grpo_core.records.formats.table import read as read_table
from grpo_core.records.formats.table import why_not
from grpo_core.records.moved import follow_move, marks_of
from grpo_core.records.record import SourceRun, SourceStep
from grpo_core.records.writer import RecordWriter
from grpo_core.store import Store, foreign
from grpo_core.types import RunStatus

BATCH = 2000  # completions in one transaction
MAX_LEFT_OUT = 50  # lines about what was left out
# What a loader would have to execute. https://docs.python.org/3/library/pickle.html
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npz")
ARCHIVES = (".zip", ".gz", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".zst")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person asks of an import. Empty: as the source has it.

    format: a key of FORMATS. columns: role -> column of a table. weights: of reward functions, by
    name. key: in place of the path, as for an uploaded file. max_bytes: larger folders are refused.
    """

    format: str = ""
    name: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    key: str = ""
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """The run as it is now. added: steps, or parts of steps, that were new or had changed.

    left_out: what of the files could not be read, one line each. others: ids of the further runs
    that a project of trackio had.
    """

    run_id: str
    format: str
    steps: int
    groups: int
    rollouts: int
    recorded: tuple[str, ...]
    recomputed: Mapping[str, str]
    absent: tuple[str, ...]
    disagreements: int
    added: int
    left_out: tuple[str, ...]
    others: tuple[str, ...] = ()


Progress = Callable[[int, int], None]  # steps and completions read until now


def import_folder(
    store: Store, path: str | Path, asked: Asked | None = None, progress: Progress | None = None
) -> Imported:
    """Read a file or folder into its runs, which the path identifies: a second import adds nothing.

    progress is called for each step; what it raises ends the import. What was read until then
    stays. Raises StudioError.
    """
    asked = asked or Asked()
    place = allowed(path)
    form = find_format(place, asked.format)
    check_size(form, place, asked.max_bytes)
    found: list[Imported] = []
    with left_out() as lines:
        for run, steps in read(form, place, asked):
            follow_move(store, run.key, form, place)
            with RecordWriter(store, run, batch=BATCH) as writer:
                writer.marks = marks_of(form, place)
                if asked.name and not found and store.run(writer.run_id).name != asked.name:
                    store.rename(writer.run_id, asked.name)
                try:
                    last = copy(writer, steps, progress or _nothing)
                except BaseException as error:
                    writer.finish(RunStatus.STOPPED, f"The import ended early: {one_line(error)}")
                    raise
                whole = run.num_steps is None or last >= run.num_steps
                writer.finish(RunStatus.FINISHED if whole else RunStatus.STOPPED)
                found.append(summary(store, writer.run_id, form.name, writer.num_written, lines))
    if not found:
        raise StudioError(f"{str(place)!r} has no run with completions.")
    return replace(found[0], others=tuple(other.run_id for other in found[1:]))


def find_format(path: Path, name: str = "") -> Format:
    """The format with this name, or the first that finds its fields. Raises StudioError."""
    if name and name not in FORMATS:
        known = f"Known: {', '.join(FORMATS)}."
        raise InvalidConfig([FieldProblem("--from", name, "there is no such format", known)])
    if not path.exists():
        raise StudioError(f"{str(path)!r} does not exist. Check the path.")
    if name:
        return FORMATS[name]
    for form in FORMATS.values():
        if form.finds(path):
            return form
    raise StudioError(_why_no_format(path))


def _why_no_format(path: Path) -> str:
    inside = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.is_file())
    for file in inside:
        if file.suffix.lower() in PICKLES:
            return (
                f"{str(file)!r} is a pickle. Reading one runs whatever code is in it, so it is "
                "refused. Write the rows as JSONL with prompt, completion and reward."
            )
        if file.suffix.lower() in ARCHIVES:
            return f"{str(file)!r} is an archive. Unpack it and import the folder."
    titles = "; ".join(form.title for form in FORMATS.values())
    reason = why_not(path) or "There is no JSONL, Parquet or CSV file in it."
    return f"{str(path)!r} is of no known format ({titles}). {reason}"


def allowed(path: str | Path) -> Path:
    """The resolved path, if this server may read it. Raises StudioError."""
    try:
        place = Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise StudioError(f"{str(path)!r:.200} is no path ({type(error).__name__}).") from None
    if not may_read(place):
        raise StudioError(f"{str(path)!r:.200} is outside the folders that this server may read.")
    return place


def check_size(form: Format, path: Path, most: int | None) -> None:
    """Raises StudioError if the files that would be read are larger than `most` together."""
    size = sum(file.stat().st_size for file in form.files(path))
    if most is not None and size > most:
        raise StudioError(
            f"{str(path)!r} has {size / 2**20:,.0f} MiB of files, and at most {most / 2**20:,.0f} "
            "MiB are read here. Import it with: python -m grpo_core import PATH"
        )


def read(
    form: Format, path: Path, asked: Asked
) -> Iterator[tuple[SourceRun, Iterator[SourceStep]]]:
    """The runs of a path, as they were asked for, each with its steps. Raises StudioError.

    A path is one run, except a project of trackio, whose newest run comes first.
    """
    is_table = form.name == "table"
    if asked.columns and not is_table:
        raise InvalidConfig(
            [FieldProblem("--columns", form.name, "only a table's columns can be named",
                          "Add --from table.")]
        )  # fmt: skip
    records = read_table(path, asked.columns) if is_table else form.read(path)
    weights = {"reward_weights": dict(asked.weights)} if asked.weights else {}
    number = -1

    def run_of(record: SourceRun | SourceStep) -> int:
        nonlocal number
        number += isinstance(record, SourceRun)
        return number

    for i, of_run in groupby(records, key=run_of):
        run = next(of_run)
        assert isinstance(run, SourceRun)
        key = f"{asked.key}:{run.key}" if asked.key and i else asked.key or run.key
        name = run.name if i else asked.name or run.name
        named = replace(run, key=key, name=name, settings={**run.settings, **weights})
        steps = (record for record in of_run if isinstance(record, SourceStep))  # noqa: B031
        yield named, steps


def copy(writer: RecordWriter, steps: Iterator[SourceStep], progress: Progress) -> int:
    """Write the steps; one that cannot be stored is left out. Returns the last step, -1: none."""
    last, num_rollouts, seen = -1, 0, 0
    for step in steps:
        try:
            writer.write(step)
        except InvalidConfig as error:
            log.warning("step %s: %s It was left out.", step.step, one_line(error))
            continue
        last, seen = max(last, step.step), seen + 1
        num_rollouts += sum(len(group.rollouts) for group in step.groups)
        progress(seen, num_rollouts)
    return last


def summary(
    store: Store, run_id: str, format: str, added: int, lines: Iterable[str] = ()
) -> Imported:
    """The run as the store has it now."""
    source = store.run(run_id).source
    assert source is not None
    return Imported(
        run_id,
        format,
        *foreign.sizes(store, run_id),
        source.recorded,
        source.recomputed,
        source.absent,
        source.disagreements,
        added,
        tuple(lines),
    )


@contextmanager
def left_out() -> Iterator[list[str]]:
    """Collects what the readers of this thread leave out, one line each."""
    lines: list[str] = []
    here = threading.get_ident()

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == here and len(lines) < MAX_LEFT_OUT:
                lines.append(one_line(record.getMessage()))

    handler = Collect()
    log.addHandler(handler)
    try:
        yield lines
    finally:
        log.removeHandler(handler)


def one_line(message: object) -> str:
    return " ".join(str(message).split())[:500]


def _nothing(*_: Any) -> None:
    pass
