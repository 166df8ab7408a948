"""Units after a number: which words may be one, and when two units are the same."""

from __future__ import annotations

import re

# Words of one or two letters are units only if they stand here: 5x and 3ab are algebra.
_SHORT_UNITS = """m g s h L l W V cm mm km kg mg ml mL cl dl dL ft in lb oz yd mi ms hr th st nd rd
am pm Hz kW kJ mA cc ha nm GB MB KB TB kB N J eV kN Pa dB"""
# After a number these words change its value.
_CHANGING = """squared cubed factorial root sqrt sin cos tan log exp pi half halves third thirds
quarter quarters fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth
ninths tenth tenths hundredth hundredths thousandth thousandths hundred hundreds thousand thousands
million millions billion billions trillion trillions dozen dozens score percent percentage pct mod
modulo choose divided"""
# These begin something else, so that the number is not alone: "5 or", "5 is".
_CONTINUING = """and or not to of nor but is are was wrong incorrect false plus minus times over
base if when where unless except approximately about maybe than more less fewer least most below
above between through until"""
_SHORT = frozenset(_SHORT_UNITS.split())
_NO_NUMBER = frozenset(_CHANGING.split())
_NO_UNITS = _NO_NUMBER | frozenset(_CONTINUING.split())
_NAMES = {
    "dollar": "$",
    "usd": "$",
    "us$": "$",
    "euro": "€",
    "eur": "€",
    "gbp": "£",
    "inr": "₹",
    "meter": "m",
    "metre": "m",
    "centimeter": "cm",
    "centimetre": "cm",
    "millimeter": "mm",
    "millimetre": "mm",
    "kilometer": "km",
    "kilometre": "km",
    "gram": "g",
    "kilogram": "kg",
    "milligram": "mg",
    "second": "s",
    "sec": "s",
    "minute": "min",
    "hour": "h",
    "hr": "h",
    "liter": "l",
    "litre": "l",
    "L": "l",
    "mL": "ml",
    "milliliter": "ml",
    "millilitre": "ml",
    "inche": "in",
    "inch": "in",
    "feet": "ft",
    "foot": "ft",
    "pound": "lb",
    "lbs": "lb",
    "mile": "mi",
    "yard": "yd",
    "degree": "°",
    "deg": "°",
    "per": "/",
}
_WORD = r"[A-Za-zµμΩ]+"
_POWER = r"(?:\s?\^\s?[({]?-?\d[)}]?)?"
UNIT = re.compile(rf" ?(?:° ?[CF]?|{_WORD}{_POWER}(?:(?: ?[/·×*] ?| |-){_WORD}{_POWER}){{0,4}})")


def is_unit(text: str) -> bool:
    """Whether the text after a number may be its unit, and so does not change its value."""
    if not UNIT.fullmatch(text):
        return False
    words = re.findall(_WORD, text)
    if text.lstrip().startswith("°"):
        return True
    return (len(words[0]) > 2 or words[0] in _SHORT) and not any(
        w.lower() in _NO_UNITS or (len(w) < 3 and w not in _SHORT) for w in words
    )


def changes_value(word: str) -> bool:
    """Whether a word after a number makes another number of it: "5 squared", "5 thirds"."""
    return word.lower() in _NO_NUMBER


def unit_name(text: str) -> str:
    """The unit with one name for each meaning: "meters" and "m" are the same."""
    words = re.findall(rf"{_WORD}|\d|\S", text.replace("^", "").strip())
    return "".join(_one_name(w) for w in words if w not in "(){}")


def _one_name(word: str) -> str:
    if word in _NAMES:
        return _NAMES[word]
    lower = word.lower() if len(word) > 2 else word
    singular = lower[:-1] if len(lower) > 3 and lower.endswith("s") else lower
    return _NAMES.get(lower, _NAMES.get(singular, singular))
