"""The tokens of a completion, coloured by what happened to each. Rows -> escaped HTML; pure. RolloutBatch from ids: nothing is tokenised again."""

from __future__ import annotations

import codecs
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.analysis.token_loss import TokenTerms
from grpo_core.store import GroupRow, TokenRow
from ui.render.text import esc, is_number, short, signed

MAX_TOKENS = 4000  # drawn; a longer completion is cut, and says so


@dataclass(frozen=True, slots=True)
class Scale:
    """How one number becomes a colour. `diverging`: from orange through nothing to blue around `middle`; else from nothing to blue."""

    title: str
    diverging: bool
    middle: float
    help: str


SCALES: dict[str, Scale] = {
    "logprob": Scale("log-probability", False, 0.0, "The darker, the less the policy expected it."),
    "ratio": Scale(
        "ratio",
        True,
        1.0,
        "New over old policy: blue has become likelier, orange less likely. 1 in the first update of a batch.",
    ),
    "kl": Scale("KL", False, 0.0, "Distance from the reference at this token."),
    "entropy": Scale("entropy", False, 0.0, "How open the choice was. Forking tokens are dark."),
    "clip": Scale("clip", False, 0.0, "Dark where clipping took the token's push away."),
    "gradient": Scale(
        "gradient", True, 0.0, "The token's push: blue is made likelier, orange less likely."
    ),
}


def value_of(by: str, terms: TokenTerms, i: int) -> float:
    """The number of token i that a scale shows. Pushes are minus the gradient of a loss that is minimised."""
    if by == "clip":
        return float(terms.clipped[i])
    if by == "gradient":
        return -terms.gradient[i]
    return {
        "logprob": terms.logprob,
        "ratio": terms.ratio,
        "kl": terms.kl,
        "entropy": terms.entropy,
    }[by][i]


def controls(group: GroupRow, chosen: int, by: str) -> str:
    """Which completion, and what the colour says."""
    rollouts = "".join(
        f'<option value="{r.position}"{" selected" if r.position == chosen else ""}>#{r.position + 1}, A {signed(r.advantage)}</option>'
        for r in group.rollouts
    )
    choices = "".join(
        f'<label><input type="radio" name="by" value="{name}"{" checked" if name == by else ""}><span>{esc(scale.title)}</span></label>'
        for name, scale in SCALES.items()
    )
    return (
        f'<form class="whatif" onsubmit="return false"><label class="knob"><span>Tokens of</span><select name="rollout">{rollouts}</select></label>'
        f'<fieldset class="segments"><legend class="sr">Colour by</legend>{choices}</fieldset></form>'
    )


def token_view(row: TokenRow | None, terms: TokenTerms | None, by: str) -> str:
    if row is None:
        return '<div class="empty"><b>No tokens were recorded here</b><span>Token records every (More fields) says how often they are kept.</span></div>'
    shown = min(len(row.token_ids), MAX_TOKENS)
    known = [
        v for i in range(shown) if terms is not None and math.isfinite(v := value_of(by, terms, i))
    ]
    scale = SCALES[by]
    far = max((abs(v - scale.middle) for v in known), default=0.0)
    parts, at = [], 0
    for text, pieces in clusters(row.pieces[:shown]):
        spans = [
            _span(at + k, piece if len(pieces) > 1 else text, row, terms, by, far, len(pieces) > 1)
            for k, piece in enumerate(pieces)
        ]
        parts.append(
            spans[0]
            if len(pieces) == 1
            else f'<span class="cluster">{esc(text)}{"".join(spans)}</span>'
        )
        at += len(pieces)
    note = (
        ""
        if terms is not None
        else '<p class="note">This group was tied, so nothing was computed of its tokens but what they say.</p>'
    )
    if by == "kl" and known == [] and terms is not None:
        note = '<p class="note">KL was not measured on this completion: without a coefficient it is measured on an eighth of them, with measure_kl off on none.</p>'
    if shown < len(row.token_ids):
        note += f'<p class="note">The first {shown:,} of {len(row.token_ids):,} tokens.</p>'
    return (
        f'{_legend(scale, far)}<div class="tokens" dir="auto" role="group" tabindex="0" aria-label="Tokens, coloured by {esc(scale.title)}. Arrow keys walk them.">'
        f'{"".join(parts)}</div><p class="token-says" role="status">Point at a token, tap it, or walk with the arrow keys.</p>{note}'
    )


def clusters(pieces: Sequence[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """Tokens that must be drawn together: halves of one character, and whatever joins the character before (accents, joiners, variation signs)."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, held = "", []
    ready: tuple[str, list[bytes]] | None = None
    for n, piece in enumerate(pieces):
        text += decoder.decode(piece, final=n == len(pieces) - 1)
        held.append(piece)
        if decoder.getstate()[0]:  # a character has begun and not ended
            continue
        if ready is not None and text and _joins(ready[0][-1:], text[0]):
            ready = ready[0] + text, ready[1] + held
        else:
            if ready is not None:
                yield ready
            ready = text, held
        text, held = "", []
    if held:
        ready = (ready[0] + text, ready[1] + held) if ready and not text else ready
        if text:
            if ready is not None:
                yield ready
            ready = text, held
    if ready is not None:
        yield ready


def _joins(before: str, char: str) -> bool:
    return (
        unicodedata.category(char)[0] == "M"
        or char in "\u200d\ufe0f"
        or before == "\u200d"
        or 0x1F3FB <= ord(char) <= 0x1F3FF
    )


def _span(
    i: int,
    text: str | bytes,
    row: TokenRow,
    terms: TokenTerms | None,
    by: str,
    far: float,
    byte: bool,
) -> str:
    shown = text.hex(" ").upper() if isinstance(text, bytes) else _visible(text)
    says = numbers(i, row, terms)
    value = value_of(by, terms, i) if terms is not None else math.nan
    part, side = 0.0, ""
    if is_number(value) and far > 0:
        away = value - SCALES[by].middle
        part, side = min(1.0, abs(away) / far), " down" if SCALES[by].diverging and away < 0 else ""
    kind = f"tok{' byte' if byte else ''}{side}"
    return f'<span class="{kind}" style="--v:{part:.3f}" data-says="{esc(says)}" title="{esc(says)}">{shown}</span>'


def _visible(text: str) -> str:
    """A line break is drawn as a sign and does break; blanks stay; nothing is empty."""
    return esc(text).replace("\n", '<i class="sign">↵</i>\n') if text else '<i class="sign">∅</i>'


def numbers(i: int, row: TokenRow, terms: TokenTerms | None) -> str:
    """Everything that is known of a token, in a line."""
    text = row.pieces[i].decode("utf-8", "replace")
    parts = [f"token {i + 1} “{text}” · id {row.token_ids[i]}"]
    if row.sampling_logprobs is not None:
        parts.append(f"log p drawn {short(row.sampling_logprobs[i])}")
    if terms is not None:
        parts += [
            f"{name} {short(v)}"
            for name, v in (
                ("log p", terms.logprob[i]),
                ("ratio", terms.ratio[i]),
                ("KL", terms.kl[i]),
                ("entropy", terms.entropy[i]),
                ("loss term", terms.term[i]),
                ("gradient", terms.gradient[i]),
            )
            if is_number(v)
        ]
        parts.append("clipped" if terms.clipped[i] else "not clipped")
    return " · ".join(parts)


def _legend(scale: Scale, far: float) -> str:
    low, high = (scale.middle - far, scale.middle + far) if scale.diverging else (0.0, far)
    if scale.title == "log-probability":
        low, high = 0.0, -far
    kind = "diverging" if scale.diverging else "rising"
    return f'<p class="token-legend"><span>{short(low)}</span><i class="{kind}" aria-hidden="true"></i><span>{short(high)}</span><span class="note">{esc(scale.help)}</span></p>'


def read(said: Any, size: int) -> tuple[int, str]:
    """Which completion and which colour; anything may arrive."""
    said = said if isinstance(said, Mapping) else {}
    rollout = str(said.get("rollout", "0"))
    by = said.get("by")
    return min(int(rollout), max(size - 1, 0)) if rollout.isascii() and rollout.isdigit() and len(
        rollout
    ) < 6 else 0, by if isinstance(by, str) and by in SCALES else "logprob"
