"""The tokens of a completion as drawn: together they are the completion's text."""

from __future__ import annotations

import html
import math
import re
from array import array

import pytest

from grpo_core.analysis.token_loss import TokenTerms
from grpo_core.store import TokenRow
from grpo_core.types import Completion
from ui.render.tokens import SCALES, token_view


def drawn(text: str, pieces: list[bytes]) -> tuple[str, str]:
    """What is drawn of the prompt, and of the tokens."""
    row = TokenRow(1, array("i", range(len(pieces))), tuple(pieces), None, None, None, None)
    shown = token_view(row, None, "kl", Completion(text, "stop", len(pieces)))
    shown = shown.replace('<i class="sign">↵</i>', "")
    prompted = re.findall(r'<span class="of-prompt"[^>]*>(.*?)</span>', shown, re.DOTALL)
    tokens = re.findall(r'<span class="tok[^>]*>(.*?)</span>', shown, re.DOTALL)
    return html.unescape("".join(prompted)), html.unescape("".join(tokens))


@pytest.mark.parametrize(
    ("text", "pieces", "opening"),
    [
        ("<think>\n2+2</think>", [b"2+", b"2", b"</think>", b"<|end|>"], "<think>\n"),
        ("<think>\n\n2", [b"\n", b"2"], "<think>\n"),
        ("[THINK]2", [b"2"], "[THINK]"),
        ("<think>\n", [b"<|end|>"], "<think>\n"),
        ("<think>2", [b"<think>", b"2"], ""),
        ("<think><think>2", [b"<think>", b"2"], "<think>"),
        ("<think>\nOkay, 2", [b" ", b"2"], "<think>\nOkay,"),
        ("2", [b"2"], ""),
        ("", [b"<|end|>"], ""),
        ("<b>x", [b"<", b"b>x"], ""),
        ("<script>alert(1)", [b"alert(1)"], "<script>"),
    ],
)
def test_prompt_and_tokens_join_to_the_text(text, pieces, opening):
    prompted, tokens = drawn(text, pieces)
    assert prompted == opening
    assert tokens == b"".join(pieces).decode()
    assert (prompted + tokens).startswith(text)


def coloured(logprobs: list[float], by: str = "logprob") -> str:
    n = len(logprobs)
    values = array("f", logprobs)
    row = TokenRow(1, array("i", range(n)), (b"x",) * n, values, values, None, values)
    terms = TokenTerms(
        logprob=logprobs,
        ratio=[1.0] * n,
        kl=[math.nan] * n,
        entropy=[-v for v in logprobs],
        clipped=[False] * n,
        term=[0.0] * n,
        policy=[0.0] * n,
        kl_term=[0.0] * n,
        gradient=[0.0] * n,
        change=[0.0] * n,
    )
    return token_view(row, terms, by, Completion("", "stop", n))


def test_a_value_has_the_same_colour_in_every_completion():
    def strengths(shown: str) -> list[str]:
        return re.findall(r'class="tok" style="--v:([\d.]+)"', shown)

    alone, beside = coloured([-0.5]), coloured([-0.5, -9.0])
    assert strengths(alone) == ["0.393"]  # 1 − e^−0.5
    assert strengths(beside) == ["0.393", "1.000"]
    marks = re.findall(r'class="swatch" style="--v:([\d.]+)">([^<]+)<', alone)
    assert ("0.393", "−0.5") in marks
    assert marks == re.findall(r'class="swatch" style="--v:([\d.]+)">([^<]+)<', beside)


@pytest.mark.parametrize("by", SCALES)
def test_the_legend_goes_from_end_to_end(by):
    scale = SCALES[by]
    parts = [scale.part(value) for value in scale.marks]
    strengths = sorted(parts)
    assert parts in (strengths, strengths[::-1])  # each mark is darker than the one before
    assert max(abs(p) for p in parts) > 0.99
    assert 0 in parts
