"""A completion of several turns: what the policy wrote, its tool calls, and their answers.

Rows -> escaped HTML; pure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

from grpo_core.types import Turn, TurnRole
from ui.render.text import count, esc, is_number

IN_LINE = 160  # characters of an answer or of the arguments in a folded call
SLOW = 0.1  # seconds from which on a folded call shows them


class Trajectory(Protocol):
    """A RolloutRow or a Completion."""

    @property
    def text(self) -> str: ...

    @property
    def finish_reason(self) -> str | None: ...

    @property
    def turns(self) -> Sequence[Turn]: ...


def has_calls(rollout: Trajectory) -> bool:
    """Whether it is drawn in turns. Without a call it has one text, as without an environment."""
    return any(turn.role == TurnRole.OBSERVATION for turn in rollout.turns)


def texts_of(rollout: Trajectory) -> list[str]:
    """The texts of its turns, or its one text; siblings are compared by them."""
    return [turn.text for turn in rollout.turns] if has_calls(rollout) else [rollout.text]


def observed(turns: Sequence[Turn]) -> set[int]:
    """The tokens of observations: they are not trained on."""
    return {
        i
        for turn in turns
        if turn.role == TurnRole.OBSERVATION
        for i in range(turn.first_token, turn.first_token + turn.num_tokens)
    }


def num_turns(rollout: Trajectory) -> str:
    """2 turns; empty without a call."""
    actions = sum(turn.role == TurnRole.ACTION for turn in rollout.turns)
    return count(actions, "turn") if has_calls(rollout) else ""


def body(equal: Sequence[Trajectory], texts: Sequence[str], label: str) -> str:
    """The text of a card: in turns where a tool was called, else as it was written, or “(empty)”.

    equal: the completions that share the card, which may differ in seconds only. texts: of the
    turns, as HTML. label: what a screen reader calls it.
    """
    rollout = equal[0]
    if not rollout.text:
        return '<pre class="nothing">(empty)</pre>'
    if not has_calls(rollout):
        # The parser drops one line break after <pre>: this one, not the completion's own.
        return f'<pre tabindex="0" role="region" aria-label="{label}">\n{texts[0]}</pre>'
    number, items = 0, ""
    for i, (turn, text) in enumerate(zip(rollout.turns, texts, strict=True)):
        if turn.role == TurnRole.ACTION:
            number += 1
            words = f"\n{text}" if turn.text else '<i class="sign">(empty)</i>'
            items += (
                f'<li class="action"><b><span class="sr">turn </span>{number}</b>'
                f"<pre>{words}</pre></li>"
            )
        else:
            took = [v for r in equal if is_number(v := r.turns[i].seconds) and v > 0]
            if not (rollout.finish_reason or text or turn.error):
                text = "…"  # its answer is still to come
            failed = " failed" if turn.error else ""
            items += f'<li class="call{failed}">{_call(turn, text, took)}</li>'
    if rollout.finish_reason and _unread(rollout.turns):
        items += '<li class="note">No tokens were left to read this answer.</li>'
    return (
        f'<div class="turns" tabindex="0" role="region" aria-label="{label}"><ol>{items}</ol></div>'
    )


def _call(turn: Turn, text: str, took: Sequence[float]) -> str:
    """A tool call, folded to one line. text: the answer as HTML. took: seconds, of each sibling."""
    tool = turn.tool or "unreadable call"
    arguments = _arguments(turn.arguments)
    # The only argument needs no name.
    short = ", ".join(f"{n}={v}" if len(arguments) > 1 else v for n, v in arguments)
    if turn.error:
        answer = f'<span class="answer"><b>error:</b> {esc(_cut(turn.error))}</span>'
    else:
        shown = text if len(turn.text) <= IN_LINE else esc(_cut(turn.text))
        answer = f'<span class="answer">{shown or "(empty)"}</span>'
    line = (
        f'<b>{esc(tool)}</b> <code>{esc(_cut(short))}</code> <i aria-hidden="true">→</i> {answer}'
    )
    slow = f'<span class="took">{_seconds(took)}</span>' if took and max(took) >= SLOW else ""
    parts = [(name or "as written", esc(value)) for name, value in arguments]
    if turn.error:
        parts += [("error", esc(turn.error)), ("the policy read", text or "(empty)")]
    else:
        parts.append(("answer", text or "(empty)"))
    if took:
        parts.append(("took", _seconds(took)))
    whole = "".join(f"<dt>{esc(name)}</dt><dd><pre>\n{value}</pre></dd>" for name, value in parts)
    return (
        f'<b aria-hidden="true">↳</b><details><summary><span class="line">{line}</span>{slow}'
        f"</summary><dl>{whole}</dl></details>"
    )


def _arguments(text: str) -> list[tuple[str, str]]:
    """(name, value) of each argument; a call that is no JSON object has one without a name."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return [("", text)]
    return [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in found.items()
    ]


def _cut(text: str) -> str:
    return text if len(text) <= IN_LINE else text[: IN_LINE - 1] + "…"


def _seconds(took: Sequence[float]) -> str:
    """0.02 s; of several calls 0.02–0.31 s."""
    low, high = f"{min(took):.2f}", f"{max(took):.2f}"
    if high == "0.00":
        return "&lt; 0.01 s"
    return f"{high} s" if low == high else f"{low}–{high} s"


def _unread(turns: Sequence[Turn]) -> bool:
    """Whether it ended with answers for which it had no tokens left; False if none are counted."""
    if not any(t.num_tokens for t in turns):
        return False
    last = next((i for i, t in enumerate(turns[::-1]) if t.role == TurnRole.ACTION), len(turns))
    return last > 0 and not any(t.num_tokens for t in turns[len(turns) - last :])
