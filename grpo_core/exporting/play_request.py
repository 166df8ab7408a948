"""A request of the Playground. Its own module, because the page does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlayRequest:
    """One prompt for the policy after each of `steps` steps (0 = before training).

    count: answers per step. temperature 0 is greedy. answer: the right one; may be empty.
    number: of the held-out prompt that the text was taken from; None if somebody typed it.
    """

    text: str
    answer: str
    steps: Sequence[int]
    count: int
    temperature: float
    number: int | None = None
