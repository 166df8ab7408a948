"""The Playground's answers: each pair side by side, right or wrong, its differences marked.

Records -> escaped HTML; pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from grpo_core.exporting.play_request import PlayResult, Side
from grpo_core.types import Rollout
from ui.render.arithmetic import score_text
from ui.render.history import MARKS, diff
from ui.render.text import count, esc, format_number, is_number, percent

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

    accuracy: step of a state -> the share of held-out prompts that it answers right.
    """

    run_name: str
    temperature: float
    accuracy: Mapping[int, float | None]


def state_name(step: int) -> str:
    return f"after step {step:,}" if step else "before training"


def played(result: PlayResult, asked: Asked) -> str:
    """One or two columns of answers, below a heading with the run and the prompt."""
    sides = result.sides
    rows = [("Greedy", [side.greedy for side in sides])]
    for number, pair in enumerate(zip_longest(*(side.sampled for side in sides)), 1):
        rows.append((f"Sampled {number}", list(pair)))
    pairs = "".join(_pair(title, pair, result) for title, pair in rows)
    heads = "".join(_head(side, result.outcome, asked) for side in sides)
    columns = "two" if len(sides) == 2 else "one"
    marks = MARKS if len(sides) == 2 else ""
    return (
        f'{_heading(result, asked)}<div class="played {columns}">'
        f'<div class="pair heads">{heads}</div>{pairs}</div>{marks}'
    )


def _heading(result: PlayResult, asked: Asked) -> str:
    answer = ""
    if result.prompt.answer:
        answer = f' · right answer <b class="clip">{esc(result.prompt.answer)}</b>'
    how = ""
    if asked.temperature > 0:
        how = f" · sampled at temperature {asked.temperature:g}"
    return (
        f'<p class="played-of">Answers of <b class="clip">{esc(asked.run_name)}</b> to '
        f'<q class="clip" title="{esc(result.prompt.text[:1000])}">'
        f"{esc(result.prompt.text[:400])}</q>{answer}{how}</p>"
    )


def _head(side: Side, outcome: str | None, asked: Asked) -> str:
    """A state's name, how many of its sampled answers are right, and its held-out accuracy."""
    facts = []
    marks = [mark for r in side.sampled if (mark := _mark(r, outcome)) in (RIGHT, WRONG)]
    if marks:
        facts.append(f"<b>{marks.count(RIGHT)} of {len(marks)}</b> sampled answers right")
    rewards = [r.reward for r in side.sampled or (side.greedy,) if is_number(r.reward)]
    if rewards:
        facts.append(f"mean reward <b>{format_number(sum(rewards) / len(rewards), 3)}</b>")
    else:
        facts.append("could not be scored")
    accuracy = asked.accuracy.get(side.step)
    if is_number(accuracy):
        facts.append(f"<b>{percent(accuracy)}</b> of held-out prompts right")
    lines = "".join(f"<span>{fact}</span>" for fact in facts)
    return f'<div><h3>{state_name(side.step)}</h3><p class="calc">{lines}</p></div>'


def _mark(rollout: Rollout, outcome: str | None) -> str:
    """RIGHT, WRONG or UNKNOWN by the outcome criterion; "" if the rubric has none."""
    if outcome is None:
        return ""
    score = rollout.scores.get(outcome)
    if not is_number(score):
        return UNKNOWN
    return RIGHT if score >= 1 else WRONG


def _pair(title: str, pair: Sequence[Rollout | None], result: PlayResult) -> str:
    """The answers of all states with the same random numbers; words of only one are marked."""
    texts = [esc(r.completion.text) if r else "" for r in pair]
    note = ""
    if len(pair) == 2 and pair[0] and pair[1]:
        left, right = pair[0].completion.text, pair[1].completion.text
        texts = [*diff(left, right)]
        note = "same text" if left == right else ""
    cards = "".join(
        _card(rollout, text, (title, state_name(side.step), note), result.outcome)
        for rollout, text, side in zip(pair, texts, result.sides, strict=True)
        if rollout is not None
    )
    return f'<section class="pair" aria-label="{title}">{cards}</section>'


def _card(rollout: Rollout, text: str, names: tuple[str, str, str], outcome: str | None) -> str:
    """text: the answer as HTML, with marks. names: of the answer, of its state, and a note."""
    title, state, note = names
    completion = rollout.completion
    body = '<pre class="nothing">(empty)</pre>'
    if text:
        label = f"{title}, {state}, text"
        body = f'<pre tabindex="0" role="region" aria-label="{label}">\n{text}</pre>'
    reward = "could not be scored"
    if is_number(rollout.reward):
        reward = f"reward <b>{format_number(rollout.reward, 3)}</b>"
    scores = "".join(
        f'<span class="score">{esc(name)} <b>{score_text(score)}</b></span>'
        for name, score in rollout.scores.items()
    )
    pill = PILLS.get(_mark(rollout, outcome), "")
    cut = ", cut" if completion.finish_reason == "length" else ""
    return (
        f'<article class="card" aria-label="{title}, {state}"><div class="adv">'
        f'<b>{title}</b><span class="of-state">{state}</span>{pill}'
        f'<span class="place">{note}</span></div>{body}<div class="scores">'
        f'<span class="score total">{reward}</span>{scores}<span class="score end">'
        f"{count(completion.num_tokens, 'token')}{cut}</span></div></article>"
    )
