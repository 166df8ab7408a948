"""Import for the page: uploads, folders of this server, a preview, folders that still grow."""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

from grpo_core.config.places import local_path, may_read
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.records.formats import FORMATS
from grpo_core.records.formats.table import first_columns
from grpo_core.records.importing import Asked, Imported, import_folder, one_line, summary
from grpo_core.records.moved import run_at
from grpo_core.records.watching import watch_folder
from grpo_core.store import GroupRow, RunRow, Store
from grpo_core.tasks.files import open_regular
from grpo_core.tasks.table import cache_folder

PREVIEW_STEPS, PREVIEW_SECONDS = 24, 4.0
MAX_FILES = 2_000  # of one upload
MAX_FOLLOWED = 8
BREATH_SECONDS = 0.001
CLOSE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person wants imported. files: uploads; else place, a path on this machine.

    format: a key of FORMATS, or "" to find it. name: of the run, or "" for the source's own.
    columns: of a table, role -> the column's name.
    """

    files: tuple[Path, ...] = ()
    place: str = ""
    format: str = ""
    name: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """What an import read or wrote: its numbers, its run, and one group.

    whole: everything was read; else only the first steps. known: id of the run, if the store has it
    already. others: the further runs that a project of trackio had.
    """

    numbers: Imported
    run: RunRow
    group: GroupRow | None
    whole: bool = True
    known: str | None = None
    others: tuple[RunRow, ...] = ()


class _Enough(Exception):
    """A preview has seen enough."""


class Imports:
    """Imports into one store. Every method raises StudioError with a message of one line."""

    def __init__(self, store: Store, check: Callable[[], object] = lambda: None):
        """check: raises StudioError while this server takes no more runs of this visitor."""
        self.store, self._check = store, check
        self._lock = threading.Lock()
        self._followed: dict[str, tuple[threading.Thread, threading.Event]] = {}

    def preview(self, wanted: Wanted) -> Found:
        """What is in the first steps, without a change to the store."""
        until = math.inf

        def look(steps: int, _: int) -> None:
            nonlocal until  # from the first step on: torch is imported before it
            until = min(until, time.monotonic() + PREVIEW_SECONDS)
            if steps >= PREVIEW_STEPS or time.monotonic() > until:
                raise _Enough

        with _place_of(wanted) as (path, asked), tempfile.TemporaryDirectory() as folder:
            scratch, whole = Store(Path(folder) / "preview.sqlite"), True
            try:
                try:
                    numbers = import_folder(scratch, path, asked, look)
                except _Enough:
                    numbers, whole = _numbers_of(scratch), False
                run = scratch.run(numbers.run_id)
                assert run.source is not None
                key, form = run.source.key, FORMATS[numbers.format]
                known = run_at(self.store, key, form, path.resolve())
                others = tuple(map(scratch.run, numbers.others))
                return Found(numbers, run, _a_group(scratch, run.id), whole, known, others)
            finally:
                scratch.close()

    def columns(self, wanted: Wanted) -> list[str]:
        """The names of a table's columns; [] if it has none that can be read."""
        with _place_of(wanted) as (path, _):
            return first_columns(path)

    def run(self, wanted: Wanted) -> Found:
        """Write all steps into the store; those that are there already stay as they are."""
        self._check()
        with _place_of(wanted) as (path, asked):
            # A breath after each step: the page answers others meanwhile.
            numbers = import_folder(self.store, path, asked, lambda *_: time.sleep(BREATH_SECONDS))
        run = self.store.run(numbers.run_id)
        others = tuple(map(self.store.run, numbers.others))
        return Found(numbers, run, _a_group(self.store, run.id), others=others)

    # ---- folders that still grow ---------------------------------------------------------------

    def follow(self, wanted: Wanted) -> None:
        """Import a folder of this server, and what comes into it, until it is complete."""
        if wanted.files:
            problem = FieldProblem("Follow", "", "an upload does not grow", "Name a folder.")
            raise InvalidConfig([problem])
        self._check()
        with _place_of(wanted) as (path, asked):
            place = str(path)
        with self._lock:
            self._forget_ended()
            if place in self._followed:
                raise StudioError(f"{place!r} is followed already.")
            if len(self._followed) >= MAX_FOLLOWED:
                raise StudioError(f"{MAX_FOLLOWED} folders are followed already. Stop one first.")
            stop = threading.Event()
            thread = threading.Thread(
                target=self._watch, args=(path, asked, stop), name=f"follow {place}", daemon=True
            )
            self._followed[place] = thread, stop
            thread.start()

    def _watch(self, path: Path, asked: Asked, stop: threading.Event) -> None:
        try:
            watch_folder(self.store, path, asked, stop)
        except StudioError as error:
            # Its run, if there is one, says so; without one there is nobody to tell.
            threading.current_thread().name = f"ended: {one_line(error)}"

    def followed(self) -> list[str]:
        """The folders that are followed now."""
        with self._lock:
            self._forget_ended()
            return list(self._followed)

    def unfollow(self, place: str) -> None:
        """Stop following a folder; its run stays as it is."""
        with self._lock:
            thread, stop = self._followed.get(place, (None, None))
        if thread is not None and stop is not None:
            stop.set()
            thread.join(CLOSE_SECONDS)

    def _forget_ended(self) -> None:
        self._followed = {p: t for p, t in self._followed.items() if t[0].is_alive()}

    def close(self) -> None:
        """For the end of the server."""
        for place in self.followed():
            self.unfollow(place)


# ---- where the files are -------------------------------------------------------------------------


@contextmanager
def _place_of(wanted: Wanted) -> Iterator[tuple[Path, Asked]]:
    """The file or folder to read, and how. Copies of uploads are deleted afterwards."""
    asked = Asked(format=wanted.format, name=wanted.name.strip(), columns=wanted.columns)
    if not wanted.files:
        yield _local(wanted.place), asked
        return
    folder, digest = _kept(wanted.files)
    try:
        # An upload has no place of its own: its contents say which run it is.
        name = asked.name or wanted.files[0].stem
        path = next(folder.iterdir()) if len(wanted.files) == 1 else folder
        yield path, Asked(asked.format, name, asked.columns, key=f"upload:{digest}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _local(place: str) -> Path:
    """Raises InvalidConfig."""
    hint = "Upload the files, or name a folder that this server may read."
    problem, path = "there is nothing to import", None
    if place.strip():
        try:
            path = local_path(place)
            problem = "there is no such file or folder"
        except ValueError as error:
            problem = str(error)
    # Whether a file exists outside the roots is not said.
    if path is not None and not may_read(path):
        path, problem = None, "this server does not read files there"
    if path is None or not path.exists():
        raise InvalidConfig([FieldProblem("File or folder", place, problem, hint)])
    return path


def _kept(files: Sequence[Path]) -> tuple[Path, str]:
    """Copies of the uploads in a folder of their own, and a digest of their contents.

    Raises StudioError.
    """
    if len(files) > MAX_FILES:
        raise StudioError(f"{len(files):,} files: at most {MAX_FILES:,} are imported at once.")
    digest = blake2b(digest_size=8)
    uploads = cache_folder().parent / "uploads"
    uploads.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = Path(tempfile.mkdtemp(prefix="import-", dir=uploads))
    try:
        for file in sorted(files, key=lambda f: f.name):
            digest.update(file.name.encode("utf-8", "replace") + b"\0")
            with open_regular(file) as opened, (folder / file.name).open("xb") as out:
                while block := opened.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        why = "two files have one name" if isinstance(error, FileExistsError) else error.strerror
        raise StudioError(f"The upload cannot be kept: {why or error}.") from None
    return folder, digest.hexdigest()


# ---- what was read -------------------------------------------------------------------------------


def _numbers_of(store: Store) -> Imported:
    """Of the first run in a store that an import filled until it was ended."""
    run = store.runs()[-1]
    assert run.source is not None
    numbers = summary(store, run.id, run.source.format, 0)
    return replace(numbers, added=numbers.steps)


def _a_group(store: Store, run_id: str) -> GroupRow | None:
    newest = store.newest_groups(run_id, 1)
    return newest[0] if newest else None
