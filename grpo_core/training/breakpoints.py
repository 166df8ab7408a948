"""Breakpoints: conditions under which a run waits before its update, such as "kl > 0.2"."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.rubric.verdict import VERDICTS
from grpo_core.types import STEP_METRICS, Group

SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
}
MAX_CHARS = 2_000  # of all conditions of a run
_FORM = re.compile(r"\s*([A-Za-z_][\w./-]{0,79})\s*(>=|<=|>|<|=)\s*(\S{1,40})\s*")
_HINT = (
    "Write a metric, a sign and a number (kl > 0.2), verdict = phantom, or step = 40. "
    "Separate several by commas."
)


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """One condition. `value` is a number, or a verdict's code where `name` is "verdict"."""

    name: str
    sign: str
    value: float | str

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else format(self.value, ".15g")
        return f"{self.name} {self.sign} {value}"

    def holds(
        self, step: int, groups: Sequence[Group], numbers: Mapping[str, float | int | None]
    ) -> bool:
        """Whether the condition is met before the update of `step`; False if not measured."""
        if isinstance(self.value, str):
            return any(g.verdict == self.value for g in groups)
        now = step if self.name == "step" else numbers.get(self.name)
        return now is not None and SIGNS[self.sign](now, self.value)


def parse_breakpoints(text: str) -> tuple[Breakpoint, ...]:
    """Conditions separated by commas; empty text: none. Raises InvalidConfig."""
    if len(text) > MAX_CHARS:
        problem = f"the conditions have more than {MAX_CHARS:,} characters"
        raise _refused(f"{text[:40]}…", problem, "Keep only those that you need.")
    return tuple(_parse(part) for part in text.split(",") if part.strip())


def as_text(breakpoints: Sequence[Breakpoint]) -> str:
    """What parse_breakpoints reads back."""
    return ", ".join(map(str, breakpoints))


def _parse(text: str) -> Breakpoint:
    found = _FORM.fullmatch(text)
    if not found:
        raise _refused(text, "this is not a condition", _HINT)
    name, sign, value = found.groups()
    if name == "verdict":
        if sign != "=" or value not in VERDICTS:
            raise _refused(
                text, "there is no such verdict", f"Known: verdict = {', '.join(VERDICTS)}."
            )
        return Breakpoint(name, sign, value)
    if name != "step" and name not in STEP_METRICS:
        raise _refused(
            text, "there is no such metric", f"Known: step, verdict, {', '.join(STEP_METRICS)}."
        )
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if math.isnan(number):  # nothing compares with it, so the condition would never hold
        raise _refused(text, f"{value!r} is not a number", _HINT)
    return Breakpoint(name, sign, number)


def _refused(text: str, problem: str, hint: str) -> InvalidConfig:
    return InvalidConfig([FieldProblem("break", text.strip(), problem, hint)])
