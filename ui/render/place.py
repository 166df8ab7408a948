"""Where a group is, as text between browser and server. Pure."""

from __future__ import annotations

from typing import NamedTuple

from grpo_core.types import GroupKind


class Place(NamedTuple):
    """A group of a step, or of the evaluation after it: "e20/0" is the first after step 20."""

    step: int
    position: int
    kind: str = GroupKind.TRAINING

    def __str__(self) -> str:
        return f"{'e' if self.is_evaluation else ''}{self.step}/{self.position}"

    @property
    def is_evaluation(self) -> bool:
        return self.kind == GroupKind.EVALUATION

    @property
    def when(self) -> str:
        """“step 20” or “evaluation after step 20”."""
        return f"{'evaluation after ' if self.is_evaluation else ''}step {self.step:,}"
