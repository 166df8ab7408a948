"""The walk from the prompt to the advantages: one function a screen. Numbers -> HTML; pure."""

from __future__ import annotations

from grpo_core.analysis.walk import Walk, WalkRow
from grpo_core.config.options import ADVANTAGES, GROUPINGS
from ui.render.learn_walk_cells import (
    Drawn,
    Screen,
    advantage,
    bar,
    cell,
    drawn,
    facts,
    fixed,
    formula,
    note,
    number,
    rewards_text,
    row_head,
    table,
    total_row,
    with_sign,
)
from ui.render.text import NONE, count, esc, format_number, is_number, plain, signed, whole
from ui.render.turns import body, has_calls, num_turns, observed, texts_of

ENDINGS = {"stop": "by itself", "length": "cut at the limit"}
# estimator -> what the table shows between the reward and A: title, explanation, of which row value
MIDDLE: dict[str, tuple[tuple[str, str, str], ...]] = {
    "group_std": (
        ("mean", "mean of the rewards that are compared", "baseline"),
        ("r − mean", "how far the reward is above the mean", "difference"),
        ("std", "sample standard deviation of these rewards", "spread"),
    ),
    "batch_std": (
        ("mean", "mean of the rewards that are compared", "baseline"),
        ("r − mean", "how far the reward is above the mean", "difference"),
        ("std of the step", "sample standard deviation of all rewards of the step", "spread"),
    ),
    "group_mean": (("mean", "mean of the rewards that are compared", "baseline"),),
    "leave_one_out": (("mean of the others", "without the reward itself", "baseline"),),
    "rank": (
        ("rank − mean rank", "1 is the lowest reward; ties share their rank", "difference"),
        ("std of ranks", "sample standard deviation of the ranks", "spread"),
    ),
    "per_criterion": (
        ("u", "weighted sum of the criteria, each standardised in the group", "difference"),
        ("std of u", "over the step", "spread"),
    ),
    "value": (),
}


def prompt(s: Screen) -> Drawn:
    """What the policy was asked, and who is compared."""
    walk, group = s.walk, s.walk.group
    size = len(walk.rows)
    answer = ""
    if group.answer:
        answer = (
            f'<p>Right answer <code class="walk-answer" tabindex="0">{esc(group.answer)}</code></p>'
        )
    grouping = GROUPINGS[walk.config.algorithm.grouping].help
    numbers = (
        f'<pre class="prompt walk-prompt" tabindex="0">{esc(group.prompt)}</pre>{answer}'
        + facts(
            ("step", f"<b>{group.step:,}</b>"),
            ("prompts in this step", f"<b>{walk.num_groups}</b>"),
            ("completions of each", number(size, len(s.was.rows), plain)),
            ("compared with each other", number(walk.num_compared, s.was.num_compared, plain)),
        )
    )
    return drawn(
        f"The policy is the model in training. In step {group.step:,} it read "
        f"{count(walk.num_groups, 'prompt')}; this is one of them.",
        numbers,
        note(
            "Who is compared?",
            f"<b>{esc(walk.config.algorithm.grouping)}</b>: {esc(grouping)}.",
            "The others of the group are the measure. Nothing else says how good a text is.",
        ),
    )


def completions(s: Screen) -> Drawn:
    """The sampled texts."""
    size = len(s.walk.rows)
    items = "".join(_completion(s, row, row.rollout.position < size) for row in s.was.rows)
    return drawn(
        f"The policy wrote {count(len(s.was.rows), 'completion')} of this prompt, each sampled "
        "anew. It is the same model each time; the draws of its tokens differ.",
        f'<ol class="walk-texts">{items}</ol>',
        _about_size(s),
    )


def _completion(s: Screen, row: WalkRow, kept: bool) -> str:
    r = row.rollout
    left_out = "" if kept else '<span class="verdict warn">left out</span>'
    ending = ENDINGS.get(r.finish_reason or "", r.finish_reason or NONE)
    label = f"Completion {r.position + 1}"
    text = f'<pre tabindex="0" aria-label="{label}">{esc(r.text)}</pre>'
    tokens = f"{whole(r.num_tokens)} tokens"
    if has_calls(r):
        text = body([r], [esc(t) for t in texts_of(r)], label)
        tokens += f" written in {num_turns(r)}"
        if num_read := len(observed(r.turns)):
            tokens += f", {count(num_read, 'token')} read"
    return (
        f"<li{'' if kept else ' class=out'}><div><b>#{r.position + 1}</b> {left_out}"
        f"<span>{tokens}, ended {esc(ending)}</span></div>{text}</li>"
    )


def _about_size(s: Screen) -> str:
    size, was = len(s.walk.rows), len(s.was.rows)
    tied = (
        f"{number(s.walk.num_tied, s.was.num_tied, plain)} of this step’s {s.walk.num_groups} "
        f"groups are tied with G = {size}: all their advantages are 0, so they teach nothing."
    )
    try_it = "" if size != was else "Set G to 2 above to see it with these numbers."
    return note(
        "What would G = 2 change?",
        "With two completions the mean is the middle between them. By group_std a pair that "
        "differs always gets +0.71 and −0.71, however large the difference is. "
        "A pair that ties gets 0.",
        "So fewer groups teach, and the size of a success is lost. "
        "A larger G measures the mean better and costs more sampling.",
        f"{tied} {try_it}",
    )


def scores(s: Screen) -> Drawn:
    """Score × weight, by criterion."""
    walk, was = s.walk, s.was
    criteria = list(walk.config.rubric.criteria)
    own = {c.name: c.weight for c in was.config.rubric.criteria}
    text = rewards_text(s)
    rows = []
    for row, old in s.pairs:
        cells = "".join(_score(row, c.name, c.weight, own.get(c.name, 0.0)) for c in criteria)
        rows.append(f"<tr>{row_head(s, row)}{cells}{cell(row.reward, old.reward, text)}</tr>")
    heads = [*(c.name for c in criteria), ("reward", "the sum of the products")]
    return drawn(
        "The rubric checks every completion. Each criterion gives a score; its weight says how "
        "much that counts. The reward is their sum.",
        table("Score times weight of every completion", heads, rows),
        note(
            "Reading it",
            "1 × 0.2 means: the score is 1, the weight is 0.2. Weight 0 is watched only.",
            "A score that could not be given is null and counts nowhere.",
        ),
        formula("r = Σ weight · score"),
    )


def _score(row: WalkRow, name: str, weight: float, was: float) -> str:
    score = row.rollout.scores.get(name)
    if not is_number(score):
        return '<td><i class="null">null</i></td>'
    times = number(weight, was, plain)
    shown = plain(round(score, 3))
    return f'<td><data value="{float(score)!r}">{shown}</data> <i class="times">×</i> {times}</td>'


def rewards(s: Screen) -> Drawn:
    """The rewards of the group, with their mean and deviation."""
    walk, text = s.walk, rewards_text(s)
    shaping = _shaping(walk)
    known = [abs(r.reward) for r in walk.rows if is_number(r.reward)]
    largest = max(known, default=0.0) or 1.0
    rows = []
    for row, old in s.pairs:
        compared = cell(row.compared, old.compared, text) if shaping else ""
        part = max(0.0, (row.reward or 0.0) / largest)
        rows.append(
            f"<tr>{row_head(s, row)}{cell(row.reward, old.reward, text)}{compared}"
            f'<td class="bar" aria-hidden="true"><span class="walk-bar">'
            f'<i style="--part:{part:.3f}"></i></span></td></tr>'
        )
    heads = ["reward", *([("compared", f"after {shaping}")] if shaping else []), ""]
    group = walk.group
    stored = facts(
        ("stored mean of the group", number(group.reward_mean, group.reward_mean, fixed(4))),
        ("stored std", number(group.reward_std, group.reward_std, fixed(4))),
    )
    why = f"Before they are compared, this run applies: {esc(shaping)}." if shaping else ""
    return drawn(
        "One number for each completion. What matters is only how it stands beside the others.",
        table("Reward of every completion", heads, rows) + stored,
        note(
            "A reward is no grade",
            "If every completion had one point more, nothing would change: "
            "the mean would have one more too.",
            *([why] if why else []),
        ),
    )


def _shaping(walk: Walk) -> str:
    """What the rubric does to rewards before they are compared."""
    rubric = walk.config.rubric
    used = [
        ("gate", rubric.gate),
        ("scale", rubric.scale),
        ("clip", rubric.clip_low is not None or rubric.clip_high is not None),
    ]
    return " and ".join(name for name, on in used if on)


def advantages(s: Screen) -> Drawn:
    """Mean, deviation and advantage, with the arithmetic of every completion."""
    walk = s.walk
    name = walk.config.algorithm.advantage
    middle, text = MIDDLE[name], rewards_text(s)
    largest = max((abs(r.advantage) for r in walk.rows), default=0.0)
    rows = []
    for row, old in s.pairs:
        between = "".join(
            cell(
                getattr(row, key),
                getattr(old, key),
                with_sign(3) if key == "difference" else fixed(3),
            )
            for _, _, key in middle
        )
        rows.append(
            f"<tr>{row_head(s, row)}{cell(row.compared, old.compared, text)}{between}"
            f"{advantage(row, old)}{bar(row, largest)}</tr>"
        )
    heads = ["reward", *((title, hint) for title, hint, _ in middle), ("A", "the advantage"), ""]
    total, own_total = (sum(r.advantage for r in w.rows) for w in (walk, s.was))
    rows.append(
        total_row(
            "sum",
            ["<td></td>" * (1 + len(middle)), cell(total, own_total, with_sign(2)), "<td></td>"],
        )
    )
    return drawn(
        "The advantage A says how much better a completion is than those it is compared with. "
        "A &gt; 0: it becomes likelier. A &lt; 0: it becomes less likely. "
        "Every token of a completion has the same A.",
        table("From reward to advantage, by completion", heads, rows) + _mismatch(walk),
        _why(s),
        formula(f"A = {ADVANTAGES[name].formula}"),
    )


def _why(s: Screen) -> str:
    """The arithmetic of one advantage, the largest above 0, in words."""
    walk = s.walk
    name = walk.config.algorithm.advantage
    best = max(walk.rows, key=lambda r: r.advantage)
    a = signed(best.advantage)
    title = f"Why is this advantage {a}?"
    if not best.advantage:
        return note(
            "Why is every advantage 0?",
            "All rewards that are compared are equal. Nothing is better than the rest, so this "
            "group moves no probability.",
        )
    who = f"<b>#{best.rollout.position + 1}</b>"
    if walk.by_critic:
        return note(title, f"{who}: a critic predicted the reward of every token; A is the mean.")
    worked = f"<code>{esc(worked_line(best, name))}</code>"
    meaning = {
        "group_std": f"It is {abs(best.advantage):.2f} standard deviations of its group above "
        "the group’s mean.",
        "batch_std": f"It is {abs(best.advantage):.2f} standard deviations of the whole step "
        "above its group’s mean.",
        "group_mean": "It has that much more reward than the mean of its group.",
        "leave_one_out": "It has that much more reward than the mean of the others.",
        "rank": "Its rank is that many standard deviations above the middle rank.",
        "per_criterion": "Each criterion was standardised first, then weighted and added.",
    }[name]
    return note(
        title,
        f"{who} earned {format_number(best.compared, 3)}. {worked}",
        f"{meaning} The same reward in a better group would give a smaller A.",
    )


def worked_line(row: WalkRow, estimator: str) -> str:
    """An advantage's arithmetic with its numbers: (1.30 − 0.838)/(0.495 + 1e-4) = +0.93"""
    a, d = signed(row.advantage), row.difference
    if estimator in ("group_mean", "leave_one_out"):
        return f"{format_number(row.compared, 3)} − {format_number(row.baseline, 3)} = {a}"
    top = f"{format_number(row.compared, 3)} − {format_number(row.baseline, 3)}"
    if estimator in ("rank", "per_criterion"):
        top = signed(d, 3)
    eps = f" + {plain(row.eps)}" if row.eps else ""
    return f"({top})/({format_number(row.spread, 3)}{eps}) = {a}"


def _mismatch(walk: Walk) -> str:
    if walk.mismatch <= walk.tolerance:
        return ""
    return (
        '<p class="note">The stored advantages are shown. The stored scores and the run’s '
        f"settings give others, by up to {walk.mismatch:.3g}.</p>"
    )
