r"""Markup around an answer, in Markdown, LaTeX or prose, which changes nothing about it.

`**5**`, `$5$`, `\boxed{5}`, `\text{5}`, `"5"`, a fenced block, and a full stop at the end.
"""

from __future__ import annotations

import re

MAX_LAYERS = 20
_PAIRS = (
    ("***", "***"),
    ("**", "**"),
    ("*", "*"),
    ("__", "__"),
    ("_", "_"),
    ("``", "``"),
    ("`", "`"),
    ("$$", "$$"),
    ("$", "$"),
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ('"', '"'),
    ("'", "'"),
    ("“", "”"),
    ("„", "“"),
    ("‘", "’"),
    ("«", "»"),
    ("「", "」"),
    ("<b>", "</b>"),
    ("<strong>", "</strong>"),
    ("<i>", "</i>"),
    ("<em>", "</em>"),
    ("<code>", "</code>"),
)
_COMMAND = re.compile(
    r"\\(?:boxed|fbox|text|textbf|textit|textrm|textnormal|texttt|emph|mbox|hbox|mathrm|mathbf"
    r"|mathit|mathsf|mathtt|boldsymbol|bm|underline)\s*\{"
)
_FENCE = re.compile(
    r"```(?:[\w+-]*[ \t]*\n|(?:json|latex|math|tex|text|python)[ \t]+)?(.*)```", re.S
)
_BLANK = "".join(c for c in map(chr, range(0x3001)) if c.isspace()) + (
    "\ufeff\u200b\u200c\u200d\u200e\u200f\u2060"  # of no width
)


def strip_markup(text: str) -> str:
    """The answer without the markup around it; a text of nothing but markup stays as it is.

    Every criterion that compares answers strips both, so markup cannot change a verdict. Takes
    linear time for each of at most MAX_LAYERS layers.
    """
    text = text.strip(_BLANK)
    for _ in range(MAX_LAYERS):
        inner = (_inner(text) or "").strip(_BLANK)
        if not inner:
            break
        text = inner
    return text


def _inner(text: str) -> str | None:
    """The text without its outermost layer; None if it has none."""
    for sign in (".", "。"):
        if text.endswith(sign) and not text.endswith(2 * sign):
            return text[:-1]
    if text.startswith(r"\displaystyle"):
        return text.removeprefix(r"\displaystyle")
    if (fenced := _FENCE.fullmatch(text)) and "```" not in fenced[1]:
        return fenced[1]
    if (command := _COMMAND.match(text)) and _closing_brace(text, command.end()) == len(text) - 1:
        return text[command.end() : -1]
    for opening, closing in _PAIRS:
        if len(text) <= len(opening) + len(closing):
            continue
        if text.startswith(opening) and text.endswith(closing):
            inner = text[len(opening) : -len(closing)]
            if _is_one(inner, opening, closing):
                return inner
    return None


def _is_one(inner: str, opening: str, closing: str) -> bool:
    """Whether the pair around `inner` is one pair: not 'a' or 'b', and not the name __init__."""
    if opening[0] == "_" and inner.isidentifier():
        return False
    if opening[0] in "$*_`" and inner.startswith(opening[0]):
        return False
    bare = inner.replace("\\$", "").replace('\\"', "")
    return opening not in bare and closing not in bare and not inner.endswith("\\")


def _closing_brace(text: str, start: int) -> int:
    """Where the brace that opened just before `start` closes; -1 if it does not."""
    depth = 1
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return i
    return -1
