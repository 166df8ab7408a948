"""Escaping of untrusted text for HTML, and numbers and lists as text. Pure functions."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

# Bidirectional overrides and invisible characters. A browser or a terminal would act on them:
# an override in a completion could reorder the reward beside it.
_BIDI = re.compile(
    "[\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufff9-\ufffb]"
)
# Control characters. A terminal would run an escape sequence, and the reader would not see it.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_C1 = re.compile("[\x80-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def visible(text: object) -> str:
    """`text` with a visible name in place of each invisible character that changes its display."""
    text = str(text)
    text = _CONTROL.sub(_control_picture, text)
    text = _BIDI.sub(_code_point, text)
    text = _C1.sub(_code_point, text)
    # A lone surrogate cannot be encoded as UTF-8, so it could not be sent to the browser.
    return _SURROGATE.sub("\ufffd", text)


def _control_picture(match: re.Match[str]) -> str:
    return "\u2421" if match.group() == "\x7f" else chr(0x2400 + ord(match.group()))


def _code_point(match: re.Match[str]) -> str:
    return f"⟦U+{ord(match.group()):04X}⟧"


def esc(text: object) -> str:
    """Escape text for HTML content or a quoted attribute. All untrusted text goes through here."""
    return html.escape(visible(text), quote=True)


def format_number(value: float | None, digits: int = 4) -> str:
    """`digits` significant digits; a dash for None."""
    return "–" if value is None else f"{value:.{digits}g}"


def whole(n: int | None) -> str:
    """6,400; a dash for None."""
    return "–" if n is None else f"{n:,}"


def together(words: Sequence[str]) -> str:
    """a, b and c."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
