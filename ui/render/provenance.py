"""Whose numbers a page shows: badge, provenance and reasons for empty places. Pure."""

from __future__ import annotations

from grpo_core.analysis import provenance as words
from grpo_core.store import RunRow, Source
from ui.render.recorded_config import Config, source_of
from ui.render.text import NONE, esc, shorten

MAX_TRAINER = 24  # characters of a badge


def trainer_of(run: RunRow) -> str:
    """The trainer of a run of others, shortened; empty for a run of this program."""
    return shorten(run.source.trainer, MAX_TRAINER) if run.source else ""


def badge(run: RunRow | None) -> str:
    """The same as a pill."""
    if run is None or run.source is None:
        return ""
    title = f"recorded by {words.whose(run.source)}, not trained by this program"
    return f'<span class="pill trainer" title="{esc(title)}">{esc(trainer_of(run))}</span>'


def why_not_here(run: RunRow | None) -> str:
    """Why a run cannot go on here; empty for a run of this program."""
    if run is None or run.source is None:
        return ""
    if run.source.format == "table":
        return "This run comes from a table; its weights are not here."
    return f"{run.source.trainer} trained this run; its weights are not here."


def provenance(source: Source | None) -> str:
    """One line: what was recorded, what was recomputed and how, what is absent."""
    if source is None:
        return ""
    parts = [
        f"<span>recorded by <b>{esc(words.whose(source))}</b>: {esc(words.recorded(source))}</span>"
    ]
    if source.recomputed:
        parts.append(f"<span>recomputed here: {esc(words.recomputed(source))}</span>")
    if source.absent:
        parts.append(f"<span>absent: {esc(words.absent(source))}</span>")
    return f'<p class="whose" aria-label="Where these numbers come from">{"".join(parts)}</p>'


def of_config(config: Config) -> str:
    return provenance(source_of(config))


def title_of(config: Config, field: str, value: object) -> str:
    """The tooltip of a number: what it is, and whose; of an empty place the reason."""
    source = source_of(config)
    if source is None:
        return field
    if value is None and (why := words.why_missing(source, field)):
        return why
    made = words.how_made(source, field)
    return f"{field}. {made}" if made else f"{field}, recorded by {words.whose(source)}"


def absent(config: Config, field: str) -> str:
    """HTML of an empty place with its reason; "" where the field is not absent in the whole run."""
    why = words.why_missing(source_of(config), field)
    return empty_place(why) if why else ""


def unknown(config: Config, field: str) -> str:
    """The same for a single value that is not there, whatever the rest of the run has."""
    source = source_of(config)
    return NONE if source is None else empty_place(words.why_absent(source, field))


def empty_place(why: str) -> str:
    return f'<span class="absent" title="{esc(why)}">{NONE}</span>'
