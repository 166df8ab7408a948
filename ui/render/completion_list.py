"""The list of completions: its filters and its table. Rows -> escaped HTML; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_core.store import RolloutPage
from grpo_core.store.rows import FoundRollout
from ui.render.place import Place
from ui.render.tables import pager
from ui.render.text import esc, format_number, indexing, signed, whole
from ui.render.verdicts import verdict_pill

BOUNDS = ("reward_from", "reward_to", "advantage_from", "advantage_to", "tokens_from", "tokens_to")
SORTS = {"newest": "newest", "reward": "reward", "advantage": "advantage", "tokens": "length"}
ENDS = {"": "any", "stop": "ended", "length": "cut at the limit"}
CALLS = {
    "": "any",
    "some": "called",
    "none": "not called",
    "failed": "with an error",
    "answered": "with an answer",
}
MAX_TOOLS = 200  # in the menu


def controls(filters: Mapping[str, Any], tools: Sequence[str] = ()) -> str:
    """The form with the filters as `read` returns them. tools: that the run's completions called.

    Without any there is nothing to ask of tool calls.
    """
    ranges = "".join(
        f'<span class="knob"><span>{title}</span>'
        f"{_bound(filters, f'{key}_from', f'{title} from')}<span>to</span>"
        f"{_bound(filters, f'{key}_to', f'{title} to')}</span>"
        for key, title in (("reward", "Reward"), ("advantage", "Advantage"), ("tokens", "Length"))
    )
    ends = _options(ENDS, filters.get("finish", ""))
    sorts = _options(SORTS, filters.get("sort", "newest"))
    calls = _calls(filters, tools[:MAX_TOOLS]) if tools else ""
    checked = " checked" if filters.get("up") is True else ""
    return (
        '<form class="whatif narrow" onsubmit="return false">'
        f'<div class="knobs">{ranges}</div><div class="knobs">'
        f'<label class="knob"><span>End</span><select name="finish">{ends}</select></label>{calls}'
        f'<label class="knob"><span>Order</span><select name="sort">{sorts}</select></label>'
        '<label class="knob"><span>Smallest first</span>'
        f'<input type="checkbox" name="up"{checked}></label>'
        '<button type="button" data-do="export">Export selection</button></div></form>'
    )


def _calls(filters: Mapping[str, Any], tools: Sequence[str]) -> str:
    names = _options({"": "any", **{name: name for name in tools}}, filters.get("tool", ""))
    calls = _options(CALLS, filters.get("calls", ""))
    return (
        f'<label class="knob"><span>Tool</span><select name="tool">{names}</select></label>'
        f'<label class="knob"><span>Calls</span><select name="calls">{calls}</select></label>'
    )


def _bound(filters: Mapping[str, Any], name: str, label: str) -> str:
    return (
        f'<input type="text" inputmode="decimal" name="{name}" '
        f'value="{esc(filters.get(name, ""))}" aria-label="{label}">'
    )


def _options(texts: Mapping[str, str], chosen: str) -> str:
    return "".join(
        f'<option value="{esc(key)}"{" selected" if key == chosen else ""}>{esc(text)}</option>'
        for key, text in texts.items()
    )


def read(form: Any) -> dict[str, Any]:
    """The valid filters of a form; a browser can send anything."""
    form = form if isinstance(form, Mapping) else {}
    filters: dict[str, Any] = {}
    for name in BOUNDS:
        if isinstance(form.get(name), str) and form[name]:
            filters[name] = form[name][:24]
    if isinstance(form.get("tool"), str) and form["tool"]:
        filters["tool"] = form["tool"][:200]
    for name, known in (("finish", ENDS), ("calls", CALLS), ("sort", SORTS)):
        if isinstance(form.get(name), str) and form[name] in known:
            filters[name] = form[name]
    if form.get("up") is True:
        filters["up"] = True
    return filters


def rollout_table(page: RolloutPage, offset: int, selected: Place | None) -> str:
    """One page of completions. The text is a button that opens the completion's group.

    offset: completions on the pages before. selected: the group that is open.
    """
    rows = "".join(_row(r, selected) for r in page.rows)
    more = page.total > page.counted
    total = f"more than {page.counted:,}" if more else f"{page.total:,}"
    last = offset + len(page.rows)
    at_end = not more and last >= page.total
    return (
        f'{indexing(page.unsearched)}<div class="scroll"><table class="list groups"><thead><tr>'
        '<th scope="col" class="num">Step</th><th scope="col">Completion</th>'
        '<th scope="col" class="num">Reward</th><th scope="col" class="num">A</th>'
        '<th scope="col" class="num" title="tokens; ✂ cut at the limit">Tokens</th>'
        f'<th scope="col">Verdict</th></tr></thead><tbody>{rows}</tbody></table></div>'
        f"{pager(offset, last, f'{total} completions', at_end)}"
    )


def _row(r: FoundRollout, selected: Place | None) -> str:
    place = Place(r.step, r.group, r.kind)
    chosen = " class=chosen" if place == selected else ""
    label = f"Open completion {r.position + 1} of group {r.group + 1}, {place.when}"
    cut = " ✂" if r.finish_reason == "length" else ""
    return (
        f'<tr{chosen}><td class="num">{r.step:,}</td>'
        '<td class="prompt-cell"><button type="button" class="row-button" data-do="open" '
        f'data-at="{place}" aria-label="{label}">{esc(r.text) or "(empty)"}</button>'
        f'</td><td class="num" data-label="reward">{format_number(r.reward)}</td>'
        f'<td class="num" data-label="A">{signed(r.advantage)}</td>'
        f'<td class="num" data-label="tokens">{whole(r.num_tokens)}{cut}</td>'
        f"<td>{verdict_pill(r.verdict)}</td></tr>"
    )
