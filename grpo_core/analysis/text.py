"""Foreign text -> HTML that shows that very text. Pure."""

from __future__ import annotations

import html
import re

# What a terminal or a bidirectional renderer would obey is shown by its name instead: an override character in a
# completion must not reorder the reward beside it, and an escape sequence must be visible to whoever judges the text.
_BIDI = re.compile(
    "[\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufff9-\ufffb]"
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_C1 = re.compile("[\x80-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def visible(text: object) -> str:
    """`text` with every invisible character that could change how it is read replaced by a visible name."""
    text = str(text)
    text = _CONTROL.sub(
        lambda m: "\u2421" if m.group() == "\x7f" else chr(0x2400 + ord(m.group())), text
    )
    text = _BIDI.sub(lambda m: f"⟦U+{ord(m.group()):04X}⟧", text)
    text = _C1.sub(lambda m: f"⟦U+{ord(m.group()):04X}⟧", text)
    return _SURROGATE.sub(
        "\ufffd", text
    )  # a lone surrogate is no text: it could not even be sent to the browser


def esc(text: object) -> str:
    """The one way in which foreign text enters HTML, as content or as a quoted attribute."""
    return html.escape(visible(text), quote=True)


def number(value: float | None, digits: int = 4) -> str:
    """So many significant digits; a dash for what was not measured."""
    return "–" if value is None else f"{value:.{digits}g}"
