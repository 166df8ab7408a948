"""The rows that queries return: frozen records. Times are unix seconds, UTC; None: not known."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from grpo_core.types import GroupKind, Phase, RunStatus, Turn


class ScoredRow(NamedTuple):
    """One rollout of a run without its text. A tuple, because a run has a hundred thousand."""

    step: int
    group_id: int
    group_position: int  # of its group in the step
    prompt_id: str
    prompt: str
    rollout_id: int
    position: int  # among its siblings
    scores: str  # JSON, by criterion
    reward: float | None
    advantage: float | None
    edited: int
    num_tokens: int | None
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Cursor:
    """The change token of a run: `revision` grows whenever something that a page shows changes."""

    revision: int
    status: RunStatus


@dataclass(frozen=True, slots=True)
class Source:
    """Where a run of another trainer comes from, and what of it can be trusted how far.

    key: the same key is the same run. settings: as the source names them. recorded: the fields that
    the source has; recomputed: field -> how we filled it, as advantage -> group_std; absent: the
    rest. estimator: "settings" if the source names its advantage estimator, "found" if it is the
    one that gives the recorded advantages, else "assumed". disagreements: groups whose recorded
    advantages differ from what the estimator gives. marks: of the first and the last file, by which
    it is known where it was moved to: name, size, digest.
    """

    trainer: str
    format: str
    key: str
    settings: Mapping[str, Any]
    recorded: tuple[str, ...] = ()
    recomputed: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    estimator: str = "assumed"
    disagreements: int = 0
    marks: tuple[tuple[str, int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run and its summary. config: RunConfig as nested plain data. step: the current one."""

    id: str
    name: str
    status: RunStatus
    created_at: float
    started_at: float | None
    ended_at: float | None
    heartbeat_at: float | None
    model: str
    task: str
    rubric: str
    config: Mapping[str, Any]
    env: Mapping[str, Any] | None
    error: str | None
    parent_run_id: str | None
    parent_step: int | None
    revision: int
    phase: Phase | None
    step: int | None
    num_steps: int | None
    steps_done: int
    reward_first: float | None
    reward_last: float | None
    heldout_before: float | None
    heldout_after: float | None  # None until there was a second evaluation to compare with
    waited_seconds: float = (
        0.0  # paused, or ended until it was resumed; a wait that goes on is not in it
    )
    waiting_since: float | None = None
    breakpoints: str = ""
    tags: tuple[str, ...] = ()  # words and a text that a person gave the run
    note: str = ""
    example: bool = False  # recorded elsewhere and shipped with the program, see example.py
    source: Source | None = None  # of a run of another trainer

    @property
    def trains_here(self) -> bool:
        """Whether it has a device of this machine, or waits for one: not where others train."""
        return self.status.is_live and self.source is None

    @property
    def duration_seconds(self) -> float | None:
        """How long the run took, until its end or its last sign of life."""
        until = self.ended_at or self.heartbeat_at
        return None if until is None else self.elapsed_seconds(until)

    def elapsed_seconds(self, now: float) -> float | None:
        """From start to `now` without the time in which it stood still; None before the start."""
        return (
            None
            if self.started_at is None
            else max(0.0, (self.waiting_since or now) - self.started_at - self.waited_seconds)
        )


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """A saved state of a run, from which it can go on. `path` is its folder.

    seconds: how long the saving took; None in older files.
    """

    step: int
    path: Path
    bytes: int
    sha256: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """A scored completion."""

    id: int
    group_id: int
    position: int
    text: str
    finish_reason: str | None
    num_tokens: int | None
    reward: float | None
    advantage: float | None
    scores: Mapping[str, float | None]
    edited: bool
    turns: tuple[Turn, ...] = ()  # of a completion in an environment


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A prompt at one step with all its siblings. before: the messages before the prompt."""

    id: int
    run_id: str
    step: int
    position: int
    prompt_id: str
    prompt: str
    answer: str
    reward_mean: float | None
    reward_std: float | None
    verdict: str
    rollouts: tuple[RolloutRow, ...]
    kind: str = GroupKind.TRAINING
    before: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """A group as a line of a list.

    Every reward, but only the beginning of its best and its worst completion.
    """

    id: int
    step: int
    position: int
    prompt: str
    answer: str
    reward_mean: float | None
    reward_std: float | None
    verdict: str
    rewards: tuple[float | None, ...]
    best_text: str | None  # None: nothing in the group could be scored
    worst_text: str | None
    kind: str = GroupKind.TRAINING


@dataclass(frozen=True, slots=True)
class GroupPage:
    """One page of a list of groups, and how many there are on all pages."""

    rows: list[GroupSummary]
    total: int
    unsearched: int = (
        0  # completions that a search left out, because the index does not hold them yet
    )
    more: bool = False  # there are more than `total`, and they were not counted


@dataclass(frozen=True, slots=True)
class VerdictCounts:
    """How many groups of the steps `first` to `last`, bounds included, have each verdict."""

    first: int
    last: int
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class TokenRow:
    """The n tokens of a rollout.

    `pieces`: the bytes of each, which need not be whole characters; the rest as in
    types.TokenRecord.
    """

    rollout_id: int
    token_ids: array[int]
    pieces: tuple[bytes, ...]
    sampling_logprobs: array[float] | None
    logprobs: array[float] | None
    ref_logprobs: array[float] | None
    entropy: array[float] | None
    logprobs_after: array[float] | None = None


@dataclass(frozen=True, slots=True)
class WalkableGroup:
    """Where a group is, and the beginning of its prompt."""

    step: int
    position: int
    prompt: str


@dataclass(frozen=True, slots=True)
class FoundRollout:
    """A rollout as a line of a list; `text` is its beginning, or where a search found something."""

    id: int
    step: int
    group: int  # position of its group in the step
    position: int
    verdict: str
    text: str
    finish_reason: str | None
    num_tokens: int | None
    reward: float | None
    advantage: float | None
    kind: str = GroupKind.TRAINING  # of its group


@dataclass(frozen=True, slots=True)
class PromptVisits:
    """A prompt that came up several times, in a run or in several."""

    prompt_id: str
    prompt: str
    num_visits: int  # in the run that was asked about
    is_heldout: bool


@dataclass(frozen=True, slots=True)
class RolloutPage:
    """One page of a list of rollouts.

    `total` counts no further than `counted`: beyond it there are more.
    """

    rows: list[FoundRollout]
    total: int
    counted: int
    unsearched: int = 0  # as in GroupPage
