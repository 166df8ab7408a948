"""The last screen of the walk: what the update did, as measured. Numbers -> HTML; pure."""

from __future__ import annotations

import math

from ui.render.arithmetic import side_of
from ui.render.learn_walk_cells import (
    Drawn,
    Screen,
    advantage,
    cell,
    drawn,
    fixed,
    note,
    number,
    row_head,
    table,
    twice,
    with_sign,
)
from ui.render.text import esc, short, signed
from ui.render.tokens import OBSERVED
from ui.render.turns import observed
from ui.render.update_effect import as_asked

LISTED_TOKENS = 200


def update(s: Screen) -> Drawn:
    """What the step did to each completion's probability, as measured."""
    rows = s.was.rows
    known = [row for row in rows if row.effect]
    lead = (
        "The optimiser took its step. These are the probabilities of the same completions before "
        "and after it, measured. A change above does not change them."
    )
    if not known:
        return drawn(lead, no_tokens(s, after=True))
    body = []
    for row in rows:
        if row.effect is None:
            continue
        e = row.effect
        times = number(*twice(e.times), lambda v: f"× {short(v)}")
        body.append(
            f"<tr>{row_head(s, row)}{advantage(row, row)}{cell(e.before, e.before, fixed(3))}"
            f"{cell(e.after, e.after, fixed(3))}"
            f'<td class="{side_of(e.change)}"><b>{number(*twice(e.change), with_sign(3))}</b></td>'
            f"<td>{times}</td></tr>"
        )
    heads = ["A", ("log p before", "summed over its tokens"), "after", "change", "times as likely"]
    pairs = [(row.rollout, row.effect) for row in known if row.effect]
    return drawn(
        lead,
        table("Probability before and after the update", heads, body) + _token_list(s),
        note(
            "Did it do what the advantages asked?",
            as_asked(pairs),
            "So another group can move a completion too, also one with A = 0.",
        ),
    )


def _token_list(s: Screen) -> str:
    """Each token of one completion with the change of its log-probability."""
    row = next((r for r in s.was.rows if r.rollout.position == s.token_of), s.was.rows[0])
    if row.terms is None or not row.effect:
        return ""
    tokens = list(zip(row.pieces, row.terms.change, strict=False))[:LISTED_TOKENS]
    most = max((abs(c) for _, c in tokens if math.isfinite(c)), default=0.0) or 1.0
    grey = observed(row.rollout.turns)
    shown = "".join(
        _observed(piece) if i in grey else _token(piece, change, most)
        for i, (piece, change) in enumerate(tokens)
    )
    return (
        f'<p class="walk-tokens-of">Tokens of #{row.rollout.position + 1}, with the change of '
        f'log p</p><p class="walk-tokens" tabindex="0" role="group" '
        f'aria-label="Tokens of completion {row.rollout.position + 1}">{shown}</p>'
    )


def _observed(piece: bytes) -> str:
    return f'<span class="walk-token observed" title="{OBSERVED}">{esc(_shown(piece))}</span>'


def _shown(piece: bytes) -> str:
    return piece.decode("utf-8", "replace").replace("\n", "⏎")


def _token(piece: bytes, change: float, most: float) -> str:
    text = _shown(piece)
    part = abs(change) / most if math.isfinite(change) else 0.0
    return (
        f'<span class="walk-token {side_of(change)}" style="--v:{part:.2f}">{esc(text)}'
        f"<small>{signed(change, 2)}</small></span>"
    )


def no_tokens(s: Screen, after: bool = False) -> str:
    """Why numbers of tokens are missing, and how to keep them."""
    tied = all(not row.advantage for row in s.was.rows)
    if tied and any(row.pieces for row in s.was.rows):
        said = (
            "This group is tied, so the update did not compute its tokens. "
            "Choose a group with different rewards."
        )
    elif after and s.was.measured:
        said = (
            "The probabilities of this group after the step were not recorded. A run measures "
            "them on as many groups of a step as “Measured after the update” says; older "
            "versions measured none."
        )
    else:
        every = s.was.config.train.token_records
        kept = "kept no tokens" if not every else f"keeps the tokens of every {every}. step"
        kept = "keeps tokens" if every == 1 else kept
        said = (
            f"The tokens of this step are not in the store; the run {kept}. They hold the "
            "log-probabilities that these numbers need. Set “Token records every” to 1 in a new "
            "run, or choose a group of another step."
        )
    return f'<p class="note walk-missing">{esc(said)}</p>'
