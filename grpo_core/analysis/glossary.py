"""Every metric, check and option with its meaning: for the page's glossary and docs/metrics.md.

The texts of step metrics, checks and options stand at their definitions and are read from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from grpo_core.config import fields_by_name
from grpo_core.rubric import CHECKS
from grpo_core.types import StepMetrics


@dataclass(frozen=True, slots=True)
class Choice:
    """A value of an option: its sentence, in lower case, and its formula, a template."""

    value: str
    help: str
    formula: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A metric, a check or an option.

    key: in addresses. names: as they stand in the store, in `--set` and in a rubric.
    """

    key: str
    title: str
    help: str
    reading: str = ""
    unit: str = ""
    names: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()


_OPEN = (
    Entry(
        "score/NAME",
        "Score of a criterion",
        "The mean score of criterion NAME over the step's completions, before its weight. "
        "Completions that could not be scored are left out.",
        "A flat score teaches nothing. A score that rises while accuracy falls is being gamed.",
        "as its check",
        ("score/NAME",),
    ),
    Entry(
        "used/NAME/WHAT",
        "Use of a judge",
        "What the LLM judge NAME used in the step. WHAT: requests, cached, tokens, seconds, cost.",
        names=("used/NAME/WHAT",),
    ),
    Entry(
        "reward_scale",
        "Reward scale",
        "The running standard deviation by which rewards were divided in the step.",
        "Only with `rubric.scale`.",
        "reward",
        ("reward_scale",),
    ),
)
# Key, title, further names, unit, definition, how to read it.
_HELDOUT = (
    (
        "heldout/accuracy",
        "Held-out accuracy",
        (),
        "share",
        "Share of completions that reach the rubric's outcome criterion (score 1).",
        "The result. Compare it with its interval, not with the last digit.",
    ),
    (
        "heldout/accuracy_low",
        "Held-out accuracy, interval",
        ("heldout/accuracy_high",),
        "share",
        "95 % interval of that share: Wilson's for one completion a prompt, "
        "mean ± 1.96 standard errors over prompts for several.",
        "Two runs whose intervals overlap widely may be equal.",
    ),
    (
        "heldout/pass@K",
        "Held-out pass@K",
        (),
        "share",
        "With several completions a prompt: chance that one of K is right, "
        "1 - C(n-c, K)/C(n, K) for c right of n, mean over prompts; `_low`, `_high` as above.",
        "Far above accuracy: the policy can, but seldom does; there is something to reinforce.",
    ),
    (
        "heldout/reward",
        "Held-out reward",
        (),
        "reward",
        "Mean total reward.",
        "If training reward rises and this does not, the policy memorises the prompts.",
    ),
    (
        "heldout/NAME",
        "Held-out score of a criterion",
        (),
        "share",
        "Mean score of criterion NAME.",
        "`heldout/reasoning`: the share that reasons, which is recorded and not rewarded.",
    ),
    (
        "heldout/completion_tokens",
        "Held-out completion length",
        (),
        "tokens",
        "Mean completion length, end token counted.",
        "Longer and better is thinking; longer alone is not.",
    ),
    (
        "second/NAME",
        "Second task",
        (),
        "as above",
        "The same for `task.second`, which is evaluated and never trained on.",
        "Falling while held-out accuracy rises: the policy forgets.",
    ),
)


def step_metrics() -> list[Entry]:
    """The columns of `steps`, in their order."""
    return [
        Entry(
            f.name,
            f.metadata["title"],
            f.metadata["help"],
            f.metadata["reading"],
            f.metadata["unit"],
            (f.name,),
        )
        for f in fields(StepMetrics)
    ]


def open_metrics() -> list[Entry]:
    """The metrics of a step in the table `metrics`, whose names depend on the rubric."""
    return list(_OPEN)


def heldout_metrics() -> list[Entry]:
    """The results of an evaluation, in the table `metrics`."""
    return [
        Entry(key, title, help, reading, unit, (key, *more))
        for key, title, more, unit, help, reading in _HELDOUT
    ]


def checks() -> list[Entry]:
    """The checks that a criterion can use; plug-ins are included."""
    return [
        Entry(
            f"check/{name}",
            name,
            check.help,
            names=tuple(f"{p}=" for p in check.params.model_fields),
        )
        for name, check in CHECKS.items()
    ]


def options() -> dict[str, list[Entry]]:
    """Section -> its fields, in the order of the form."""
    found: dict[str, list[Entry]] = {}
    for name, info in fields_by_name().items():
        extra: Mapping[str, Any] = info.json_schema_extra or {}
        formulas = extra.get("formulas", {})
        choices = tuple(
            Choice(value, help, formulas.get(value, ""))
            for value, help in extra.get("options", {}).items()
        )
        entry = Entry(
            name,
            info.title or name,
            info.description or "",
            extra.get("hint", ""),
            extra.get("unit", ""),
            (name,),
            choices,
        )
        found.setdefault(name.partition(".")[0], []).append(entry)
    return found
