"""The metrics of a step whose groups come in several parts, in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_type_hints

from grpo_core.config import RunConfig
from grpo_core.records.compare import step_metrics
from grpo_core.records.convert import TASK
from grpo_core.store import GroupRow
from grpo_core.types import STEP_METRICS, Completion, Group, Prompt, Rollout, StepMetrics

KEPT_STEPS = 4  # whose groups are kept in memory, without their texts
# A step with more groups is computed again when its groups have doubled, and at its end.
SMALL = 64


_COUNTS = {name for name, kind in get_type_hints(StepMetrics).items() if kind == int | None}


@dataclass(slots=True)
class _Step:
    parts: dict[int, tuple[Group, ...]]
    recorded: set[str] = field(default_factory=set)  # metrics that the source has
    num_computed: int = 0  # groups in the metrics that were written last

    @property
    def num_groups(self) -> int:
        return sum(map(len, self.parts.values()))


class StepTotals:
    """Metrics over all groups of a step that have come until now.

    read: gives the groups of the other parts of a step, by part, as they were written earlier.
    """

    def __init__(self, read: Callable[[int, int], Mapping[int, Sequence[GroupRow]]]):
        self._read = read
        self._steps: dict[int, _Step] = {}

    def add(self, step: int, part: int, groups: Iterable[Group], recorded: Iterable[str]) -> None:
        """The groups of a part, and the names of the metrics that came with it."""
        if step not in self._steps:
            earlier = self._read(step, part)
            self._steps[step] = _Step({p: tuple(map(_stored, g)) for p, g in earlier.items()})
        known = self._steps[step]
        known.parts[part] = tuple(map(_slim, groups))
        known.recorded.update(recorded)

    def is_due(self, step: int) -> bool:
        """Whether the step's metrics should be computed now, and not at its end."""
        known = self._steps[step]
        return known.num_groups <= max(SMALL, 2 * known.num_computed)

    def numbers(
        self, step: int, config: RunConfig
    ) -> tuple[dict[str, Any], dict[str, float | None]]:
        """Fields of StepMetrics and open metrics, without those that the source recorded."""
        known = self._steps[step]
        groups = [g for _, part in sorted(known.parts.items()) for g in part]
        known.num_computed = len(groups)
        if not groups:
            return {}, {}
        found = step_metrics(groups, config)
        rollouts = [r for g in groups for r in g.rollouts]
        extra: dict[str, float | None] = {}
        for name in (c.name for c in config.rubric.criteria):
            scored = [s for r in rollouts if (s := r.scores.get(name)) is not None]
            extra[f"score/{name}"] = sum(scored) / len(scored) if scored else None
        return (
            {name: v for name, v in found.items() if name not in known.recorded},
            {name: v for name, v in extra.items() if name not in known.recorded},
        )

    def stale(self, but: int | None = None) -> list[int]:
        """Steps with groups that are in no metrics yet, except `but`. Forgets the oldest steps."""
        found = [
            step
            for step, known in self._steps.items()
            if step != but and known.num_computed != known.num_groups
        ]
        for step in list(self._steps)[:-KEPT_STEPS]:
            if step not in found and step != but:
                del self._steps[step]
        return found


def metrics_of(
    numbers: Mapping[str, Any], extra: Mapping[str, float | None], own: Mapping[str, float | None]
) -> tuple[StepMetrics, dict[str, float | None]]:
    """Computed numbers and the source's own, which win."""
    fields = {name: value for name, value in own.items() if _is_field(name, value)}
    rest = {name: value for name, value in own.items() if name not in fields}
    return StepMetrics(**{**numbers, **fields}), {**extra, **rest}


def _is_field(name: str, value: float | None) -> bool:
    """A field that counts something has whole numbers only."""
    return name in STEP_METRICS and (
        name not in _COUNTS or value is None or float(value).is_integer()
    )


def _slim(group: Group) -> Group:
    """Without texts: all that metrics need is which of them are equal."""
    prompt = replace(group.prompt, text="", meta={})
    return replace(group, prompt=prompt, rollouts=tuple(map(_slim_rollout, group.rollouts)))


def _slim_rollout(rollout: Rollout) -> Rollout:
    completion = rollout.completion
    turns = tuple(replace(turn, text="", arguments="") for turn in completion.turns)
    text = str(hash(completion.text))
    return replace(rollout, completion=replace(completion, text=text, turns=turns))


def _stored(group: GroupRow) -> Group:
    rollouts = (
        Rollout(
            Completion(r.text, r.finish_reason, r.num_tokens, r.turns),
            r.scores,
            r.reward,
            r.advantage,
        )
        for r in group.rollouts
    )
    prompt = Prompt(group.prompt_id, group.prompt, group.answer, TASK)
    return _slim(Group(prompt, tuple(rollouts), group.reward_mean, group.reward_std, group.verdict))
