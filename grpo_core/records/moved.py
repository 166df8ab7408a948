"""A folder that was moved is still the same run: it is known by its first and its last file."""

from __future__ import annotations

from hashlib import blake2b
from itertools import chain
from pathlib import Path

from grpo_core.records.formats import Format
from grpo_core.store import Store, foreign

BYTES = 4096  # compared at the beginning of a file and at its end

Mark = tuple[str, int, str]  # name within the place, size, digest of its beginning and end


def marks_of(form: Format, place: Path) -> tuple[Mark, ...]:
    """What tells the files of a place from those of any other run; () if they cannot be read.

    A run with the same seed may begin with the same completions, so the last file counts too.
    """
    files = form.files(place)
    try:
        return tuple(
            (_name(file, place), size := file.stat().st_size, _digest(file, size))
            for file in dict.fromkeys(chain(files[:1], files[-1:]))
        )
    except (OSError, ValueError):
        return ()


def run_at(store: Store, key: str, form: Format, place: Path) -> str | None:
    """The id of the run with this key, or of one whose place is gone and whose files are here.

    The files may have grown. None if there is no such run.
    """
    known = foreign.run_of(store, key)
    if known is not None or not key.endswith(f":{place}"):
        return known
    for run_id, source in foreign.of_format(store, form.name).items():
        before = Path(source.key.partition(":")[2])
        if before.is_absolute() and not before.exists() and _are_here(source.marks, place):
            return run_id
    return None


def follow_move(store: Store, key: str, form: Format, place: Path) -> None:
    """Let the run be found under this key from now on, if its files were moved here."""
    if (run_id := run_at(store, key, form, place)) is not None:
        foreign.set_key(store, run_id, key)


def _are_here(marks: tuple[Mark, ...], place: Path) -> bool:
    """Whether these files are in a place, each with what it held, if not more."""
    try:
        return bool(marks) and all(
            (file := place / name if name else place).stat().st_size >= size
            and _digest(file, size) == digest
            for name, size, digest in marks
        )
    except OSError:
        return False


def _name(file: Path, place: Path) -> str:
    """ "" for a place that is one file, which may have another name later."""
    return "" if file == place else str(file.relative_to(place))


def _digest(file: Path, size: int) -> str:
    """Of the beginning and the end of the first `size` bytes."""
    with file.open("rb") as opened:
        first = opened.read(min(BYTES, size))
        opened.seek(max(0, size - BYTES))
        return blake2b(first + opened.read(min(BYTES, size)), digest_size=12).hexdigest()
