"""The tokens of a completion as drawn: together they are the completion's text."""

from __future__ import annotations

import html
import re
from array import array

import pytest

from grpo_core.store import TokenRow
from ui.render.tokens import token_view


def drawn(text: str, pieces: list[bytes]) -> tuple[str, str]:
    """What is drawn of the prompt, and of the tokens."""
    row = TokenRow(1, array("i", range(len(pieces))), tuple(pieces), None, None, None, None)
    shown = token_view(row, None, "kl", text).replace('<i class="sign">↵</i>', "")
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
