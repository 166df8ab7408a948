"""What an import found or wrote, as a person reads it. Records -> escaped HTML; pure."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_core.analysis import provenance as words
from grpo_core.records.formats import FORMATS
from grpo_core.records.imports import Found
from grpo_core.store import GroupRow, RunRow
from ui.render.provenance import badge
from ui.render.text import count, esc, short, whole

MAX_CHARS = 400  # of a text
MAX_TEXTS = 4  # completions of the group
MAX_LINES = 6  # about what was left out
MAX_RUNS = 20  # of a project, that are named


def preview(found: Found) -> str:
    """What is in the files, before anything is written."""
    source = found.run.source
    assert source is not None
    how_much = "in all" if found.whole else "in the first steps; Import run reads the rest"
    lines = [
        f"{FORMATS[found.numbers.format].title}: {_counts(found)}, {how_much}",
        f"recorded: {words.recorded(source) or 'nothing'}",
    ]
    if source.recomputed:
        lines.append(f"recomputed here: {words.recomputed(source)}")
    if source.absent:
        lines.append(f"absent: {words.absent(source)}")
    if source.disagreements:
        many = count(source.disagreements, "group")
        lines.append(f"{many} with advantages that the rewards do not give")
    if found.others:
        names = ", ".join(f"“{other.name}”" for other in found.others[:MAX_RUNS])
        more = len(found.others) - MAX_RUNS
        names += f" and {more:,} more" if more > 0 else ""
        lines.append(f"{count(len(found.others), 'further run')} of the project: {names}")
    if found.known is not None:
        lines.append("it was imported before: only what is new will be added")
    listed = "".join(f"<li>{esc(line)}.</li>" for line in lines)
    return (
        f'<div class="preview" role="status"><p>{badge(found.run)} <b>{esc(found.run.name)}</b></p>'
        f'<ul class="counted">{listed}</ul>{_left_out(found.numbers.left_out)}'
        f"{_group(found.group)}</div>"
    )


def result(found: Found) -> str:
    """What was written, and buttons that open the run and the further ones of a project."""
    name = esc(found.run.name)
    what = f"Imported “{name}”: {_counts(found)}."
    if not found.numbers.added:
        what = f"“{name}” was there already: nothing was added."
    return (
        f'<div class="banner good" role="status"><b>{what}</b>'
        f'<span class="acts">{_open(found.run)}</span></div>'
        f"{_others(found.others)}{_left_out(found.numbers.left_out)}"
    )


def _others(runs: Sequence[RunRow]) -> str:
    """The further runs of a project, each with a button that opens it."""
    if not runs:
        return ""
    rows = "".join(f"<li>“{esc(run.name)}” {_open(run, run.name)}</li>" for run in runs[:MAX_RUNS])
    more = len(runs) - MAX_RUNS
    rows += f"<li>and {more:,} more, in the table below</li>" if more > 0 else ""
    return _listed("followed", f"{count(len(runs), 'further run')} of the project:", rows)


def _open(run: RunRow, name: str = "") -> str:
    """name: for a screen reader, where several runs can be opened."""
    label = f' aria-label="Open {esc(name)}"' if name else ""
    return f'<button type="button" data-do="open" data-run="{esc(run.id)}"{label}>Open</button>'


def followed(places: Sequence[str]) -> str:
    """The folders that are followed, each with a button that ends it; empty without any."""
    if not places:
        return ""
    rows = "".join(
        f"<li><code>{esc(place)}</code> "
        f'<button type="button" data-do="unfollow" data-place="{esc(place)}">Stop following'
        "</button></li>"
        for place in places
    )
    return _listed("followed", "Followed now:", rows)


def _counts(found: Found) -> str:
    """3 steps, 12 groups, 96 completions."""
    numbers = found.numbers
    return (
        f"{count(numbers.steps, 'step')}, {count(numbers.groups, 'group')}, "
        f"{count(numbers.rollouts, 'completion')}"
    )


def _left_out(lines: Sequence[str]) -> str:
    """What of the files could not be read."""
    if not lines:
        return ""
    listed = "".join(f"<li>{esc(line)}</li>" for line in lines[:MAX_LINES])
    more = len(lines) - MAX_LINES
    listed += f"<li>and {more:,} more</li>" if more > 0 else ""
    return _listed("left-out", "Left out:", listed)


def _listed(kind: str, said: str, rows: str) -> str:
    """A list with a line above it. rows: its <li> elements."""
    return f'<div class="{kind}"><p class="help">{said}</p><ul>{rows}</ul></div>'


def _group(group: GroupRow | None) -> str:
    """The beginning of one group: a person sees whether the columns are right."""
    if group is None:
        return ""
    rows = "".join(
        f'<tr><td class="said"><pre>{esc(r.text[:MAX_CHARS]) or "(empty)"}</pre></td>'
        f'<td class="number">{short(r.reward)}</td><td class="number">{short(r.advantage)}</td>'
        f'<td class="number">{whole(r.num_tokens)}</td></tr>'
        for r in group.rollouts[:MAX_TEXTS]
    )
    more = len(group.rollouts) - MAX_TEXTS
    note = f'<p class="help">and {count(more, "completion")} more.</p>' if more > 0 else ""
    return (
        f'<p class="help">A group of step {group.step:,}:</p>'
        f'<pre class="asked">{esc(group.prompt[:MAX_CHARS])}</pre>'
        '<div class="scroller" tabindex="0" role="region" aria-label="Completions of a group">'
        '<table class="bench-table"><thead><tr><th scope="col">completion</th>'
        '<th scope="col" class="number">reward</th><th scope="col" class="number">advantage</th>'
        f'<th scope="col" class="number">tokens</th></tr></thead><tbody>{rows}</tbody></table>'
        f"</div>{note}"
    )
