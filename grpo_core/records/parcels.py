"""What travels from a trainer to the store: a run and what happened in it, as compressed JSON.

    {"run": {…}, "events": [{"step": {…}}, {"progress": 7}, {"finish": {"status": "failed"}}]}

The run is in every parcel, so each can be read alone: after a restart of the server, or of the
trainer that left it on its disk.
"""

from __future__ import annotations

import gzip
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import orjson

from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.records.record import PER_TOKEN, SourceRun, SourceStep, from_plain, to_plain
from grpo_core.types import RunStatus

MAX_PACKED = 8 << 20  # bytes of a parcel as it is sent
MAX_BYTES = 32 << 20  # of its JSON
MAX_EVENTS = 1000
SEE = "docs/records.md describes every field."
ENDS = (RunStatus.FINISHED, RunStatus.FAILED, RunStatus.STOPPED, RunStatus.INTERRUPTED)


class TooLarge(StudioError):
    """A parcel has more bytes than a server takes."""


@dataclass(frozen=True, slots=True)
class Finish:
    """How a run ended. error: why, if it failed."""

    status: RunStatus
    error: str | None = None


Event = (
    tuple[Literal["step"], SourceStep]
    | tuple[Literal["progress"], int]
    | tuple[Literal["finish"], Finish]
)


@dataclass(frozen=True, slots=True)
class Parcel:
    """Events of one run, in their order. progress: the step it is at, a sign of life."""

    run: SourceRun
    events: Sequence[Event]


def without_tokens(parcel: Parcel) -> Parcel:
    """The parcel with texts, scores and advantages only."""
    events: list[Event] = []
    for event in parcel.events:
        if event[0] == "step":
            groups = [
                replace(group, rollouts=[replace(r, **_NO_TOKENS) for r in group.rollouts])
                for group in event[1].groups
            ]
            event = "step", replace(event[1], groups=groups, pieces={})
        events.append(event)
    return Parcel(parcel.run, events)


_NO_TOKENS: dict[str, Any] = dict.fromkeys(("token_ids", "action_mask", *PER_TOKEN))


def pack(parcel: Parcel) -> bytes:
    """The parcel as gzip. Raises TooLarge."""
    plain = {"run": parcel.run, "events": [{kind: value} for kind, value in parcel.events]}
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    body = orjson.dumps(plain, _plain, options)
    packed = gzip.compress(body, 1)
    if len(body) > MAX_BYTES or len(packed) > MAX_PACKED:
        raise TooLarge(f"a parcel of {len(body):,} bytes is too large")
    return packed


def _plain(value: Any) -> Any:
    """What orjson does not know: arrays, and bytes, which may be half a character."""
    if isinstance(value, array):
        return np.frombuffer(value, value.typecode) if value else []
    if isinstance(value, bytes):
        return to_plain(value)
    return list(value) if isinstance(value, Sequence) else str(value)


def unzip(body: bytes, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a gzip, never more than `max_bytes`. Raises TooLarge, InvalidConfig."""
    opened = zlib.decompressobj(wbits=31)
    try:
        plain = opened.decompress(body, max_bytes)
        if opened.unconsumed_tail:
            raise TooLarge(f"Unpacked it may have at most {max_bytes:,} bytes.")
        if not opened.eof:
            raise zlib.error("cut off")
    except zlib.error as error:
        raise _invalid("body", f"{len(body):,} bytes", f"is no whole gzip ({error})") from None
    return plain


def read(body: bytes) -> Parcel:
    """The parcel of a JSON text. Raises InvalidConfig that names every wrong place."""
    try:
        content = orjson.loads(body)
    except ValueError as error:
        raise _invalid("body", f"{len(body):,} bytes", f"is no JSON ({error})") from None
    if not isinstance(content, dict) or content.keys() != {"run", "events"}:
        raise _invalid("body", _shown(content), 'must be {"run": {…}, "events": […]}')
    events = content["events"]
    if not isinstance(events, list) or len(events) > MAX_EVENTS:
        raise _invalid("events", _shown(events), f"must be a list of at most {MAX_EVENTS}")
    run = from_plain("run", content["run"])
    return Parcel(run, [_event(f"events.{i}", event) for i, event in enumerate(events)])


def _event(place: str, event: Any) -> Event:
    kind, value = next(iter(event.items())) if isinstance(event, dict) and event else ("", None)
    if kind not in ("step", "progress", "finish") or len(event) != 1:
        raise _invalid(place, _shown(event), 'must have one key: "step", "progress" or "finish"')
    if kind == "step":
        try:
            return "step", from_plain("step", value)
        except InvalidConfig as error:
            raise InvalidConfig(
                [
                    FieldProblem(f"{place}.{p.field}", p.value, p.problem, p.hint)
                    for p in error.problems
                ]
            ) from None
    if kind == "progress":
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
            raise _invalid(f"{place}.progress", value, "must be the number of a step")
        return "progress", value
    return "finish", _finish(f"{place}.finish", value)


def _finish(place: str, value: Any) -> Finish:
    if not isinstance(value, Mapping) or not value.keys() <= {"status", "error"}:
        raise _invalid(place, _shown(value), "must have the keys status and error")
    status, error = value.get("status"), value.get("error")
    if status not in ENDS:
        raise _invalid(f"{place}.status", status, f"must be one of {', '.join(ENDS)}")
    if not isinstance(error, str | None):
        raise _invalid(f"{place}.error", _shown(error), "must be a text or null")
    return Finish(RunStatus(status), error and error[:20_000])


def _shown(value: Any) -> str:
    return f"{value!r:.80}"


def _invalid(place: str, value: Any, problem: str) -> InvalidConfig:
    return InvalidConfig([FieldProblem(place, value, problem, SEE)])
