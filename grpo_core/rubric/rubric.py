"""A rubric: criteria with weights; the reward is Σ w_k · s_k over the scored criteria."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from pydantic import ValidationError

from grpo_core.config import Criterion, RubricConfig
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.rubric.check import Check, Notes, RunState
from grpo_core.rubric.criteria import CHECKS
from grpo_core.time_limit import TIME_IS_UP, seconds_left
from grpo_core.types import Completion, Prompt

_ACCURACY = Criterion(name="accuracy", check="accuracy", weight=1.0, outcome=True)
_LANGUAGE = Criterion(name="language", check="language", weight=0.1)
_WATCH_REASONING = Criterion(name="reasoning", check="reasoning", weight=0.0)

PRESETS: dict[str, tuple[Criterion, ...]] = {
    # Reasoning is measured but not rewarded (weight 0), so the policy reasons only if it helps.
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
    # The environment itself pays, as a game does.
    "environment": (Criterion(name="environment", check="environment", weight=1.0, outcome=True),),
    # For prompts of a file: the answer may also be in \boxed or after ####, so tags earn nothing.
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
    """The result of scoring completions, in their order.

    seconds: time of each criterion. notes: for each criterion, why scores are null.
    """

    scores: list[dict[str, float | None]]
    rewards: list[float | None]
    seconds: dict[str, float]
    notes: dict[str, Notes]


@dataclass(frozen=True, slots=True)
class Rubric:
    """Criteria that are ready to score: (criterion, check, parsed parameters) in order."""

    rows: tuple[tuple[Criterion, Check, Any], ...]

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        return tuple(c for c, _, _ in self.rows)

    @property
    def outcome(self) -> str | None:
        """Name of the criterion flagged as the outcome: did a completion reach its goal?"""
        return next((c.name for c in self.criteria if c.outcome), None)

    @property
    def weights(self) -> dict[str, float]:
        return {c.name: c.weight for c in self.criteria}

    def score(
        self, completion: Completion, prompt: Prompt
    ) -> tuple[dict[str, float | None], float | None]:
        """Scores by criterion, and the reward Σ w·s over the scored criteria.

        The reward is None if no criterion with a weight was scored.
        """
        scored = self.score_all([completion], [prompt])
        return scored.scores[0], scored.rewards[0]

    def only(self, wanted: Callable[[Check], bool]) -> Rubric:
        """The rubric with only the criteria whose check is `wanted`."""
        return Rubric(tuple(row for row in self.rows if wanted(row[1])))

    def score_all(
        self,
        completions: Sequence[Completion],
        prompts: Sequence[Prompt],
        known: Sequence[Mapping[str, float | None]] | None = None,
        run: RunState | None = None,
    ) -> Scored:
        """Score every completion against its prompt.

        A criterion gets all completions in one call, so that models and judges can batch them.
        known: for each completion, scores by criterion that are already known. run: the run that
        asks, for reward functions that want to know.
        """
        completions = [c.graded for c in completions]
        columns: dict[str, list[float | None]] = {}
        seconds, notes = {}, {}
        for criterion, check, params in self.rows:
            if known and criterion.name in known[0]:
                columns[criterion.name] = [scores[criterion.name] for scores in known]
                continue
            started, why = perf_counter(), Notes(run=run)
            columns[criterion.name] = check.scores(completions, prompts, params, why)
            seconds[criterion.name] = perf_counter() - started
            if why or why.used:
                notes[criterion.name] = why
        scores = [
            {name: column[i] for name, column in columns.items()} for i in range(len(completions))
        ]
        return Scored(scores, [total(s, self.weights) for s in scores], seconds, notes)


def total(scores: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """r = Σ w_k · s_k over k with w_k > 0 and s_k not null; None if there is no such k."""
    counted = [w * s for k, w in weights.items() if w > 0 and (s := scores.get(k)) is not None]
    return sum(counted) if counted else None


def resolve_rubric(config: RubricConfig) -> RubricConfig:
    """The rubric with the criteria of its preset written out, so that a run's record holds them.

    Raises InvalidConfig for an unknown preset.
    """
    if config.criteria:
        return config
    if config.name not in PRESETS:
        hint = f"Known: {', '.join(PRESETS)}. Or list your own criteria."
        problem = FieldProblem("rubric.name", config.name, "there is no such rubric", hint)
        raise InvalidConfig([problem])
    return config.model_copy(update={"criteria": PRESETS[config.name]})


def build_rubric(config: RubricConfig) -> Rubric:
    """RubricConfig -> Rubric.

    Raises InvalidConfig that names each criterion with a wrong check or wrong parameters.
    """
    rows, problems = [], []
    for i, criterion in enumerate(resolve_rubric(config).criteria):
        at = f"rubric.criteria.{i}"
        check = CHECKS.get(criterion.check)
        if check is None:
            hint = f"Known: {', '.join(CHECKS)}."
            problems.append(
                FieldProblem(f"{at}.check", criterion.check, "there is no such check", hint)
            )
            continue
        if not seconds_left():
            reason = f"the criteria before it took all the time: {TIME_IS_UP}"
            hint = "Use simpler patterns and schemas, or fewer criteria."
            problems.append(FieldProblem(f"{at}.params", criterion.name, reason, hint))
            break
        try:
            rows.append((criterion, check, check.params.model_validate(criterion.params)))
        except ValidationError as error:
            names = ", ".join(check.params.model_fields) or "none"
            hint = f"Parameters of {criterion.check}: {names}."
            for e in error.errors(include_url=False):
                name = ".".join([f"{at}.params", *map(str, e["loc"])])
                message = e["msg"].removeprefix("Value error, ")
                problems.append(FieldProblem(name, e["input"], message, hint))
    if config.gate and not any(c.outcome for c, _, _ in rows):
        problems.append(
            FieldProblem(
                "rubric.gate",
                True,
                "no criterion is flagged as the outcome, so no group would open the gate",
                "Flag one criterion, or switch the gate off.",
            )
        )
    if problems:
        raise InvalidConfig(problems)
    return Rubric(tuple(rows))
