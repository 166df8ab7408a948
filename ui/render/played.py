"""The Playground's answers: each pair side by side, right or wrong, its differences marked.

Also answers that are still being written, and those that a person has kept.
Records -> escaped HTML; pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from grpo_core.exporting.play_request import PlayResult, Side, State
from grpo_core.store.kept import KeptAnswer
from grpo_core.types import Rollout, TurnRole
from ui.render.arithmetic import score_text
from ui.render.history import MARKS, diff
from ui.render.text import count, esc, format_number, is_number, percent, shorten
from ui.render.turns import body as in_turns
from ui.render.turns import has_calls, num_turns, texts_of

RIGHT, WRONG, UNKNOWN = "right", "wrong", "unknown"
PILLS = {
    RIGHT: '<span class="verdict good">✓ right</span>',
    WRONG: '<span class="verdict bad">✗ wrong</span>',
    UNKNOWN: '<span class="verdict plain" title="The outcome could not be scored.">not judged'
    "</span>",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked, for the heading of the answers.

    run_id, run_name: of the run whose rubric scores. names: run id -> name, of all that answer.
    accuracy: state -> the share of held-out prompts of its run that it answers right.
    """

    run_id: str
    run_name: str
    temperature: float
    names: Mapping[str, str]
    accuracy: Mapping[State, float | None]

    @property
    def is_across_runs(self) -> bool:
        return list(self.names) != [self.run_id]

    def title(self, state: State) -> str:
        """The state's name; with its run's, where not only the asked run answers."""
        name = state_name(state.step)
        if self.is_across_runs:
            name = f"{shorten(self.names.get(state.run_id, state.run_id), 40)}, {name}"
        return name


@dataclass(frozen=True, slots=True)
class _Shown:
    """What all answers on show share. unfinished: as `played` takes it."""

    result: PlayResult
    asked: Asked
    unfinished: str

    def num_pausing(self, side: Side) -> int:
        """How many answers of a side go on when “Next turn” is pressed."""
        if self.unfinished != "pauses":
            return 0
        return sum(not r.completion.finish_reason for r in _written(side))


def _written(side: Side) -> list[Rollout]:
    """The answers of a side that have begun."""
    return [r for r in (side.greedy, *side.sampled) if r is not None]


def state_name(step: int) -> str:
    return f"after step {step:,}" if step else "before training"


def played(result: PlayResult, asked: Asked, unfinished: str = "pauses") -> str:
    """One or two columns of answers, below a heading with the run and the prompt.

    unfinished: what answers without an end do: one "pauses" after a turn, is "writing", or was
    "stopped".
    """
    sides, shown = result.sides, _Shown(result, asked, unfinished)
    rows: list[tuple[str, list[Rollout | None]]] = [("Greedy", [side.greedy for side in sides])]
    for number, pair in enumerate(zip_longest(*(side.sampled for side in sides)), 1):
        rows.append((f"Sampled {number}", list(pair)))
    pairs = "".join(_pair(title, pair, shown) for title, pair in rows)
    heads = "".join(_head(side, shown) for side in sides)
    columns = "two" if len(sides) == 2 else "one"
    marks = MARKS if len(sides) == 2 else ""
    before = [dict(message) for message in result.prompt.meta.get("before", ())]
    waits = ' data-waits="on"' if any(map(shown.num_pausing, sides)) else ""
    return (
        f'{_heading(result, asked)}<div class="played {columns}"{waits} '
        f'data-prompt="{esc(result.prompt.text)}" data-right="{esc(result.prompt.answer)}" '
        f'data-before="{esc(json.dumps(before))}">'
        f'<div class="pair heads">{heads}</div>{pairs}</div>{marks}'
    )


def _heading(result: PlayResult, asked: Asked) -> str:
    answer = ""
    if result.prompt.answer:
        answer = f' · right answer <b class="clip">{esc(result.prompt.answer)}</b>'
    how = ""
    if asked.temperature > 0:
        how = f" · sampled at temperature {asked.temperature:g}"
    names = list(asked.names.values())
    runs = " and ".join(f'<b class="clip">{esc(name)}</b>' for name in names)
    if asked.is_across_runs:
        how += f' · scored by the rubric of <b class="clip">{esc(asked.run_name)}</b>'
    return (
        f'<p class="played-of">Answers of {runs} to '
        f'<q class="clip" title="{esc(result.prompt.text[:1000])}">'
        f"{esc(result.prompt.text[:400])}</q>{answer}{how}</p>"
    )


def _head(side: Side, shown: _Shown) -> str:
    """A state's name, how many of its sampled answers are right, and its held-out accuracy."""
    facts, outcome, asked = [], shown.result.outcome, shown.asked
    marks = [mark for r in side.sampled if (mark := _mark(r, outcome)) in (RIGHT, WRONG)]
    if marks:
        facts.append(f"<b>{marks.count(RIGHT)} of {len(marks)}</b> sampled answers right")
    written = _written(side)
    scored = [r for r in written if r.scores]
    rewards = [r.reward for r in side.sampled or written if is_number(r.reward)]
    if pausing := shown.num_pausing(side):
        facts.append(f"<b>{pausing} of {len(written)}</b> go on: press Next turn")
    elif not scored:
        facts.append("answering…" if written else "waits")
    elif rewards:
        facts.append(f"mean reward <b>{format_number(sum(rewards) / len(rewards), 3)}</b>")
    else:
        facts.append("could not be scored")
    accuracy = asked.accuracy.get(side.state)
    if is_number(accuracy):
        facts.append(f"<b>{percent(accuracy)}</b> of held-out prompts right")
    calls = sum(t.role == TurnRole.OBSERVATION for r in written for t in r.completion.turns)
    if calls:
        facts.append(f"<b>{calls}</b> tool calls" if calls != 1 else "<b>1</b> tool call")
    if side.begun:
        begun = esc(side.begun.strip()[:400])
        facts.append(f'the environment adds <q class="clip" title="{begun}">{begun}</q>')
    lines = "".join(f"<span>{fact}</span>" for fact in facts)
    return f'<div><h3>{esc(asked.title(side.state))}</h3><p class="calc">{lines}</p></div>'


def _mark(rollout: Rollout, outcome: str | None) -> str:
    """RIGHT, WRONG or UNKNOWN by the outcome criterion; "" if the rubric has none."""
    if outcome is None:
        return ""
    if not rollout.scores:  # not scored yet
        return ""
    score = rollout.scores.get(outcome)
    if not is_number(score):
        return UNKNOWN
    return RIGHT if score >= 1 else WRONG


def _pair(title: str, pair: Sequence[Rollout | None], shown: _Shown) -> str:
    """The answers of all states with the same random numbers; words of only one are marked."""
    texts = [[esc(text) for text in texts_of(r.completion)] if r else [] for r in pair]
    note = ""
    is_whole = all(r and r.completion.finish_reason for r in pair)
    if len(pair) == 2 and is_whole and pair[0] and pair[1]:
        left, right = (texts_of(r.completion) for r in pair if r)
        texts = [*diff(left, right)]
        note = "same text" if left == right else ""
    cards = "".join(
        _card(rollout, body, (title, note), side.state, shown)
        for rollout, body, side in zip(pair, texts, shown.result.sides, strict=True)
        if rollout is not None
    )
    return f'<section class="pair" aria-label="{title}">{cards}</section>'


def _card(
    rollout: Rollout,
    texts: Sequence[str],
    names: tuple[str, str],
    state: State,
    shown: _Shown,
) -> str:
    """texts: of the answer's turns, or its one text, as HTML with marks.

    names: the answer's title, and a note.
    """
    (title, note), of_state = names, esc(shown.asked.title(state))
    completion = rollout.completion
    body = in_turns([completion], texts, f"{title}, {of_state}, text")
    reward = "could not be scored" if rollout.scores else "not scored yet"
    if is_number(rollout.reward):
        reward = f"reward <b>{format_number(rollout.reward, 3)}</b>"
    scores = "".join(
        f'<span class="score">{esc(name)} <b>{score_text(score)}</b></span>'
        for name, score in rollout.scores.items()
    )
    pill = PILLS.get(_mark(rollout, shown.result.outcome), "")
    cut = ", cut" if completion.finish_reason == "length" else ""
    turns = f"{num_turns(completion)} · " if has_calls(completion) else ""
    end = f"{turns}{count(completion.num_tokens, 'token')}{cut}"
    keep = ""
    if completion.finish_reason:
        keep = (
            f'<button type="button" class="quiet keep" data-do="keep" '
            f'data-run="{esc(state.run_id)}" data-step="{state.step}" '
            f'data-key="{title} {esc(state.run_id)} {state.step}" '
            f'data-text="{esc(completion.graded.text)}" '
            f'aria-label="Keep: {title}, {of_state}">Keep</button>'
        )
    else:
        waits_for_tool = bool(completion.turns) and completion.turns[-1].role != TurnRole.ACTION
        what = {"writing": "calls a tool…" if waits_for_tool else "writing…"}
        end = turns + what.get(shown.unfinished, shown.unfinished)
    return (
        f'<article class="card" aria-label="{title}, {of_state}"><div class="adv">'
        f'<b>{title}</b><span class="of-state">{of_state}</span>{pill}'
        f'<span class="place">{note}</span>{keep}</div>{body}<div class="scores">'
        f'<span class="score total">{reward}</span>{scores}<span class="score end">'
        f"{end}</span></div></article>"
    )


def kept_answers(rows: Sequence[KeptAnswer], names: Mapping[str | None, str]) -> str:
    """A list of kept answers with what can be done with them. names: run id -> name."""
    if not rows:
        return (
            '<h2>Kept answers</h2><p class="help">Keep puts an answer here: a row of a prompt '
            "file that you can download, or use in a new run.</p>"
        )
    lines = "".join(
        f'<tr><td><div class="excerpt" title="{esc(row.prompt[:1000])}">{esc(row.prompt[:200])}'
        f'</div></td><td><div class="excerpt" title="{esc(row.right[:1000])}">'
        f"{esc(row.right[:200]) or '–'}</div></td>"
        f'<td><div class="excerpt" title="{esc(row.answer[:1000])}">{esc(row.answer[:200])}</div>'
        f'</td><td><div class="excerpt">{esc(names.get(row.run_id, "a deleted run"))}, '
        f"{state_name(row.step)}</div></td>"
        f'<td><button type="button" class="quiet" data-do="drop" data-id="{row.id}" '
        f'aria-label="Remove kept answer {n}">Remove</button></td></tr>'
        for n, row in enumerate(rows, 1)
    )
    head = "".join(
        f'<th scope="col">{title}</th>'
        for title in ("Prompt", "Right answer", "Kept answer", "Written by", "")
    )
    return (
        f"<h2>{count(len(rows), 'kept answer')}</h2>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Kept answers">'
        f'<table class="list kept"><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
        '</div><p class="tools"><button type="button" data-do="download">Download JSONL</button>'
        '<button type="button" data-do="use">Use in a new run</button></p>'
        '<p class="help">The file’s column “answer” is the right answer; where nobody gave one, '
        "it is the kept one.</p>"
    )
