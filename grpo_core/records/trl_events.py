"""What the hooks in a trainer put into the queue -> events of its run, in the sending thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_core.records.parcels import Event, Finish
from grpo_core.records.record import SourceGroup, SourceStep
from grpo_core.records.trl_groups import Generation, Reader, Rewards, groups
from grpo_core.records.trl_metrics import named

PART_TOKENS = 100_000  # in one parcel: about 3 MB of JSON


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """TRL's metrics of a step, under its names."""

    step: int
    values: Mapping[str, Any]


@dataclass
class Events:
    """Numbers the parts of each step, in the order in which they happened."""

    rewards: Rewards
    reader: Reader
    _parts: Counter[int] = field(default_factory=Counter)
    _shown: set[int] = field(default_factory=set)  # token ids whose text was sent

    def __call__(self, item: Generation | StepMetrics | Finish) -> Iterator[Event]:
        if isinstance(item, Finish):
            yield "finish", item
        elif isinstance(item, StepMetrics):
            if metrics := named(item.values):
                part = self._next_part(item.step)
                yield "step", SourceStep(step=item.step, part=part, metrics=metrics)
        else:
            for some, is_cut in _packed(groups(item, self.rewards, self.reader)):
                part, pieces = self._next_part(item.step), self._pieces(some)
                yield (
                    "step",
                    SourceStep(
                        step=item.step, part=part, groups=some, pieces=pieces, is_cut=is_cut
                    ),
                )

    def _next_part(self, step: int) -> int:
        part = self._parts[step]
        for old in [s for s in self._parts if s < step - 1]:
            del self._parts[old]
        self._parts[step] = part + 1
        return part

    def _pieces(self, some: Sequence[SourceGroup]) -> dict[int, bytes]:
        fresh = {t for group in some for r in group.rollouts for t in r.token_ids or ()}
        fresh -= self._shown
        self._shown |= fresh
        return {t: self.reader.piece(t) for t in sorted(fresh)}


def _packed(found: Iterator[SourceGroup]) -> Iterator[tuple[tuple[SourceGroup, ...], bool]]:
    """Groups together until they have PART_TOKENS tokens, and whether there are others."""
    some, size, is_cut = list[SourceGroup](), 0, False
    for group in found:
        tokens = sum(len(r.token_ids or r.text) for r in group.rollouts)
        if some and size + tokens > PART_TOKENS:
            is_cut = True
            yield tuple(some), is_cut
            some, size = [], 0
        some.append(group)
        size += tokens
    if some:
        yield tuple(some), is_cut
