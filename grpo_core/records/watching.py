"""Follows a file or folder that another trainer still writes, so that its run is live here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from grpo_core.errors import StudioError
from grpo_core.records.formats import Format
from grpo_core.records.importing import (
    BATCH,
    Asked,
    Imported,
    allowed,
    copy,
    find_format,
    left_out,
    read,
    summary,
)
from grpo_core.records.moved import follow_move, marks_of
from grpo_core.records.writer import RecordWriter
from grpo_core.store import Store
from grpo_core.types import RunStatus


@dataclass(frozen=True, slots=True)
class Rhythm:
    """look_seconds: between two looks; more where reading takes long.

    silence_seconds: without anything new for so long, the run counts as interrupted.
    """

    look_seconds: float = 2.0
    silence_seconds: float = 600.0


USUAL = Rhythm()


def watch_folder(
    store: Store,
    path: str | Path,
    asked: Asked,
    stop: threading.Event,
    on_news: Callable[[Imported], None] | None = None,
    rhythm: Rhythm = USUAL,
) -> Imported | None:
    """Import what is there and what comes, until the run has all of its steps, or until `stop`.

    The run is live while something new comes in time, then `interrupted`; if more comes, it is live
    again. At `stop` it is `stopped`. None: nothing came before `stop`. Raises StudioError.
    """
    place = allowed(path)
    form = _wait_for(place, asked, stop, rhythm)
    if form is None:
        return None
    run, _ = next(read(form, place, asked))
    follow_move(store, run.key, form, place)
    with left_out() as lines, RecordWriter(store, run, live=True, batch=BATCH) as writer:
        seen, news_at, took = None, time.monotonic(), 0.0
        while True:
            files = _signature(form, place)
            if files != seen:
                seen, started, before = files, time.monotonic(), writer.num_written
                lines.clear()  # the end of a file that is being written is read again
                run, steps = next(read(form, place, asked))
                writer.describe(run)
                writer.marks = marks_of(form, place)
                last = copy(writer, steps, lambda *_: None)
                writer.settle()
                took = time.monotonic() - started
                if writer.num_written > before:
                    news_at = time.monotonic()
                    if on_news is not None:
                        on_news(summary(store, writer.run_id, form.name, writer.num_written, lines))
                num_steps = writer.source.num_steps
                if num_steps is not None and last >= num_steps:
                    writer.finish(RunStatus.FINISHED)
                    break
            quiet = time.monotonic() - news_at
            if writer.is_live and quiet > rhythm.silence_seconds:
                writer.finish(RunStatus.INTERRUPTED, f"Nothing new has come for {quiet:.0f} s.")
            elif writer.is_live:
                writer.heartbeat()
            if stop.wait(max(rhythm.look_seconds, 3 * took)):
                if writer.is_live:
                    writer.finish(RunStatus.STOPPED)
                break
        return summary(store, writer.run_id, form.name, writer.num_written, lines)


def _wait_for(path: Path, asked: Asked, stop: threading.Event, rhythm: Rhythm) -> Format | None:
    """The format of the path once there is something to read."""
    if not path.parent.is_dir():
        raise StudioError(f"{str(path)!r} does not exist. Check the path.")
    while not stop.is_set():
        try:
            form = find_format(path, asked.format)
            if form.files(path):
                return form
        except StudioError:
            if path.is_file():  # a folder may still get its first file
                raise
        stop.wait(rhythm.look_seconds)
    return None


def _signature(form: Format, path: Path) -> list[tuple[str, int, int]]:
    """Differs as soon as a file of the run has grown or changed."""
    found = []
    for file in form.files(path):
        try:
            status = file.stat()
        except OSError:  # replaced just now
            continue
        found.append((str(file), status.st_size, status.st_mtime_ns))
    return found
