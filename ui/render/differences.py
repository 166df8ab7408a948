"""Two texts word by word: what is in only one of them is marked. Texts -> escaped HTML; pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import groupby

from ui.render.text import esc

WORD = re.compile(r"\s+|\w+|[^\w\s]")


def marked(
    texts: Sequence[str], others: Sequence[str], most: int, tags: tuple[str, str] = ("mark", "mark")
) -> tuple[list[str], list[str]]:
    """Both lists as HTML, each compared as one text; words of only one list are in its tag.

    most: words of each list that are compared; the rest has no marks.
    """
    a, b = _words(texts), _words(others)
    flat, other = [w for words in a for w in words], [w for words in b for w in words]
    # autojunk ignores frequent words, which keeps the time of long texts linear.
    matcher = SequenceMatcher(None, flat[:most], other[:most], autojunk=len(flat) > 200)
    in_a, in_b = bytearray(len(flat)), bytearray(len(other))
    for kind, a_from, a_to, b_from, b_to in matcher.get_opcodes():
        if kind != "equal":
            in_a[a_from:a_to] = b"\1" * (a_to - a_from)
            in_b[b_from:b_to] = b"\1" * (b_to - b_from)
    return _html(a, in_a, tags[0]), _html(b, in_b, tags[1])


def _words(texts: Sequence[str]) -> list[list[str]]:
    return [WORD.findall(text) for text in texts]


def _html(texts: Sequence[Sequence[str]], is_marked: bytearray, tag: str) -> list[str]:
    """The words of each text, joined; is_marked: 1 for each word, of all texts, that is marked."""
    out, marks = [], iter(is_marked)
    for words in texts:
        html = ""
        for mark, run in groupby(words, key=lambda _: next(marks)):
            text = esc("".join(run))
            html += f"<{tag}>{text}</{tag}>" if mark else text
        out.append(html)
    return out
