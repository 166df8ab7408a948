"""Which letter, A to J, a text chooses, however it is written."""

from __future__ import annotations

import re
import unicodedata

MAX_CHARS = 2_000  # of an answer; of a longer one only the end is read
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|boxed|fbox)\b|\\[()\[\]]|[*`$\"“”{}]")
_QUOTED = re.compile(r"(?<!\w)['‘’]([A-Ja-j])['’](?!\w)")
_OPEN, _CLOSE = r"[(\[]{0,2}", r"[)\]]{0,2}"
# A and I are also words: "A cat", "I think".
_CAPITAL = r"(?:[B-HJ](?![\w'])|[AI](?![\w'])(?! (?!is\b|and\b|or\b)[a-z]))"
_LETTER = (
    rf"{_OPEN}(?:({_CAPITAL})|(?<=[(\[])([a-j])(?=[)\]])|([a-j])(?=\)|\s*[.,;!?]?\s*(?:\n|$)))"
)
_LONE = re.compile(r"(?i:\s*(?:option|choice|answer)\b\s*:?)?[\s(\[]*([A-Ja-j])[\s)\].:,;!]*")
_WITH_TEXT = re.compile(
    r"(?:[(\[]?([A-Ja-j])(?:[)\].:]|\s*[-–—=](?=\s))\s*(?=\S)|([B-HJ])\s(?!and\b|or\b)(?=\w\w))"
)
_REASON = re.compile(r"(?i:\b(?:because|since|as|due to|given that)\b)[^.\n]*")
_NEGATED = re.compile(
    rf"(?i:\b(?:not|isn't|nor|neither|rather than|instead of|unlike|eliminate|rules? out|except)\b)"
    rf"\s+(?i:option|choice|answer)?\s*{_OPEN}[A-J](?![\w']){_CLOSE}"
    rf"|(?i:\b(?:option|choice|answer)\s+)?{_OPEN}(?<![\w'])[A-J](?![\w']){_CLOSE}\s+"
    r"(?i:is|was|seems|looks|would be)\s+(?i:clearly |obviously |also |simply |definitely )?"
    r"(?i:not|wrong|incorrect|false|too|out|impossible|invalid)\b"
    rf"|(?i:\b(?:option|choice|answer)\s+)?{_OPEN}(?<![\w'])[A-J](?![\w']){_CLOSE}\s+"
    r"(?i:isn't|cannot|can't|does not|doesn't|fails)\b"
)
_NAME = r"(?i:(?:the\s+)?(?:(?:final|correct|right|best)\s+)*(?:answer|option|choice|letter)\s*)"
_STATED = re.compile(
    # "the correct answer is: B", "Answer - B", "the answer must be option B"
    r"(?:(?i:\b(?:answer|choice|option|solution)\b)[^.\n:=]{0,30}?\s*"
    r"(?i:\bis\b|\bbe\b|:|=|->|→|[-–—])"
    rf"\s*:?\s*(?i:(?:but|clearly|definitely|probably|indeed|actually)\s+)?"
    rf"(?:{_NAME}(?i:is)?\s*:?\s*)?"
    # "I choose B", "so B", "it is B"
    r"|(?i:\b(?:choose|chose|pick|select|go with|going with|say|guess|think|therefore|thus|hence|so"
    rf"|it is|it's|must be)\b)[,:]?\s+(?:{_NAME})?(?i:(?:it is|it's)\s+)?"
    r"|(?:^|\n)\s*(?i:final\s+)?(?i:answer)\s+(?=\S{1,3}\s*(?:\n|$))"
    rf"){_LETTER}"
    # "B is correct", "option B is the right answer"
    rf"|(?<![\w']){_OPEN}([A-J])(?![\w']){_CLOSE}\s+(?i:is|seems|must be)\s+(?i:the\s+)?"
    r"(?i:correct|right|best|true|answer)"
)
_ANOTHER = re.compile(
    rf"{_CLOSE}\s*(?:,|/|&|(?i:,?\s*\b(?:or|and)\b))\s*(?i:maybe |perhaps |possibly |option )?"
    rf"{_OPEN}[A-Ja-j](?![\w'])|{_CLOSE} {_OPEN}[B-HJ](?![\w'.:])"
)


def answered_letter(text: str) -> str | None:
    """The letter of a text that is an answer or a key; None for none, or for two: "B or C"."""
    text = _clean(text[-MAX_CHARS:])
    if lone := _LONE.fullmatch(text):
        return lone[1].upper()
    text = _without_rejected(text)
    stated, was_stated = _stated(text)
    if was_stated:
        return stated
    if labelled := _labelled(text):
        return labelled
    alone = {m[0] for m in re.finditer(rf"(?<![\w']){_CAPITAL}", text)}
    return alone.pop() if len(alone) == 1 else None


def key_letter(text: str) -> str | None:
    """The letter of a right answer: "B", "(b)", "B) Paris", "Answer: B"; None for other text."""
    text = _clean(text[:MAX_CHARS])
    if lone := _LONE.fullmatch(text):
        return lone[1].upper()
    return _labelled(text) or _stated(text)[0]


def stated_letter(text: str) -> str | None:
    """The letter that a longer text chooses: its last "the answer is B", or a last line of "B"."""
    text = _clean(text)
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) == 1 and (labelled := _labelled(lines[0])):
        return labelled
    if lines and (lone := _LONE.fullmatch(lines[-1])):
        is_listing = len(lines) > 1 and _LONE.fullmatch(lines[-2])
        return None if is_listing else lone[1].upper()
    return _stated(_without_rejected(text))[0]


def _clean(text: str) -> str:
    text = unicodedata.normalize("NFKC", text.replace("\n", "\x00")).replace("\x00", "\n")
    text = _QUOTED.sub(r"\1", _MARKUP.sub(" ", text).replace("’", "'"))
    return re.sub(r"[^\S\n]+", " ", text).strip()


def _without_rejected(text: str) -> str:
    """The text without reasons, which name other letters, and without letters that it rejects."""
    return _NEGATED.sub(" ", _REASON.sub(" ", text)).strip()


def _stated(text: str) -> tuple[str | None, bool]:
    """The letter of the last statement, None if it names two; and whether there is a statement."""
    statements = list(_STATED.finditer(text))
    if not statements:
        return None, False
    found = statements[-1]
    if _ANOTHER.match(text, found.end()):
        return None, True
    return next(group for group in found.groups() if group).upper(), True


def _labelled(text: str) -> str | None:
    """The letter of "B) Paris"; None if another letter is labelled too."""
    match = _WITH_TEXT.match(text)
    if not match or re.search(r"(?<![\w'])[A-J][):\]]", text[match.end() :]):
        return None
    return (match[1] or match[2]).upper()
