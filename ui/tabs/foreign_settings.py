"""Settings of runs that other trainers made: what is known of them, and copied into the form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_core.config import flatten, parse
from grpo_core.records.settings import map_settings
from grpo_core.store import RunRow, Source
from ui.components import form
from ui.render.status import banner
from ui.render.text import count

MAX_NAMED = 8  # settings without a counterpart that the message names; the rest is in its details
ESTIMATOR = "algorithm.advantage"


def known_settings(run: RunRow, source: Source) -> dict[str, Any]:
    """Dotted field -> value: what the run's settings say, and what its records tell."""
    flat = flatten(parse(run.config))
    known = {*map_settings(source.settings).fields, "rubric.criteria", ESTIMATOR}
    return {name: value for name, value in flat.items() if name in known}


def for_form(run: RunRow, source: Source) -> tuple[dict[str, Any], str]:
    """All settings of the form, and a message of what was copied and what has no counterpart.

    What the run does not say keeps its default. Prompts and reward functions are never copied: the
    records have only their results.
    """
    mapped = map_settings(source.settings)
    flat = flatten(mapped.config)
    copied = {name: flat[name] for name in form.NAMES if name in mapped.fields}
    if source.estimator != "assumed":
        copied[ESTIMATOR] = flatten(parse(run.config))[ESTIMATOR]
    if copied:
        titles = ", ".join(form.label(name) for name in copied)
        what = f"The set-up has {count(len(copied), 'setting')} of “{run.name}”."
        then = f"Copied: {titles}."
    else:
        what, then = f"No setting of “{run.name}” could be copied.", "The defaults are shown."
    then += " Choose the prompts and the rubric yourself: the records have only their results."
    message = banner(
        what, then + _left_out(mapped.left_out), _all_left_out(source, mapped.left_out), tone="warn"
    )
    return form.DEFAULTS | copied, message


def _left_out(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f" Without a counterpart here: {', '.join(names[:MAX_NAMED])}{more}."


def _all_left_out(source: Source, names: Sequence[str]) -> str:
    """Every setting without a counterpart with its value, a line each."""
    if len(names) <= MAX_NAMED:
        return ""
    return "\n".join(f"{name} = {str(_at(source.settings, name))[:200]}" for name in names)


def _at(settings: Mapping[str, Any], dotted: str) -> Any:
    """The value of a dotted name in nested settings, whose own names may have dots."""
    if dotted in settings:
        return settings[dotted]
    for name, inner in settings.items():
        if isinstance(inner, Mapping) and dotted.startswith(f"{name}."):
            return _at(inner, dotted.removeprefix(f"{name}."))
    return None
