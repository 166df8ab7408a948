"""Of every field of a run of another trainer: recorded, recomputed, or absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpo_core.records.record import SourceGroup, SourceRollout, SourceStep
from grpo_core.store.rows import Source

FIELDS = (
    "prompt",
    "completion",
    "answer",
    "reward",
    "scores",
    "advantage",
    "token_ids",
    "sampling_logprobs",
    "logprobs",
    "ref_logprobs",
    "entropy",
    "finish_reason",
    "turns",
    "metrics",
)
# field -> the attribute of a rollout that has it
OF_ROLLOUT = {"completion": "text"} | {name: name for name in FIELDS[3:13]}


class Provenance:
    """Collects which fields the records had, and how missing ones were filled."""

    def __init__(self, known: Source):
        self.recorded = set(known.recorded)
        self.recomputed = dict(known.recomputed)

    def see(self, step: SourceStep) -> None:
        """Note the fields that a step has."""
        if step.metrics:
            self.recorded.add("metrics")
        for group in step.groups:
            self._see_group(group)

    def _see_group(self, group: SourceGroup) -> None:
        self.recorded.add("prompt")
        if group.answer is not None:
            self.recorded.add("answer")
        missing = [name for name in OF_ROLLOUT if name not in self.recorded]
        for name in missing:
            if any(_has(rollout, OF_ROLLOUT[name]) for rollout in group.rollouts):
                self.recorded.add(name)

    def fill(self, how: Mapping[str, str]) -> None:
        """Note fields that were recomputed, and how."""
        self.recomputed |= how

    @property
    def lists(self) -> tuple[tuple[str, ...], dict[str, str], tuple[str, ...]]:
        """Recorded, recomputed, absent, in the order of FIELDS."""
        recorded = tuple(name for name in FIELDS if name in self.recorded)
        filled = {name: self.recomputed[name] for name in FIELDS if name in self.recomputed}
        absent = tuple(n for n in FIELDS if n not in self.recorded and n not in filled)
        return recorded, filled, absent


def _has(rollout: SourceRollout, attribute: str) -> bool:
    value = getattr(rollout, attribute)
    if isinstance(value, Mapping):
        return any(score is not None for score in value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return bool(value)
    return value is not None
