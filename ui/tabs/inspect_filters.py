"""How the list of the Inspect tab is narrowed and sorted, read from what a browser sends."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from grpo_core.rubric.verdict import VERDICTS
from grpo_core.store import Wanted
from grpo_core.types import GroupKind
from ui.components.html_panel import one_of
from ui.render import completion_list, tables
from ui.render.text import is_number
from ui.tabs.frame import parse_tokens

MAX_STEP = MAX_OFFSET = 10**9
MAX_SEARCH_CHARS = 200


@dataclass(frozen=True, slots=True)
class Filters:
    """The hidden value of the filters."""

    verdict: str = ""  # empty: all; "evaluation": the groups of evaluations, and no others
    sort: str = "step"
    descending: bool = True
    offset: int = 0
    fresh: int = 0  # grows when a person asks for newer groups, so the table is drawn again
    steps: list[int] | None = None  # first and last step, both included
    mode: str = "groups"  # or "rollouts"
    where: dict[str, Any] = field(default_factory=dict)  # bounds on completions

    @property
    def kind(self) -> GroupKind:
        is_evaluation = self.verdict == GroupKind.EVALUATION
        return GroupKind.EVALUATION if is_evaluation else GroupKind.TRAINING

    @property
    def step_bounds(self) -> tuple[int | None, int | None]:
        return (self.steps[0], self.steps[1]) if self.steps else (None, None)


FIRST = asdict(Filters())


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Which rows of which run the list shows."""

    run_id: Any
    search: str
    reward_from: float | None  # of a group's mean
    reward_to: float | None
    filters: Filters

    @property
    def is_filtered(self) -> bool:
        bounds = (self.reward_from, self.reward_to)
        filters = self.filters
        return bool(self.search or filters.verdict or filters.steps) or bounds != (None, None)


def read_filters(text: Any) -> Filters:
    """The hidden value of the filters; a wrong part of it gets its first value."""
    data = parse_tokens(text)
    offset, fresh = data.get("offset"), data.get("fresh")
    return Filters(
        verdict=one_of(data.get("verdict"), (*VERDICTS, GroupKind.EVALUATION), ""),
        sort=one_of(data.get("sort"), tables.SORTS, "step"),
        descending=data.get("descending") is not False,
        offset=offset if isinstance(offset, int) and 0 <= offset < MAX_OFFSET else 0,
        fresh=fresh if isinstance(fresh, int) else 0,
        steps=_step_bounds(data.get("steps")),
        mode=one_of(data.get("mode"), ("groups", "rollouts"), "groups"),
        where=completion_list.read(data.get("where")),
    )


def change_filters(text: Any, **changes: Any) -> str:
    """The hidden value with some filters changed."""
    return json.dumps(asdict(replace(read_filters(text), **changes)))


def wanted(filters: Filters, search: Any) -> Wanted:
    """The conditions on completions, for the store."""
    step_from, step_to = filters.step_bounds
    bounds = {name: read_bound(filters.where.get(name)) for name in completion_list.BOUNDS}
    return Wanted(
        search=str(search or "").strip()[:MAX_SEARCH_CHARS] or None,
        verdict=filters.verdict or None,
        finish_reason=filters.where.get("finish") or None,
        tool=filters.where.get("tool") or None,
        calls=filters.where.get("calls") or None,
        step_from=step_from,
        step_to=step_to,
        kind=filters.kind,
        **bounds,
    )


def read_bound(text: Any) -> float | None:
    """A bound as a number; text that is not a number sets no bound."""
    try:
        value = float(str(text).replace("\N{MINUS SIGN}", "-"))
    except ValueError:
        return None
    return value if is_number(value) else None


def _step_bounds(value: Any) -> list[int] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    if all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < MAX_STEP for v in value):
        return value
    return None
