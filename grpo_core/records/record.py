"""What every reader of another trainer's files gives: a run, then its steps. Plain data, no torch.

None means that the source does not say; it is never replaced by 0. `to_plain` and `from_plain`
carry the records over a wire as JSON; `schema.json` beside this file describes that JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.types import GroupKind, Turn

MAX_WHOLE = 2**53  # of a step and of a count: up to here a float is exact
# Fields of a rollout with a number for each token.
PER_TOKEN = ("sampling_logprobs", "logprobs", "ref_logprobs", "entropy")
STRICT = with_config(ConfigDict(extra="forbid"))


@STRICT
@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRun:
    """A run of another trainer.

    trainer: its name and version, as "TRL 1.16.0". format: a key of formats.FORMATS, or "attach".
    key: which run this is; the same key is the same run, however often it comes.
    settings: as the source names them.
    """

    trainer: str
    format: str
    key: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_steps: int | None = None


@STRICT
@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRollout:
    """One completion. scores: by reward function or criterion. reward: their weighted sum.

    token_ids and the other sequences: one value a token, in order; logprobs in nats. action_mask:
    false for the tokens that a tool wrote.
    """

    text: str
    finish_reason: str | None = None  # "stop" or "length"
    scores: Mapping[str, float | None] = field(default_factory=dict)
    reward: float | None = None
    advantage: float | None = None
    num_tokens: int | None = None
    token_ids: Sequence[int] | None = None
    action_mask: Sequence[bool] | None = None
    sampling_logprobs: Sequence[float] | None = None
    logprobs: Sequence[float] | None = None
    ref_logprobs: Sequence[float] | None = None
    entropy: Sequence[float] | None = None
    turns: tuple[Turn, ...] = ()


@STRICT
@dataclass(frozen=True, slots=True, kw_only=True)
class SourceGroup:
    """The completions of one prompt that were compared with each other.

    before: the messages before the prompt. prompt_id: None: from the prompt's text.
    """

    prompt: str
    rollouts: Sequence[SourceRollout]
    before: Sequence[Mapping[str, str]] = ()
    answer: str | None = None
    prompt_id: str | None = None
    kind: Literal["training", "evaluation"] = GroupKind.TRAINING.value


@STRICT
@dataclass(frozen=True, slots=True, kw_only=True)
class SourceStep:
    """A step, or one part of a step that comes in several. Parts may come in any order.

    The same (step, part) again adds nothing if it is equal, and replaces the earlier one if not.
    metrics: under our names (types.STEP_METRICS) where they mean the same, else the source's.
    pieces: token id -> its text, or its bytes if they are not whole characters. is_cut: groups of
    other parts were compared with these, so their advantages may have a scale of all of them.
    """

    step: int
    part: int = 0
    groups: Sequence[SourceGroup] = ()
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    pieces: Mapping[int, str | bytes] = field(default_factory=dict)
    is_cut: bool = field(default=False, repr=False)  # so a whole step has the digest of before


RECORDS: dict[str, type] = {"run": SourceRun, "step": SourceStep}


def to_plain(record: Any) -> Any:
    """A record as JSON types. Fields with their default value are left out.

    Bytes that are no UTF-8 become a list of numbers.
    """
    if is_dataclass(record) and not isinstance(record, type):
        return {
            f.name: to_plain(value)
            for f in fields(record)
            if not _is_default(f, value := getattr(record, f.name))
        }
    if isinstance(record, Mapping):
        return {str(k): to_plain(v) for k, v in record.items()}
    if isinstance(record, bytes):
        try:
            return record.decode()
        except UnicodeDecodeError:
            return list(record)
    if isinstance(record, Enum):
        return record.value
    if record is None or isinstance(record, str | bool | int | float):
        return record
    if isinstance(record, Sequence):
        return [to_plain(v) for v in record]
    return str(record)


def _is_default(f: Any, value: Any) -> bool:
    if f.default is not MISSING:
        return bool(value == f.default)
    return f.default_factory is not MISSING and not value


def from_plain(kind: str, data: Any) -> Any:
    """JSON types -> the record. kind: "run" or "step".

    Raises InvalidConfig that names every wrong place, as step.groups.0.rollouts.3.reward.
    """
    if kind not in RECORDS:
        known = f"Known: {', '.join(RECORDS)}."
        raise InvalidConfig([FieldProblem("kind", kind, "there is no such record", known)])
    if kind == "step" and isinstance(data, Mapping) and isinstance(data.get("pieces"), Mapping):
        data = {**data, "pieces": {k: _piece(v) for k, v in data["pieces"].items()}}
    try:
        return _adapter(kind).validate_python(data)
    except ValidationError as error:
        raise InvalidConfig(
            [
                FieldProblem(
                    ".".join([kind, *map(str, found["loc"])]),
                    found["input"],
                    found["msg"].removeprefix("Input "),
                    "docs/records.md describes every field.",
                )
                for found in error.errors(include_url=False)[:20]
            ]
        ) from None


def _piece(value: Any) -> Any:
    whole = isinstance(value, list) and all(isinstance(b, int) and 0 <= b < 256 for b in value)
    return bytes(value) if whole else value


@cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(RECORDS[kind])


def schema() -> dict[str, Any]:
    """The JSON schema of both records, as schema.json has it."""
    return {kind: _adapter(kind).json_schema() for kind in RECORDS}
