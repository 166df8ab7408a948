"""What the readers share: lines of files, numbers and texts in their cells, groups, steps.

Files come from anywhere. A line that cannot be read is left out with one warning, and a value of
the wrong type is absent; neither ends an import.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from grpo_core.errors import StudioError
from grpo_core.records.record import MAX_WHOLE, SourceGroup, SourceRollout, SourceStep
from grpo_core.types import GroupKind

MAX_LINE_BYTES = 64 << 20  # ms-swift writes a whole batch in one line
MAX_FILE_BYTES = 1 << 20  # of a file with settings
MAX_WARNINGS = 5  # of one kind a file
MAX_GROUP = 1024  # completions; the page shows all of a group
MAX_SCORES = 64
MAX_NAME = 100
MAX_TOKEN_ID = 2**31 - 1
GROUPS_A_PART = 32  # what is in memory at once
EVALUATION = re.compile(r"(^|[_\-.])(val|valid|validation|eval|evaluation|test)($|[_\-.\d])")

log = logging.getLogger("grpo_studio.import")  # one line for everything that was left out

Row = dict[str, Any]


# ---- files ---------------------------------------------------------------------------------------


def found(path: Path, *patterns: str) -> list[Path]:
    """The files in a folder that match, by the numbers in their names; a file is itself.

    A link that leaves the folder is left out.
    """
    if path.is_file():
        return [path]
    root = path.resolve()
    files = {f for pattern in patterns for f in path.glob(pattern) if f.is_file()}
    return sorted((f for f in files if f.resolve().is_relative_to(root)), key=_natural)


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.findall(r"\d{1,18}|\D+|\d+", path.as_posix())
    return [(0, int(p), "") if p.isdecimal() and len(p) < 19 else (1, 0, p) for p in parts]


def first_row(files: Sequence[Path]) -> Row:
    """To tell a format: the object in the first line of one of the first three files; else {}."""
    for path in files[:3]:
        try:
            with path.open("rb") as file:
                line = file.readline(MAX_LINE_BYTES)
                row = _parsed(line) if line else None
        except (OSError, ValueError, RecursionError):
            continue
        if row is not None:
            return row
    return {}


def is_evaluation(path: Path) -> bool:
    """Whether the name of a file or of its folder says that it holds an evaluation."""
    return any(EVALUATION.search(name.lower()) for name in (path.stem, path.parent.name))


def settings_at(*paths: Path, most: int = MAX_FILE_BYTES) -> Mapping[str, Any]:
    """The first of these JSON files, of at most so many bytes, that holds an object; else {}."""
    for path in paths:
        try:
            if path.is_file() and path.stat().st_size <= most:
                settings = json.loads(path.read_bytes())
                if isinstance(settings, dict):
                    return settings
        except (OSError, ValueError, RecursionError):
            continue
    return {}


def rows(path: Path) -> Iterator[Row]:
    """The JSON objects of a file, one a line."""
    return (row for row, _, _ in _places(path))


def _places(path: Path) -> Iterator[tuple[Row, int, int]]:
    """The objects with the offset and length of their lines. Raises StudioError."""
    tell, offset = Teller(path), 0
    try:
        with path.open("rb") as file:
            for number in range(1, 1 << 62):
                if not (line := file.readline(MAX_LINE_BYTES)):
                    return
                start, offset = offset, offset + len(line)
                is_whole = line.endswith(b"\n")
                if not is_whole and len(line) == MAX_LINE_BYTES:
                    tell("long", f"line {number:,} has more than {MAX_LINE_BYTES >> 20} MiB")
                    offset += _skip_line(file)
                    continue
                try:
                    if (row := _parsed(line)) is not None:
                        yield row, start, len(line)
                    elif line.strip():
                        tell("object", f"line {number:,} is not a JSON object")
                except (ValueError, RecursionError) as error:
                    why = f"is not JSON ({str(error)[:80]})" if is_whole else "is cut off"
                    tell("json", f"line {number:,} {why}")
    except OSError as error:
        raise StudioError(f"{path} cannot be read: {error.strerror or error}.") from None


def _skip_line(file: BinaryIO) -> int:
    size = 0
    while part := file.readline(1 << 20):
        size += len(part)
        if part.endswith(b"\n"):
            break
    return size


def _parsed(line: bytes) -> Row | None:
    line = line.removeprefix(b"\xef\xbb\xbf").strip()
    row = json.loads(line) if line else None
    return row if isinstance(row, dict) else None


class Teller:
    """Warns of what is left out of a file, a few times for each kind."""

    def __init__(self, path: Path):
        self._path, self._told = path, dict[str, int]()

    def __call__(self, kind: str, what: str) -> None:
        self._told[kind] = told = self._told.get(kind, 0) + 1
        more = " Further lines like it are left out too." if told == MAX_WARNINGS else ""
        if told <= MAX_WARNINGS:
            log.warning("%s: %s; it was left out.%s", self._path, what, more)


def by_key(path: Path, key: Callable[[Row], Hashable | None]) -> Iterator[list[Row]]:
    """The rows of a file by `key`, in the order in which each key came first.

    A row whose key is None is left out. Reads the file twice and holds one group in memory. Raises
    StudioError if the file is rewritten meanwhile.
    """
    places: dict[bytes, list[tuple[int, int]]] = {}
    tell = Teller(path)
    for row, offset, length in _places(path):
        if (value := key(row)) is None:
            tell("key", f"the row at byte {offset:,} lacks the fields of this format")
            continue
        places.setdefault(_digest(value), []).append((offset, length))
    try:
        with path.open("rb") as file:
            for name, spots in places.items():
                if len(spots) > MAX_GROUP:
                    tell(
                        "group", f"a group has {len(spots):,} rows, and what is above {MAX_GROUP:,}"
                    )
                group = [_row_at(file, spot) for spot in spots[:MAX_GROUP]]
                if any(row is None or _digest(key(row)) != name for row in group):
                    raise StudioError(f"{path} changed while it was read. Import it again.")
                yield [row for row in group if row is not None]
    except OSError as error:
        raise StudioError(f"{path} cannot be read: {error.strerror or error}.") from None


def _row_at(file: BinaryIO, spot: tuple[int, int]) -> Row | None:
    file.seek(spot[0])
    try:
        return _parsed(file.read(spot[1]))
    except (ValueError, RecursionError):
        return None


def _digest(key: Hashable) -> bytes:
    return blake2b(repr(key).encode("utf-8", "replace"), digest_size=16).digest()


# ---- cells ---------------------------------------------------------------------------------------


def number(value: Any) -> float | None:
    """A finite number; true is 1. Text such as "0.5" counts: numpy's numbers are written so."""
    if not isinstance(value, int | float | str) or (isinstance(value, str) and len(value) > 40):
        return None
    try:
        result = float(value)
    except (ValueError, OverflowError):
        return None
    return result if math.isfinite(result) else None


def whole(value: Any) -> int | None:
    """A whole number from 0 to MAX_WHOLE, such as a step, also as text."""
    result = number(value)
    if result is None or not 0 <= result <= MAX_WHOLE:
        return None
    return int(result) if result.is_integer() else None


def text(value: Any) -> str:
    """A cell as text; other values as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def loaded(value: Any) -> Any:
    """What the JSON in a cell says; a cell without JSON is itself."""
    try:
        return json.loads(value) if isinstance(value, str | bytes) else value
    except (ValueError, RecursionError):
        return value


def scores(values: Mapping[str, Any]) -> dict[str, float | None]:
    """The cells that are numbers, or a list's missing ones; text is no score."""
    kept = {name: v for name, v in values.items() if v is None or isinstance(v, int | float)}
    return {str(name)[:MAX_NAME]: number(v) for name, v in list(kept.items())[:MAX_SCORES]}


def numbers(values: Any, length: int) -> list[float] | None:
    """`length` numbers, nan for those that are none; None for anything but such a list."""
    if not isinstance(values, list) or len(values) != length:
        return None
    found = [number(v) for v in values]
    if all(v is None for v in found):
        return None
    return [math.nan if v is None else v for v in found]


def token_ids(values: Any) -> list[int] | None:
    """A list of token ids; None for anything else."""
    if not isinstance(values, list) or not values:
        return None
    fits = all(type(v) is int and 0 <= v <= MAX_TOKEN_ID for v in values)
    return values if fits else None


def one_value(values: Sequence[float]) -> float | None:
    """The mean of the tokens' advantages, exactly the one value where they are all equal."""
    known = [v for v in values if math.isfinite(v)]
    if not known:
        return None
    return known[0] if min(known) == max(known) else math.fsum(known) / len(known)


# ---- groups and steps ----------------------------------------------------------------------------


def runs_of(keys: Sequence[Any], size: int | None = None) -> list[range]:
    """Places of equal neighbours; size: of a group, where it is known."""
    found, start = list[range](), 0
    for i in range(1, len(keys) + 1):
        if i == len(keys) or keys[i] != keys[start] or i - start == (size or MAX_GROUP):
            found.append(range(start, i))
            start = i
    return found


def in_parts(
    groups: Iterable[tuple[int, SourceGroup]], metrics: Mapping[int, Mapping[str, float]] = {}
) -> Iterator[SourceStep]:
    """Groups with their steps, in the order of reading, as parts of steps.

    metrics: by step; each goes with the first part of its step.
    """
    parts: dict[int, int] = {}
    held: list[SourceGroup] = []
    now: int | None = None

    def part(step: int, goes_on: bool = False) -> SourceStep:
        at = parts.get(step, 0)
        parts[step] = at + 1
        known, is_cut = metrics.get(step, {}) if at == 0 else {}, goes_on or at > 0
        return SourceStep(step=step, part=at, groups=tuple(held), metrics=known, is_cut=is_cut)

    for step, group in groups:
        if held and now is not None and (step != now or len(held) == GROUPS_A_PART):
            yield part(now, goes_on=step == now)
            held = []
        now = step
        held.append(group)
    if held and now is not None:
        yield part(now)
    for step in sorted(metrics.keys() - parts.keys()):
        yield SourceStep(step=step, metrics=metrics[step])


def group_of(
    asked: tuple[str, Sequence[Mapping[str, str]]],
    rollouts: Sequence[SourceRollout],
    answer: Any = None,
    evaluation: bool = False,
) -> SourceGroup:
    """A group of a prompt with the messages before it; an evaluation teaches nothing."""
    prompt, before = asked
    return SourceGroup(
        prompt=prompt,
        before=tuple(before),
        rollouts=tuple(rollouts),
        answer=None if answer is None else text(answer),
        kind=GroupKind.EVALUATION.value if evaluation else GroupKind.TRAINING.value,
    )
