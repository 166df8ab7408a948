"""The tokens of a completion, coloured by a quantity of each. Rows -> escaped HTML; pure.

Tokens are drawn from the recorded pieces; nothing is tokenised again.
"""

from __future__ import annotations

import codecs
import math
import re
import unicodedata
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.analysis.provenance import why_absent
from grpo_core.analysis.token_loss import TokenTerms
from grpo_core.store import GroupRow, Source, TokenRow
from grpo_core.types import GroupKind
from ui.render.status import empty
from ui.render.text import esc, is_number, plain, short, signed
from ui.render.token_scales import SCALES, Scale, colour_of, value_of
from ui.render.turns import Trajectory, observed

MAX_OPENING = 400  # characters of a completion's text that its prompt wrote
MAX_TOKENS = 4000  # drawn; a note says so where a completion is longer
OBSERVED = "written by the environment, not trained on"


@dataclass(frozen=True, slots=True)
class Colouring:
    """The drawn tokens' values, nan where unknown, and the tokens of observations."""

    scale: Scale
    values: Sequence[float]
    observed: Container[int] = ()


def controls(group: GroupRow, chosen: int, by: str) -> str:
    """Choices of the completion and of the quantity that colours its tokens."""
    rollouts = "".join(
        f'<option value="{r.position}"{" selected" if r.position == chosen else ""}>'
        f"#{r.position + 1}, A {signed(r.advantage)}</option>"
        for r in group.rollouts
    )
    scales = "".join(
        f'<label><input type="radio" name="by" value="{name}"{" checked" if name == by else ""}>'
        f"<span>{esc(scale.title)}</span></label>"
        for name, scale in SCALES.items()
    )
    return (
        '<form class="whatif" onsubmit="return false"><label class="knob">'
        f'<span>Tokens of</span><select name="rollout">{rollouts}</select></label>'
        '<fieldset class="segments"><legend class="sr">Colour by</legend>'
        f"{scales}</fieldset></form>"
    )


def no_tokens(group: GroupRow, source: Source | None = None) -> str:
    """Why a group has no token records. source: of another trainer's run."""
    if group.kind == GroupKind.EVALUATION:
        return empty("Evaluations keep no tokens", "Open a group of a training step.")
    if source is not None:
        return empty("No tokens were recorded here", why_absent(source, "token_ids"))
    return empty(
        "No tokens were recorded here",
        "Token records every (section Run) says how often they are kept. "
        "The recorded example keeps those of step 1 and of every tenth step.",
    )


def token_view(
    row: TokenRow,
    terms: TokenTerms | None,
    by: str,
    rollout: Trajectory,
    source: Source | None = None,
) -> str:
    """The tokens of a completion in colour, a legend, and a line for the values of one token.

    terms: None if the update left the completion out. by: a key of SCALES. rollout: the completion.
    What the prompt wrote of its text has no tokens and is drawn without colour; the tokens of
    observations are drawn in grey. source: of another trainer's run.
    """
    num_drawn = min(len(row.token_ids), MAX_TOKENS)
    scale, grey = SCALES[by], observed(rollout.turns)
    values = [
        math.nan if terms is None or i in grey else value_of(by, terms, i) for i in range(num_drawn)
    ]
    known = [value for value in values if math.isfinite(value)]
    colouring = Colouring(scale, values, grey)
    drawn, at = _of_prompt(rollout.text, row.pieces), 0
    for joined, pieces in clusters(row.pieces[:num_drawn]):
        if len(pieces) == 1:
            drawn += _span(at, joined, row, terms, colouring)
        else:
            spans = "".join(
                _span(at + k, piece, row, terms, colouring) for k, piece in enumerate(pieces)
            )
            drawn += f'<span class="cluster">{esc(joined)}{spans}</span>'
        at += len(pieces)
    note = _of_source(source, by, bool(known)) if source else _unknown(terms, by, bool(known))
    if num_drawn < len(row.token_ids):
        note += f'<p class="note">The first {num_drawn:,} of {len(row.token_ids):,} tokens.</p>'
    return (
        f'{_legend(scale, bool(grey))}<div class="tokens" dir="auto" role="group" tabindex="0" '
        f'aria-label="Tokens, coloured by {esc(scale.title)}. Arrow keys walk them.">{drawn}</div>'
        '<p class="token-says" role="status">'
        f"Point at a token, tap it, or walk with the arrow keys.</p>{note}"
    )


def _unknown(terms: TokenTerms | None, by: str, is_known: bool) -> str:
    """Why tokens have no colour."""
    if terms is None:
        said = (
            "This group was tied, and the loss had neither KL nor an entropy bonus, so only the "
            "tokens themselves were recorded."
        )
    elif by == "kl" and not is_known:
        said = (
            "KL was not measured on this completion. Without a coefficient it is measured on an "
            "eighth of the completions; with measure_kl off, on none."
        )
    elif by == "change" and not is_known:
        said = (
            "The update was not measured on this group. Measured after the update (section Run) "
            "says on how many groups of a step it is; older versions measured none."
        )
    else:
        return ""
    return f'<p class="note">{said}</p>'


# key of SCALES -> the field of a record that it needs
NEEDS = {
    "logprob": "logprobs",
    "ratio": "logprobs",
    "kl": "ref_logprobs",
    "entropy": "entropy",
    "clip": "logprobs",
    "gradient": "logprobs",
}


def _of_source(source: Source, by: str, is_known: bool) -> str:
    """What the colours of a run of another trainer rest on, or why there are none."""
    if by == "change":
        said = f"{source.trainer} measured nothing after its updates."
    elif not is_known:
        said = why_absent(source, NEEDS[by])
    elif by in ("clip", "gradient"):
        said = (
            f"Computed here from recorded log-probabilities. Settings that {source.trainer} did "
            "not name have this program’s defaults."
        )
    else:
        return ""
    return f'<p class="note">{esc(said)}</p>'


_TAG = re.compile(r"[<\[◁][^<>\[\]◁▷]{1,60}[>\]▷]\s*")


def _of_prompt(text: str, pieces: Sequence[bytes]) -> str:
    """What the prompt wrote of the completion's text: the block that it opened; "" if none."""
    sampled = b"".join(pieces).decode("utf-8", "replace")
    tag = _TAG.match(text)
    if tag is None or sampled.startswith(text):
        return ""
    # What follows the tag is the prompt's, the tokens', or some of each.
    last = min(len(text), tag.end() + MAX_OPENING)
    ends = [*range(tag.end(), len(tag[0].rstrip()) - 1, -1), *range(tag.end() + 1, last)]
    end = next((end for end in ends if sampled.startswith(text[end:])), None)
    if end is None and sampled.lstrip().startswith(text[tag.end() :]):
        end = tag.end()  # some tokenizers drop the first space of a text
    if end is None:
        return ""
    says = "Written by the prompt, so it has no tokens and is not trained."
    return f'<span class="of-prompt" title="{says}">{_visible(text[:end])}</span>'


def clusters(pieces: Sequence[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """(text, its tokens): tokens that must be drawn together.

    They are parts of one character, or join the character before: accents, joiners, variation
    selectors, skin tones.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, held = "", []
    ready: tuple[str, list[bytes]] | None = None
    for n, piece in enumerate(pieces):
        text += decoder.decode(piece, final=n == len(pieces) - 1)
        held.append(piece)
        if decoder.getstate()[0]:  # inside a character
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
    i: int, text: str | bytes, row: TokenRow, terms: TokenTerms | None, colouring: Colouring
) -> str:
    """Token i. text: bytes where the token is only part of a character."""
    is_part = isinstance(text, bytes)
    drawn = text.hex(" ").upper() if is_part else _visible(text)
    is_observed = i in colouring.observed
    numbers = esc(token_numbers(i, row, terms, is_observed))
    kind, style = colour_of(colouring.scale, colouring.values[i])
    kind += " observed" if is_observed else ""
    byte = " byte" if is_part else ""
    return (
        f'<span class="tok{byte}{kind}" style="{style}" data-says="{numbers}" title="{numbers}">'
        f"{drawn}</span>"
    )


def _visible(text: str) -> str:
    """A line break as a sign and a break; an empty token as ∅."""
    return esc(text).replace("\n", '<i class="sign">↵</i>\n') if text else '<i class="sign">∅</i>'


def token_numbers(
    i: int, row: TokenRow, terms: TokenTerms | None, is_observed: bool = False
) -> str:
    """Everything recorded and computed of token i, in a line."""
    text = row.pieces[i].decode("utf-8", "replace")
    parts = [f"token {i + 1} “{text}” · id {row.token_ids[i]}"]
    if is_observed:
        return f"{parts[0]} · {OBSERVED}"
    if row.sampling_logprobs is not None:
        parts.append(f"log p drawn {short(row.sampling_logprobs[i])}")
    if terms is not None:
        values = {
            "log p": terms.logprob[i],
            "ratio": terms.ratio[i],
            "KL": terms.kl[i],
            "entropy": terms.entropy[i],
            "loss term": terms.term[i],
            "gradient": terms.gradient[i],
            "change by the update": terms.change[i],
        }
        parts += [f"{name} {short(v)}" for name, v in values.items() if is_number(v)]
        parts.append("clipped" if terms.clipped[i] else "not clipped")
    return " · ".join(parts)


def _legend(scale: Scale, has_observed: bool) -> str:
    """The marks of the scale in their colours, and what grey means where something is grey."""
    swatches = ""
    for value in scale.marks:
        kind, style = colour_of(scale, value)
        swatches += f'<span class="swatch{kind}" style="{style}">{plain(value)}</span>'
    grey = ""
    if has_observed:
        grey = (
            '<p class="token-legend"><span class="swatches"><span class="swatch observed">'
            f'observation</span></span><span class="note">{OBSERVED.capitalize()}.</span></p>'
        )
    return (
        f'<p class="token-legend"><span class="swatches">{swatches}</span>'
        f'<span class="note">{esc(scale.help)}</span></p>{grey}'
    )


def read(form: Any, num_rollouts: int) -> tuple[int, str]:
    """(position of the completion, key of SCALES) of a form; a browser can send anything."""
    form = form if isinstance(form, Mapping) else {}
    rollout, by = str(form.get("rollout", "0")), form.get("by")
    position = 0
    if rollout.isascii() and rollout.isdigit() and len(rollout) < 6:
        position = min(int(rollout), max(num_rollouts - 1, 0))
    return position, by if isinstance(by, str) and by in SCALES else "logprob"
