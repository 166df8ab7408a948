"""The walk from the ratio to the loss: one function a screen. Numbers -> HTML; pure."""

from __future__ import annotations

import math

from grpo_core.analysis.token_loss import KL_MEASURES
from grpo_core.analysis.walk import WalkRow
from grpo_core.analysis.walk_picture import RatioPicture
from grpo_core.config.options import AGGREGATIONS, KL_ESTIMATORS, OBJECTIVES
from ui.render.formula import objective_lines
from ui.render.learn_walk_cells import (
    Drawn,
    Screen,
    advantage,
    cell,
    drawn,
    facts,
    fixed,
    formula,
    note,
    number,
    row_head,
    table,
    total_row,
    twice,
)
from ui.render.learn_walk_picture import pictures
from ui.render.learn_walk_update import no_tokens
from ui.render.text import count, esc, plain, short, whole
from ui.render.turns import observed


def ratio(s: Screen, picture: RatioPicture | None) -> Drawn:
    """How far the update has moved each token, and which tokens the objective holds."""
    a = s.walk.config.algorithm
    lead = (
        "The ratio w = p / p_old says how much likelier a token has become since it was sampled. "
        "At w = 1 nothing has moved."
    )
    if not s.walk.measured or picture is None:
        return drawn(lead, no_tokens(s), _forbids(s))
    rows = []
    for row, old in s.pairs:
        rows.append(
            f"<tr>{row_head(s, row)}{advantage(row, old)}{_span(row.ratio_span)}"
            f"{cell(row.num_clipped, old.num_clipped, plain)}"
            f"{_span(_after_span(row))}{_outside(row, old, picture, s)}</tr>"
        )
    heads = [
        "A",
        ("ratio in the update", "smallest and largest of its tokens"),
        ("held", "tokens that the objective gives no more gradient"),
        ("ratio after the step", "measured with one more forward pass"),
        ("would be held", "tokens that a further update on this batch would leave alone"),
    ]
    return drawn(
        lead,
        table("Ratios by completion", heads, rows) + pictures(picture),
        _forbids(s),
        _once(s) if a.updates_per_batch == 1 else "",
    )


def _forbids(s: Screen) -> str:
    a, was = s.walk.config.algorithm, s.was.config.algorithm
    low = number(1 - a.clip_eps_low, 1 - was.clip_eps_low, lambda v: plain(round(v, 6)))
    high = number(1 + a.clip_eps_high, 1 + was.clip_eps_high, lambda v: plain(round(v, 6)))
    if a.objective not in ("clip", "spo"):
        return note(
            "What does clipping forbid?",
            f"This run does not clip by a range. Its objective is <b>{esc(a.objective)}</b>: "
            f"{esc(OBJECTIVES[a.objective].help)}.",
            "With clip, a token gets no more gradient once its ratio has left the range on the "
            "side to which its advantage pushes it.",
        )
    return note(
        "What does clipping forbid?",
        "It forbids to gain more from a token that has already moved far.",
        f"With A &gt; 0 a token is pushed up until its ratio is {high}. Beyond that it gets no "
        f"gradient. With A &lt; 0 it is pushed down until {low}.",
        "It does not pull a token back, and it does not stop the other direction.",
    )


def _once(s: Screen) -> str:
    return note(
        "Why is every ratio 1 in the update?",
        "This run uses each batch for one update. Until then new and old are the same policy.",
        "So here clipping has nothing to hold. It works from the second update on the same batch "
        "on; the last columns show where that update would start.",
    )


def _span(span: tuple[float, float] | None) -> str:
    if span is None:
        return "<td>–</td>"
    low, high = span
    shown = number(high, high, fixed(3))
    if high - low > 5e-4:
        shown = f"{number(low, low, fixed(3))} … {shown}"
    return f"<td>{shown}</td>"


def _after(row: WalkRow) -> list[float]:
    if row.terms is None:
        return []
    return [math.exp(c) for c in row.terms.change if math.isfinite(c) and abs(c) < 700]


def _after_span(row: WalkRow) -> tuple[float, float] | None:
    ratios = _after(row)
    return (min(ratios), max(ratios)) if ratios else None


def _outside(row: WalkRow, old: WalkRow, p: RatioPicture, s: Screen) -> str:
    """Tokens that leave the range after the step, under the changed and under the own range."""
    if not _after(row):
        return "<td>–</td>"
    was = s.was.config.algorithm
    own = (1 - was.clip_eps_low, 1 + was.clip_eps_high)
    same = s.walk.config.algorithm.objective not in ("clip", "spo")
    now = _num_outside(row, p.low, p.high)
    return cell(now, now if same else _num_outside(old, *own), plain)


def _num_outside(row: WalkRow, low: float, high: float) -> int:
    ratios = _after(row)
    if row.advantage > 0:
        return sum(w > high for w in ratios)
    return sum(w < low for w in ratios) if row.advantage < 0 else 0


def kl(s: Screen) -> Drawn:
    """The distance to the reference, by each estimator."""
    walk, a = s.walk, s.walk.config.algorithm
    notes = (_reference(s), formula(f"KL = {KL_ESTIMATORS[a.kl_estimator].formula}"))
    lead = (
        "KL measures how far the policy has moved from the reference: 0 where both give the "
        "sampled token the same probability."
    )
    if not any(row.kl for row in walk.rows):
        why = (
            "The KL of this group was not measured. A run measures it with a KL coefficient above "
            "0, or with “Measure KL” on some completions of each step."
        )
        missing = no_tokens(s) if not walk.measured else f'<p class="note">{why}</p>'
        return drawn(lead, missing, *notes)
    rows = []
    for row, old in s.pairs:
        cells = "".join(_kl_cell(row.kl.get(k), k == a.kl_estimator) for k in KL_MEASURES)
        rows.append(
            f"<tr>{row_head(s, row)}<td>{whole(row.rollout.num_tokens)}</td>{cells}"
            f"{cell(row.kl_loss, old.kl_loss, short)}</tr>"
        )
    heads = [
        "tokens",
        *((k, KL_ESTIMATORS[k].help) for k in KL_MEASURES),
        ("in the loss", "coefficient × KL, with the weight that the completion has"),
    ]
    stored = facts(
        ("KL coefficient", number(walk.kl_coef, s.was.kl_coef, plain)),
        ("estimator", f"<b>{esc(a.kl_estimator)}</b>"),
        ("stored KL of the step", number(*twice(walk.metrics.get("kl")), short)),
    )
    rows.append(
        total_row(
            "group",
            ["<td></td>" * 4, cell(walk.total("kl_loss"), s.was.total("kl_loss"), short)],
        )
    )
    return drawn(lead, table("KL to the reference, mean over tokens", heads, rows) + stored, *notes)


def _kl_cell(value: float | None, chosen: bool) -> str:
    inner = number(value, value, short)
    return f"<td>{f'<b>{inner}</b>' if chosen else inner}</td>"


def _reference(s: Screen) -> str:
    a = s.walk.config.algorithm
    moves = (
        f" This run moves it towards the policy every {a.ref_every} steps." if a.ref_every else ""
    )
    return note(
        "What is the reference for?",
        "The reference is the model as it was before training. It is not trained." + moves,
        "coefficient × KL is added to the loss, so moving away has a price. That keeps what the "
        "model could do before, and makes it harder to cheat the rubric with odd texts.",
        "A larger coefficient holds the policy closer. With 0 nothing holds it.",
    )


def loss(s: Screen) -> Drawn:
    """Objective, KL and their sum, by completion and of the group."""
    walk, a = s.walk, s.walk.config.algorithm
    lead = (
        "The loss is what the optimiser lowers. Each completion adds its part to the loss of the "
        "whole step."
    )
    rubric = walk.config.rubric
    values = a.model_dump() | {"kl_coef": walk.kl_coef}
    how = formula(
        *objective_lines(values, walk.config.train.max_new_tokens, rubric.gate, rubric.scale)
    )
    if not walk.measured:
        return drawn(lead, no_tokens(s), how)
    rows = [_loss_row(s, row, old) for row, old in s.pairs]
    sums = [
        cell(walk.total(name), s.was.total(name), short)
        for name in ("policy_loss", "kl_loss", "loss")
    ]
    rows.append(total_row("group", ["<td></td><td></td>", *sums]))
    stored = facts(
        ("stored loss of the step", number(*twice(walk.metrics.get("loss")), short)),
        ("completions", number(walk.num_rows, s.was.num_rows, plain)),
        ("tokens", number(walk.num_tokens, s.was.num_tokens, plain)),
    )
    heads = [
        "A",
        "tokens",
        ("objective", "what its tokens add by the objective"),
        ("KL", "coefficient × KL"),
        ("loss", "with an entropy bonus if the run has one"),
    ]
    return drawn(
        lead,
        table("Loss by completion", heads, rows) + stored,
        note(
            "Reading it",
            "A completion with A &gt; 0 has a negative loss. Lowering it further means to make "
            "the completion likelier.",
            "Advantages of a group add up to 0, so with texts of equal length the group’s sum is "
            "near 0. Its gradient is not: it has another direction for every completion.",
            f"<b>{esc(a.aggregation)}</b>: {esc(AGGREGATIONS[a.aggregation].help)}.",
            *_about_observations(s),
        ),
        how,
    )


def _about_observations(s: Screen) -> list[str]:
    num_read = sum(len(observed(row.rollout.turns)) for row in s.was.rows)
    if not num_read:
        return []
    return [
        f"These completions also hold {count(num_read, 'token')} that the environment wrote. They "
        "are in no length and have no ratio, no KL and no loss."
    ]


def _loss_row(s: Screen, row: WalkRow, old: WalkRow) -> str:
    cells = "".join(
        cell(getattr(row, name), getattr(old, name), short)
        for name in ("policy_loss", "kl_loss", "loss")
    )
    length = f"<td>{whole(row.rollout.num_tokens)}</td>"
    return f"<tr>{row_head(s, row)}{advantage(row, old)}{length}{cells}</tr>"
