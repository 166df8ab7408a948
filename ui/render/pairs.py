"""Two answers beside each other, and a group to rank. Run and rewards stay hidden. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_core.preferences.agreement import Agreement, Summary
from ui.render.cards import LONG
from ui.render.status import empty
from ui.render.text import count, esc, format_number, percent
from ui.render.turns import Trajectory, body, has_calls, texts_of

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def pair_view(
    prompt: str, answers: tuple[Trajectory, Trajectory], number: int, said: str = ""
) -> str:
    """One pair with its buttons; pairs.js presses them from the keyboard.

    answers: left and right. number: 1 for a person's first pair. said: what became of the last
    one, for a screen reader.
    """
    left, right = answers
    return (
        f"{_begin(f'Pair {number}', said, 'ArrowLeft ArrowRight ArrowDown S U Control+Z')}"
        f'{_prompt(prompt)}<div class="sides">'
        f"{_side('Left', left, '←')}{_side('Right', right, '→')}</div>"
        f'<div class="tools">{_verdict("tie", "Tie", "↓")}{_verdict("skip", "Skip", "S")}{_UNDO}'
        "</div></div>"
    )


def ranking_view(prompt: str, answers: Sequence[Trajectory], said: str = "") -> str:
    """The answers of one group, to be put in order; pairs.js moves them."""
    items = "".join(
        f'<li draggable="true" tabindex="0" data-at="{i}" data-letter="{LETTERS[i]}" '
        f'aria-label="Answer {LETTERS[i]}" aria-keyshortcuts="Alt+ArrowUp Alt+ArrowDown">'
        f'<b class="letter" aria-hidden="true">{LETTERS[i]}</b>'
        f"{_text(answer, f'Text of answer {LETTERS[i]}', scrolls=True)}"
        f'<span class="moves">{_move(LETTERS[i], "up", "↑")}{_move(LETTERS[i], "down", "↓")}</span>'
        "</li>"
        for i, answer in enumerate(answers)
    )
    return (
        f"{_begin('A group to rank', said, 'S U Control+Z')}{_prompt(prompt)}"
        '<p class="note">Best answer first. Drag an answer, or press '
        "<kbd>Alt</kbd> <kbd>↑</kbd> or <kbd>Alt</kbd> <kbd>↓</kbd> on it.</p>"
        f'<ol class="ranking" aria-label="Best answer first">{items}</ol>'
        '<div class="tools"><button type="button" class="store" data-do="rank" data-order="">'
        f"Store this ranking</button>{_verdict('skip', 'Skip', 'S')}{_UNDO}</div></div>"
    )


def no_pair(whole_store: bool, said: str = "") -> str:
    """Nothing is left to judge."""
    how = "Train more, or import preferences."
    if not whole_store:
        how = "Switch on “All runs”, choose another run, or train more."
    box = empty("There is nothing left to judge here", how)
    begin = _begin("Nothing to judge", said, "U Control+Z")
    return f'{begin}{box}<div class="tools">{_UNDO}</div></div>'


def counts(found: Summary) -> str:
    """How many pairs a person judged, and how far they agree with others and with themselves."""
    skipped = f" · <b>{found.num_skipped:,}</b> skipped" if found.num_skipped else ""
    twice = _agreement("with yourself", found.own)
    others = "".join(
        _agreement(f"with {name or 'people without a name'}", agreement)
        for name, agreement in sorted(found.others.items())
    )
    none = "Agreement appears once a pair was judged twice: about one in ten comes again."
    return (
        f'<p class="pair-counts"><span class="fact"><b>{found.num_judged:,}</b> judged{skipped}'
        f"</span>{twice}{others or ''}</p>"
        + ("" if twice or others else f'<p class="note">{none}</p>')
    )


def _agreement(whom: str, a: Agreement) -> str:
    if not a.num_pairs:
        return ""
    title = "Cohen’s kappa: 1 is full agreement, 0 is that of chance"
    return (
        f'<span class="fact cut" title="{title}">{esc(whom)} '
        f"κ <b>{format_number(a.kappa)}</b>, {percent(a.same_frac)} equal "
        f"of {count(a.num_pairs, 'pair')}</span>"
    )


def _begin(name: str, said: str, keys: str) -> str:
    return (
        f'<div class="pair" tabindex="0" role="group" aria-label="{esc(name)}" '
        f'aria-keyshortcuts="{keys}"><p class="pair-title" role="status"><b>{esc(name)}</b>'
        f"<span>{esc(said)}</span></p>"
    )


def _prompt(prompt: str) -> str:
    return f'<pre class="asked" aria-label="Prompt" role="group">\n{esc(prompt)}</pre>'


def _side(name: str, answer: Trajectory, key: str) -> str:
    better = f"{name} is better"
    return (
        f'<section class="side" aria-label="{name} answer">'
        f"{_text(answer, f'Text of the {name.lower()} answer')}"
        f"{_verdict(name.lower(), better, key)}</section>"
    )


def _text(answer: Trajectory, label: str, scrolls: bool = False) -> str:
    """In turns where a tool was called. scrolls: if it is long; the keyboard must be able to."""
    texts = [esc(text) for text in texts_of(answer)]
    if answer.text and not has_calls(answer) and not (scrolls and LONG.match(answer.text)):
        # The parser drops one line break after <pre>: this one, not the completion's own.
        return f"<pre>\n{texts[0]}</pre>"
    return body([answer], texts, label)


def _button(do: str, name: str, key: str, data: str = "") -> str:
    return (
        f'<button type="button" data-do="{do}"{data} aria-keyshortcuts="{_KEYS.get(key, key)}">'
        f'{name} <kbd aria-hidden="true">{key}</kbd></button>'
    )


def _verdict(verdict: str, name: str, key: str) -> str:
    return _button("verdict", name, key, f' data-verdict="{verdict}"')


def _move(letter: str, where: str, sign: str) -> str:
    label = f"Move answer {letter} {where}"
    return (
        f'<button type="button" class="quiet icon" data-move="{where}" aria-label="{label}">'
        f"{sign}</button>"
    )


_KEYS = {"←": "ArrowLeft", "→": "ArrowRight", "↓": "ArrowDown", "U": "U Control+Z"}
_UNDO = _button("undo", "Undo", "U")
