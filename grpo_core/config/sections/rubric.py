"""Section `rubric`: the criteria that score a completion, and how their sum becomes the reward."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from grpo_core.config.sections.fields import Section, setting


class Criterion(Section):
    """One line of a rubric: a check, its weight in the reward and its parameters.

    `outcome` marks the criterion that says whether a completion reached its goal.
    """

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    check: str = Field(min_length=1, max_length=64)
    weight: float = Field(ge=0, le=1000)
    params: dict[str, Any] = Field(default_factory=dict)
    outcome: bool = False


class RubricConfig(Section):
    """The rubric of a run."""

    name: str = setting(
        "answer",
        "Rubric",
        "A preset, or `custom` for the criteria below.",
        min_length=1,
        max_length=64,
    )
    criteria: tuple[Criterion, ...] = setting(
        (),
        "Criteria",
        "List of criteria, each with name, check, weight, params and outcome. "
        "Empty: the criteria of the preset.",
        max_length=32,
    )
    scale: bool = setting(
        False,
        "Scale rewards",
        "Divide rewards by the standard deviation of all rewards of the run so far.",
    )
    clip_low: float | None = setting(
        None,
        "Lowest reward",
        "Lower rewards are raised to this value. Empty: no limit.",
        ge=-1e6,
        le=1e6,
        hint="Leave it empty.",
    )
    clip_high: float | None = setting(
        None,
        "Highest reward",
        "Higher rewards are lowered to this value. Empty: no limit.",
        ge=-1e6,
        le=1e6,
        hint="Leave it empty.",
    )
    gate: bool = setting(
        False,
        "Outcome gate",
        "Criteria other than the outcome count only in a group "
        "in which at least one completion reached the outcome.",
    )
