"""GRPO beside PPO, TRPO and REINFORCE: what each needs, and what a comparison measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from grpo_core.runs.compare import Measured
from grpo_core.runs.comparisons import METHODS, STEPS, Interval, interval
from ui.render.text import MINUS, NONE, count, esc, is_number


@dataclass(frozen=True, slots=True)
class Method:
    """What a method needs, in the form in which it runs here."""

    preset: str
    of: str  # the method and its paper
    compares: str
    models: str
    passes: str
    limit: str  # how far one step may go


NEEDS = (
    Method(
        "GRPO",
        "GRPO, arXiv:2402.03300",
        "A completion with its siblings: the other answers to the same prompt.",
        "The policy with its optimiser, and the frozen reference.",
        "Reference: one forward. Each update: one forward and one backward.",
        "A token has no more effect once its probability moved by the clip range.",
    ),
    Method(
        "PPO (critic)",
        "PPO, arXiv:1707.06347",
        "Each token with a critic's prediction of the reward.",
        "As GRPO, and the critic. The paper trains a second model of the policy's size. Here it is "
        "a head on the policy, which costs hardly any memory.",
        "As GRPO, and one forward for the critic's values before the update.",
        "The clip range, as GRPO.",
    ),
    Method(
        "Trust-region GRPO",
        "TRPO's step, arXiv:1502.05477",
        "A completion with its siblings. The paper uses a critic.",
        "The policy without optimiser averages, the reference, and some vectors of its size.",
        "One forward and one backward, up to ten products with the curvature of KL, each about as "
        "much again, and one to eleven forwards to find the longest step that is allowed.",
        "The measured KL of the whole step stays below a set value.",
    ),
    Method(
        "RLOO",
        "REINFORCE, arXiv:2402.14740",
        "A completion with the mean of its siblings. The plain method uses a running mean of "
        "rewards, or nothing.",
        "As GRPO.",
        "As GRPO, with one update a batch.",
        "Nothing but the learning rate and the gradient clip.",
    ),
)


@dataclass(frozen=True, slots=True)
class Line:
    """A preset's result over its seeds. seconds and memory are means; None: not measured."""

    preset: str
    num_seeds: int
    before: Interval | None
    after: Interval | None
    tokens: float | None = None
    seconds: float | None = None
    evaluation_seconds: float | None = None
    memory_mib: float | None = None
    gain: Interval | None = None  # accuracy after, less GRPO's, seed by seed
    run_ids: tuple[tuple[int, str], ...] = ()  # (seed, id)


# docs/measurements.md, "GRPO and PPO with a critic", and docs/algorithms.md, "Learning curves":
# both of 2026-11-21. Their intervals go from the least to the most of three seeds.
RECORDED = (
    Line("GRPO", 3, Interval(0.333), Interval(0.915, 0.905, 0.92, 3), 78_121, 19.6, None, 585),
    Line(
        "PPO (critic)", 3, Interval(0.333), Interval(0.93, 0.91, 0.96, 3), 78_101, 23.8, None, 585
    ),
    Line("Trust-region GRPO", 3, Interval(0.333), Interval(0.937, 0.925, 0.95, 3), 101_398),
    Line("RLOO", 3, Interval(0.333), Interval(0.922, 0.91, 0.93, 3), 79_124),
)
RECORDED_NOTE = (
    "Recorded example: 21 November 2026, three seeds of 60 steps with the bundled model, 2 virtual "
    "x86-64 cores, no GPU. In brackets: the least and the most of the seeds. Seconds and memory "
    "were measured for GRPO and PPO only. Press a button to measure all four on this machine."
)
_SECONDS_NOTE = (
    "Seconds of training steps; loading is left out, and so is the evaluation after the last step."
)
MEASURED_NOTE = f"In brackets: 95 % intervals over the seeds, by Student’s t. {_SECONDS_NOTE}"
ONE_SEED_NOTE = (
    "One seed has no interval: differences of a few points say nothing. "
    f"Measure three seeds to see one. {_SECONDS_NOTE}"
)


def lines(runs: Sequence[Measured]) -> list[Line]:
    """One line for each preset of a comparison; the gains are over METHODS[0]."""
    by_preset: dict[str, dict[int, Measured]] = {}
    for run in runs:
        by_preset.setdefault(run.preset, {})[run.seed] = run
    order = sorted(by_preset, key=lambda p: METHODS.index(p) if p in METHODS else len(METHODS))
    first = by_preset.get(METHODS[0], {})
    return [_line(preset, by_preset[preset], first) for preset in order]


def _line(preset: str, mine: Mapping[int, Measured], first: Mapping[int, Measured]) -> Line:
    runs = list(mine.values())

    def mean(values: Sequence[float | None]) -> float | None:
        found = interval(values)
        return None if found is None else found.mean

    line = Line(
        preset,
        len(runs),
        interval([r.heldout_before for r in runs]),
        interval([r.heldout_after for r in runs]),
        mean([float(r.tokens) for r in runs]),
        mean([r.seconds for r in runs]),
        mean([r.evaluation_seconds for r in runs]),
        mean([r.peak_memory_mib for r in runs]),
        run_ids=tuple((seed, mine[seed].run_id) for seed in sorted(mine)),
    )
    if preset == METHODS[0]:
        return line
    gains = [
        after - base
        for seed, run in mine.items()
        if seed in first
        and (after := run.heldout_after) is not None
        and (base := first[seed].heldout_after) is not None
    ]
    return replace(line, gain=interval(gains))


# ---- HTML ------------------------------------------------------------------------------------


def needs() -> str:
    """What each method compares with, holds in memory and computes."""
    heads = ("method", "compares", "in memory", "passes over the completions", "limit of a step")
    rows = "".join(
        f'<tr><th scope="row"><b>{esc(m.preset)}</b><br><span class="by">{esc(m.of)}</span></th>'
        + "".join(f"<td>{esc(t)}</td>" for t in (m.compares, m.models, m.passes, m.limit))
        + "</tr>"
        for m in NEEDS
    )
    return (
        "<h3>What each needs</h3>"
        "<p>GRPO replaces the critic by siblings: it asks the same prompt several times and "
        "compares the answers. So no second model has to learn what a reward is worth.</p>"
        + _table("What each method needs", heads, rows, "methods-needs")
    )


def results(rows: Sequence[Line], note: str) -> str:
    """The table of the seeds. rows: RECORDED, or those of `lines`."""
    heads = (
        "method",
        "critic",
        "seeds",
        "held-out before",
        "held-out after",
        "less GRPO, seed by seed",
        "tokens",
        "training, s",
        "evaluation, s",
        "peak MiB",
    )
    body = "".join(map(_row, rows))
    return (
        _table("Results by method", heads, body, "methods-results")
        + f'<p class="note">{esc(note)}</p>'
    )


def _row(line: Line) -> str:
    cells = (
        "yes" if line.preset == "PPO (critic)" else "no",
        _seeds(line),
        _share(line.before),
        _share(line.after),
        _gain(line),
        _number(line.tokens),
        _number(line.seconds, 1),
        _number(line.evaluation_seconds, 1),
        _number(line.memory_mib),
    )
    return (
        f'<tr><th scope="row">{esc(line.preset)}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
    )


def _seeds(line: Line) -> str:
    if not line.run_ids:
        return str(line.num_seeds)
    return " ".join(
        f'<a href="?run={esc(run_id)}" data-place aria-label="{esc(line.preset)}, seed {seed}">'
        f"{seed}</a>"
        for seed, run_id in line.run_ids
    )


def _share(found: Interval | None) -> str:
    if found is None:
        return NONE
    if found.low is None or found.high is None:
        return f"{100 * found.mean:.1f} %"
    low, high = max(0.0, found.low), min(1.0, found.high)
    return f'{100 * found.mean:.1f} % <span class="by">[{100 * low:.1f} to {100 * high:.1f}]</span>'


def _gain(line: Line) -> str:
    gain = line.gain
    if gain is None:
        return NONE
    text = f"<b>{_points(gain.mean)}</b> points"
    if gain.low is None or gain.high is None:
        return text
    told = "shows no difference" if gain.low <= 0 <= gain.high else "a difference"
    return f'{text} <span class="by">[{_points(gain.low)} to {_points(gain.high)}] · {told}</span>'


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", MINUS)


def _number(value: float | None, digits: int = 0) -> str:
    return f"{value:,.{digits}f}" if is_number(value) else NONE


def _table(label: str, heads: Sequence[str], rows: str, name: str) -> str:
    head = "".join(f'<th scope="col">{esc(h)}</th>' for h in heads)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(label)}">'
        f'<table class="list {name}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


@dataclass(frozen=True, slots=True)
class Offer:
    """A button that queues a comparison. refusal: why it would be refused; empty if not."""

    num_seeds: int
    minutes: float
    refusal: str = ""


def offers(rows: Sequence[Offer], estimate: str) -> str:
    """The buttons, how long each takes, and why one is disabled. estimate: where that is from."""
    buttons = []
    for offer in rows:
        num = len(METHODS) * offer.num_seeds
        disabled = ' disabled aria-disabled="true"' if offer.refusal else ""
        words = f"Compare over {count(offer.num_seeds, 'seed')}"
        buttons.append(
            f'<button type="button" data-do="compare" data-seeds="{offer.num_seeds}"{disabled}>'
            f'{words}</button> <span class="by">{count(num, "run")} of {STEPS} steps, about '
            f"{max(1, round(offer.minutes))} min</span>"
        )
    reasons = dict.fromkeys(offer.refusal for offer in rows if offer.refusal)
    why = "".join(f'<p class="note">{esc(reason)}</p>' for reason in reasons)
    return f'<div class="tools">{" ".join(buttons)}</div>{why}<p class="note">{esc(estimate)}</p>'


def progress(done: int, total: int, now: str) -> str:
    """How far a comparison is. now: the name of the run that goes on; foreign text."""
    going = f" Now: {esc(now)}." if now else ""
    return f'<p class="note" role="status">{done} of {count(total, "run")} ended.{going}</p>'
