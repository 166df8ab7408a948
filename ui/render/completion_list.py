"""The list of completions: its conditions and its table. Rows -> escaped HTML; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_core.store import RolloutPage
from ui.render.cards import verdict_pill
from ui.render.text import esc, format_number, indexing, signed

BOUNDS = ("reward_from", "reward_to", "advantage_from", "advantage_to", "tokens_from", "tokens_to")
SORTS = {"newest": "newest", "reward": "reward", "advantage": "advantage", "tokens": "length"}
ENDS = {"": "any", "stop": "ended", "length": "cut at the limit"}


def controls(where: Mapping[str, Any]) -> str:
    def bound(name: str, label: str) -> str:
        return f'<input type="text" inputmode="decimal" name="{name}" value="{esc(where.get(name, ""))}" aria-label="{label}">'

    ranges = "".join(
        f'<span class="knob"><span>{title}</span>{bound(f"{key}_from", f"{title} from")}<span>to</span>{bound(f"{key}_to", f"{title} to")}</span>'
        for key, title in (("reward", "Reward"), ("advantage", "Advantage"), ("tokens", "Length"))
    )
    ends = "".join(
        f'<option value="{key}"{" selected" if where.get("finish", "") == key else ""}>{text}</option>'
        for key, text in ENDS.items()
    )
    sorts = "".join(
        f'<option value="{key}"{" selected" if where.get("sort", "newest") == key else ""}>{text}</option>'
        for key, text in SORTS.items()
    )
    return (
        f'<form class="whatif narrow" onsubmit="return false"><div class="knobs">{ranges}</div><div class="knobs">'
        f'<label class="knob"><span>End</span><select name="finish">{ends}</select></label><label class="knob"><span>Order</span><select name="sort">{sorts}</select></label>'
        f'<label class="knob"><span>Smallest first</span><input type="checkbox" name="up"{" checked" if where.get("up") is True else ""}></label>'
        '<button type="button" data-do="export">Export selection</button></div></form>'
    )


def read(said: Any) -> dict[str, Any]:
    """What the form says, as far as it makes sense; anything may arrive from a browser."""
    said = said if isinstance(said, Mapping) else {}
    out: dict[str, Any] = {
        name: said[name][:24] for name in BOUNDS if isinstance(said.get(name), str) and said[name]
    }
    for name, known in (("finish", ENDS), ("sort", SORTS)):
        if isinstance(said.get(name), str) and said[name] in known:
            out[name] = said[name]
    return out | ({"up": True} if said.get("up") is True else {})


def rollout_table(
    page: RolloutPage, offset: int, limit: int, opened: tuple[int, int] | None
) -> str:
    """One page of completions. The text is a button that opens the group it stands in."""
    rows = "".join(
        f'<tr{" class=chosen" if opened == (r.step, r.group) else ""}><td class="num">{r.step:,}</td>'
        f'<td class="prompt-cell wide"><button type="button" class="row-button" data-do="open" data-at="{r.step}/{r.group}" '
        f'aria-label="Open completion {r.position + 1} of group {r.group + 1}, step {r.step}">{esc(r.text) or "(empty)"}</button></td><td class="num">{format_number(r.reward)}</td>'
        f'<td class="num">{signed(r.advantage)}</td><td class="num">{r.num_tokens:,}{" ✂" if r.finish_reason == "length" else ""}</td><td>{verdict_pill(r.verdict)}</td></tr>'
        for r in page.rows
    )
    more = page.total > page.counted
    total = f"more than {page.counted:,}" if more else f"{page.total:,}"
    last = offset + len(page.rows)
    off = {True: " disabled", False: ""}
    pager = (
        f'<div class="pager"><span class="fact">{offset + 1:,}–{last:,} of {total} completions</span>'
        f'<button type="button" class="icon" data-do="turn" data-by="-1" aria-label="Previous page"{off[offset == 0]}>‹</button>'
        f'<button type="button" class="icon" data-do="turn" data-by="1" aria-label="Next page"{off[not more and last >= page.total]}>›</button></div>'
    )
    return (
        f'{indexing(page.unsearched)}<div class="scroll"><table class="list groups"><thead><tr><th scope="col" class="num">Step</th><th scope="col">Completion</th><th scope="col" class="num">Reward</th>'
        f'<th scope="col" class="num">A</th><th scope="col" class="num" title="tokens; ✂ cut at the limit">Tokens</th><th scope="col">Verdict</th></tr></thead><tbody>{rows}</tbody></table></div>{pager}'
    )
