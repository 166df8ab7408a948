"""One line of a report before a run."""

from __future__ import annotations

from dataclasses import dataclass

LEVELS = ("red", "amber", "green")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    level: "red" stops the run, "amber" needs a look first, "green" is as it should be.
    final: the run cannot work, so it cannot be started anyway.
    """

    level: str
    title: str
    text: str
    final: bool = False
