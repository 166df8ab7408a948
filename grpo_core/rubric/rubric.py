"""A rubric: criteria with weights. reward = Σ w_k · s_k over the criteria that could be scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from pydantic import ValidationError

from grpo_core.config import Criterion, RubricConfig
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.rubric.check import Check, Notes
from grpo_core.rubric.criteria import CHECKS
from grpo_core.types import Completion, Prompt

_ACCURACY = Criterion(name="accuracy", check="accuracy", weight=1.0, outcome=True)
_LANGUAGE = Criterion(name="language", check="language", weight=0.1)
_WATCH_REASONING = Criterion(name="reasoning", check="reasoning", weight=0.0)

PRESETS: dict[str, tuple[Criterion, ...]] = {
    # Nothing for thinking as such: it is only watched (weight 0), so whatever thinking appears was found by the policy.
    "answer": (
        _ACCURACY,
        Criterion(name="format", check="format", weight=0.2),
        _LANGUAGE,
        _WATCH_REASONING,
    ),
    "reasoned answer": (
        _ACCURACY,
        Criterion(
            name="format",
            check="format",
            weight=0.5,
            params={"required": ["think", "answer"], "optional": []},
        ),
        _LANGUAGE,
    ),
    "concise answer": (
        _ACCURACY,
        Criterion(name="format", check="format", weight=0.2),
        _LANGUAGE,
        Criterion(
            name="length", check="length", weight=0.2, params={"min_tokens": 1, "max_tokens": 16}
        ),
        _WATCH_REASONING,
    ),
    "accuracy only": (_ACCURACY, _WATCH_REASONING),
    # For prompts of a file: the answer may stand in the tag, in \boxed or after ####, so nothing is paid for the tag.
    "mathematics": (
        Criterion(name="math", check="math", weight=1.0, outcome=True),
        Criterion(name="repetition", check="repetition", weight=0.2),
        _WATCH_REASONING,
    ),
    "multiple choice": (
        Criterion(name="choice", check="choice", weight=1.0, outcome=True),
        Criterion(name="format", check="format", weight=0.2),
        _WATCH_REASONING,
    ),
    "number": (
        Criterion(
            name="number", check="numeric", weight=1.0, outcome=True, params={"last_number": True}
        ),
        Criterion(name="format", check="format", weight=0.2),
        _WATCH_REASONING,
    ),
}


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores and rewards of completions in their order; seconds that each criterion took; why it could not score what it could not."""

    scores: list[dict[str, float | None]]
    rewards: list[float | None]
    seconds: dict[str, float]
    notes: dict[str, Notes]


@dataclass(frozen=True, slots=True)
class Rubric:
    """Criteria ready to score: (criterion, check, parsed parameters) in order."""

    rows: tuple[tuple[Criterion, Check, Any], ...]

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        return tuple(c for c, _, _ in self.rows)

    @property
    def outcome(self) -> str | None:
        """Name of the criterion that says whether a completion reached its goal, if one is flagged."""
        return next((c.name for c in self.criteria if c.outcome), None)

    @property
    def weights(self) -> dict[str, float]:
        return {c.name: c.weight for c in self.criteria}

    def score(
        self, completion: Completion, prompt: Prompt
    ) -> tuple[dict[str, float | None], float | None]:
        """Scores by criterion, and the reward Σ w·s over the scored ones; None where no criterion with a weight was scored."""
        scored = self.score_all([completion], [prompt])
        return scored.scores[0], scored.rewards[0]

    def only(self, wanted: Callable[[Check], bool]) -> Rubric:
        """The rubric of those criteria alone."""
        return Rubric(tuple(row for row in self.rows if wanted(row[1])))

    def score_all(
        self,
        completions: Sequence[Completion],
        prompts: Sequence[Prompt],
        known: Sequence[Mapping[str, float | None]] | None = None,
    ) -> Scored:
        """Every completion against its prompt, criterion by criterion, so that models and judges see them all at once.

        known: for each completion, scores by criteria that are not to be asked again.
        """
        columns: dict[str, list[float | None]] = {}
        seconds, notes = {}, {}
        for criterion, check, params in self.rows:
            if known and criterion.name in known[0]:
                columns[criterion.name] = [scores[criterion.name] for scores in known]
                continue
            started, why = perf_counter(), Notes()
            found = check.scores(completions, prompts, params, why)
            assert len(found) == len(completions), (
                f"{criterion.check} returned {len(found)} scores for {len(completions)} completions"
            )
            columns[criterion.name] = [
                s if s is not None and math.isfinite(s) else None for s in found
            ]
            seconds[criterion.name] = perf_counter() - started
            if why or why.used:
                notes[criterion.name] = why
        scores = [
            {name: column[i] for name, column in columns.items()} for i in range(len(completions))
        ]
        return Scored(scores, [total(s, self.weights) for s in scores], seconds, notes)


def total(scores: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """r = Σ w_k · s_k over k with w_k > 0 and s_k not null; None if there is no such k."""
    counted = [w * scores[k] for k, w in weights.items() if w > 0 and scores.get(k) is not None]
    return sum(counted) if counted else None


def resolve_rubric(config: RubricConfig) -> RubricConfig:
    """The same rubric with its criteria written out, so that a run's record says what was scored."""
    if config.criteria:
        return config
    if config.name not in PRESETS:
        raise InvalidConfig(
            [
                FieldProblem(
                    "rubric.name",
                    config.name,
                    "there is no such rubric",
                    f"Known: {', '.join(PRESETS)}. Or list your own criteria.",
                )
            ]
        )
    return config.model_copy(update={"criteria": PRESETS[config.name]})


def build_rubric(config: RubricConfig) -> Rubric:
    """RubricConfig -> Rubric. Raises InvalidConfig naming the criterion whose check or parameters are wrong."""
    rows, problems = [], []
    for i, criterion in enumerate(resolve_rubric(config).criteria):
        at = f"rubric.criteria.{i}"
        check = CHECKS.get(criterion.check)
        if check is None:
            problems.append(
                FieldProblem(
                    f"{at}.check",
                    criterion.check,
                    "there is no such check",
                    f"Known: {', '.join(CHECKS)}.",
                )
            )
            continue
        try:
            rows.append((criterion, check, check.params.model_validate(criterion.params)))
        except ValidationError as error:
            known = ", ".join(check.params.model_fields) or "none"
            for e in error.errors(include_url=False):
                where = ".".join([f"{at}.params", *map(str, e["loc"])])
                problems.append(
                    FieldProblem(
                        where,
                        e["input"],
                        e["msg"].removeprefix("Value error, "),
                        f"Parameters of {criterion.check}: {known}.",
                    )
                )
    if config.gate and not any(c.outcome for c, _, _ in rows):
        problems.append(
            FieldProblem(
                "rubric.gate",
                True,
                "no criterion of this rubric is flagged as the outcome, so the gate would never open",
                "Flag one criterion, or switch the gate off.",
            )
        )
    if problems:
        raise InvalidConfig(problems)
    return Rubric(tuple(rows))
