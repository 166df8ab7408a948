"""The glossary: every metric, check, verdict and option as a searchable list. Pure."""

from __future__ import annotations

import re
from functools import cache
from urllib.parse import quote

from grpo_core.analysis.glossary import (
    Entry,
    checks,
    heldout_metrics,
    open_metrics,
    options,
    step_metrics,
)
from grpo_core.rubric import VERDICTS
from ui.render.text import esc
from ui.render.verdicts import MEANINGS

OPTION_TITLES = {
    "model": "Options of the model",
    "task": "Options of the prompts",
    "rubric": "Options of the rubric",
    "algorithm": "Options of the algorithm",
    "rollout": "Options of rollouts",
    "train": "Options of the run",
}
# What a formula's placeholder stands for, where it is not the field of that name.
NAMED = {"low": "1 − clip_eps_low", "high": "1 + clip_eps_high"}
VERDICT = Entry(
    "verdict",
    "Verdict",
    "Share of the groups with each verdict: what the policy can learn from a group.",
    unit="share",
)
SEARCH = (
    '<div class="field-tools"><input type="search" aria-label="Search the glossary" '
    'placeholder="Search metrics and options" data-among="#glossary .term" '
    'data-noun="entry entries">'
    '<span class="by" role="status"></span></div>'
)


def groups() -> list[tuple[str, list[Entry]]]:
    """(title, entries) in the order of the page. Every entry stands in one group only."""
    verdicts = [VERDICT] + [
        Entry(f"verdict/{code}", label, MEANINGS[code], names=(code,))
        for code, (label, _) in VERDICTS.items()
    ]
    sections = [(OPTION_TITLES.get(name, name), found) for name, found in options().items()]
    return [
        ("Metrics of a step", [*step_metrics(), *open_metrics()]),
        ("Held-out evaluation", heldout_metrics()),
        ("Verdicts of groups", verdicts),
        ("Checks of a rubric", checks()),
        *sections,
    ]


@cache
def entries() -> dict[str, Entry]:
    """All entries by their keys."""
    return {entry.key: entry for _, found in groups() for entry in found}


def address(key: str) -> str:
    """The query of an entry's address."""
    return f"?tab=learn&part=glossary&at={quote(key, safe='/@')}"


@cache
def glossary() -> str:
    """The whole glossary below its search field, which field_search.js searches."""
    contents, lists = [], []
    for title, terms in groups():
        key = "part/" + title.lower().replace(" ", "-")
        heading = f"heading-{key}"
        contents.append(
            f'<a href="{esc(address(key))}" data-place>{esc(title)} '
            f'<span class="by">{len(terms)}</span></a>'
        )
        lists.append(
            f'<section aria-labelledby="{heading}">'
            f'<h3 id="{heading}" data-term="{key}" tabindex="-1">{esc(title)}</h3>'
            f"<dl>{''.join(map(_term, terms))}</dl></section>"
        )
    return (
        f'<nav class="contents" aria-label="Parts of the glossary">{"".join(contents)}</nav>'
        f'<div class="terms">{"".join(lists)}</div>'
    )


def _term(entry: Entry) -> str:
    names = "".join(f"<code>{esc(name)}</code>" for name in entry.names)
    unit = f' <span class="by">{esc(entry.unit)}</span>' if entry.unit not in ("", "1") else ""
    reading = f'<dd class="note">{prose(entry.reading)}</dd>' if entry.reading else ""
    return (
        f'<div class="term" data-term="{esc(entry.key)}" tabindex="-1"><dt>'
        f'<a href="{esc(address(entry.key))}" data-place>{esc(entry.title)}</a> {names}{unit}</dt>'
        f"<dd>{prose(entry.help)}</dd>{reading}{_choices(entry)}</div>"
    )


def _choices(entry: Entry) -> str:
    if not entry.choices:
        return ""
    lines = "".join(
        f"<li><code>{esc(c.value)}</code>: {prose(c.help)}.{_formula(c.formula)}</li>"
        for c in entry.choices
    )
    return f'<dd><ul class="choices">{lines}</ul></dd>'


def _formula(template: str) -> str:
    """A formula with the names of its fields in place of their values."""
    text = re.sub(r"\{(\w+)\}", lambda match: NAMED.get(match[1], match[1]), template)
    return f' <span class="by">{esc(text)}</span>' if text else ""


def prose(text: str) -> str:
    """Escaped text in which `code` becomes code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", esc(text))
