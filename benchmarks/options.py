"""What does each option of the algorithm do to the default task?

    python benchmarks/options.py train [--seeds 0 1 2] [--only NAME …] [--through "nice -n 15"]
    python benchmarks/options.py table          the table of docs/algorithms.md, on standard output
    python benchmarks/options.py picture        docs/screenshots/options.png, through Chromium

`train` trains every option over several seeds. Every run is 60 steps in a process of its own. When
it ends it adds a line to benchmarks/options.jsonl. A run whose line exists is not repeated, so the
command can be stopped and started again. `--through` is put before the command of each run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any, TypeVar

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

LINES = Path(__file__).parent / "options.jsonl"
PICTURE = ROOT / "docs" / "screenshots" / "options.png"
STEPS, EVAL_EVERY, WINDOW = 60, 20, 10
EVALUATED_AT = list(range(0, STEPS + 1, EVAL_EVERY))
PICTURE_COLUMNS = 3
COLOURS = ("#1b6ca8", "#c2410c", "#2e7d32", "#7b3fa0", "#b8860b", "#00838f", "#ad1457")
DASHES = ("solid", "dash", "dot")  # so that lines differ in more than their colour
MARKS = {"solid": "━", "dash": "╍", "dot": "┅"}
CURVES = ("reward_mean", "kl")
Number = TypeVar("Number", int, float)
# The ratio leaves 1 with the second update. Only from there on do objectives differ.
TWO = {"updates_per_batch": 2}


@dataclass(frozen=True, slots=True)
class Option:
    """What one run changes in a default run. Names without a section are algorithm fields."""

    family: str
    name: str
    settings: dict[str, Any]
    preset: str = ""

    def flat(self) -> dict[str, Any]:
        own = {
            name if "." in name else f"algorithm.{name}": value
            for name, value in self.settings.items()
        }
        return own | {"train.steps": STEPS, "train.eval_every": EVAL_EVERY}


OPTIONS: tuple[Option, ...] = (
    Option("defaults", "defaults", {}),
    *(
        Option("siblings", f"grouping {name}", {"grouping": name})
        for name in ("task", "similarity", "batch")
    ),
    Option("advantage", "group_mean", {"advantage": "group_mean"}),
    Option("advantage", "batch_std", {"advantage": "batch_std"}),
    Option("advantage", "leave_one_out", {"advantage": "leave_one_out"}),
    Option("advantage", "rank", {"advantage": "rank"}),
    Option("advantage", "per_criterion", {"advantage": "per_criterion"}),
    Option("advantage", "value (PPO)", {}, "PPO (critic)"),
    Option("rewards", "scale, group_mean", {"rubric.scale": True, "advantage": "group_mean"}),
    Option("rewards", "clip at 1", {"rubric.clip_high": 1.0}),
    Option("rewards", "outcome gate", {"rubric.gate": True}),
    Option("several updates", "clip ×2", TWO),
    Option("several updates", "clip ×4", {"updates_per_batch": 4}),
    Option("several updates", "clip, δ 4, ×2", {"clip_delta": 4.0, **TWO}),
    Option(
        "several updates",
        "clip, sequence ratio ×2",
        {"ratio_level": "sequence", "clip_eps_low": 3e-4, "clip_eps_high": 4e-4, **TWO},
    ),
    Option(
        "several updates",
        "off-policy drop .1 ×4",
        {"off_policy_threshold": 0.1, "updates_per_batch": 4},
    ),
    *(
        Option("objective", f"{name} ×2", {"objective": name, **TWO})
        for name in ("cispo", "sapo", "vespo", "gmpo", "spo")
    ),
    Option("objective", "reinforce", {"objective": "reinforce"}),
    Option("KL in the loss", "kl_coef 0", {"kl_coef": 0.0}),
    *(
        Option("KL in the loss", f"{name}, kl_coef .1", {"kl_estimator": name, "kl_coef": 0.1})
        for name in ("k1", "k2", "k3", "exact")
    ),
    Option(
        "KL in the loss", "k3 · ratio, kl_coef .1", {"kl_ratio_corrected": True, "kl_coef": 0.1}
    ),
    Option("KL control", "reference moves every 10", {"ref_every": 10}),
    Option("KL control", "adaptive", {"kl_control": "adaptive"}),
    Option("KL control", "hard", {"kl_control": "hard"}),
    Option("tokens", "sequence_mean", {"aggregation": "sequence_mean"}),
    Option("tokens", "constant", {"aggregation": "constant"}),
    Option("tokens", "mask_truncated", {"mask_truncated": True}),
    Option("tokens", "entropy_quantile .2", {"entropy_quantile": 0.2}),
    Option("tokens", "entropy_coef .01", {"entropy_coef": 0.01}),
    Option("tokens", "entropy_target .2", {"entropy_target": 0.2}),
    Option("tokens", "dynamic_sampling 2", {"dynamic_sampling": 2}),
    *(
        Option("presets", name, {}, name)
        for name in ("Dr. GRPO", "DAPO", "GSPO", "CISPO", "RLOO", "Trust-region GRPO")
    ),
    Option("mixed", "vespo ×2, grouping batch", {"objective": "vespo", "grouping": "batch", **TWO}),
    Option(
        "mixed",
        "exact KL, per_criterion, gate",
        {"kl_estimator": "exact", "advantage": "per_criterion", "rubric.gate": True},
    ),
    Option(
        "mixed",
        "dynamic sampling, scale, off-policy drop ×2",
        {
            "dynamic_sampling": 2,
            "rubric.scale": True,
            "advantage": "group_mean",
            "off_policy_threshold": 0.1,
            **TWO,
        },
    ),
)


def train_one(option: Option, seed: int) -> dict[str, Any]:
    """Train one run in this process; the line that is kept of it."""
    from grpo_core.config import nest, parse, with_preset
    from grpo_core.training.control import RunControl
    from grpo_core.training.trainer import train
    from grpo_core.types import Evaluated, StepCompleted

    settings = option.flat() | {"train.seed": seed}
    if option.preset:
        settings = with_preset(settings, option.preset)
    events: list[Any] = []
    started = perf_counter()
    train(parse(nest(settings)), events.append, RunControl())
    steps = [e.metrics for e in events if isinstance(e, StepCompleted)]
    evaluations = [e for e in events if isinstance(e, Evaluated)]
    accuracy = {e.step: round(known(e.metrics["heldout/accuracy"]), 4) for e in evaluations}
    lengths = [known(s.completion_tokens_mean) for s in steps[-WINDOW:]]
    return {
        "option": option.name,
        "family": option.family,
        "seed": seed,
        "commit": commit(),
        "settings": option.settings,
        "preset": option.preset,
        "seconds": round(perf_counter() - started, 1),
        "heldout": accuracy,
        "tokens": sum(known(s.tokens) for s in steps),
        "updates": sum(known(s.num_updates) for s in steps),
        "length": _short(fmean(lengths)),
        **{name: [_short(getattr(s, name)) for s in steps] for name in CURVES},
    }


def known(value: Number | None) -> Number:
    assert value is not None
    return value


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def lines() -> list[dict[str, Any]]:
    if not LINES.exists():
        return []
    return [json.loads(line) for line in LINES.read_text("utf-8").splitlines()]


def train_all(wanted: argparse.Namespace) -> None:
    """Train seed by seed, so that an interruption leaves all options over fewer seeds."""
    for seed in wanted.seeds:
        for option in OPTIONS:
            if wanted.only and option.name not in wanted.only:
                continue
            if option.name in wanted.without:
                continue
            if any((line["option"], line["seed"]) == (option.name, seed) for line in lines()):
                continue
            command = [*shlex.split(wanted.through), sys.executable, __file__]
            done = subprocess.run(
                [*command, "one", option.name, str(seed)], capture_output=True, text=True
            )
            if done.returncode:
                print(f"{option.name}, seed {seed} FAILED: {done.stderr[-2000:]}", flush=True)
            else:
                print(done.stdout.strip().splitlines()[-1], flush=True)


@dataclass(frozen=True, slots=True)
class Summary:
    """Means over the seeds of one option."""

    name: str
    curves: list[dict[str, float]]  # of each seed: step -> held-out accuracy
    accuracy: list[float]  # at EVALUATED_AT
    last: tuple[float, float]  # lowest and highest at the end
    kl: float
    length: float
    tokens: float
    updates: float


def summarise(name: str, runs: list[dict[str, Any]]) -> Summary:
    held = [[run["heldout"][str(step)] for run in runs] for step in EVALUATED_AT]
    return Summary(
        name,
        [run["heldout"] for run in runs],
        [fmean(h) for h in held],
        (min(held[-1]), max(held[-1])),
        kl=fmean(v for run in runs for v in run["kl"][-WINDOW:] if v is not None),
        length=fmean(run["length"] for run in runs),
        tokens=fmean(run["tokens"] for run in runs),
        updates=fmean(run["updates"] for run in runs),
    )


def summaries(family: str) -> list[Summary]:
    """One for each option of the family that has runs, in the order of OPTIONS."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for line in lines():
        by_name.setdefault(line["option"], []).append(line)
    return [
        summarise(option.name, by_name[option.name])
        for option in OPTIONS
        if option.family == family and option.name in by_name
    ]


def table() -> str:
    """Held-out accuracy of every option."""
    steps = ", ".join(str(step) for step in EVALUATED_AT[:-1])
    out = [
        f"| option | seeds | held-out at {steps} | at {STEPS} (least–most) | KL | length "
        "| tokens sampled | updates |\n|---|---|---|---|---|---|---|---|"
    ]
    for family in dict.fromkeys(o.family for o in OPTIONS):
        out.append(f"| **{family}** | | | | | | | |")
        for s in summaries(family):
            early = ", ".join(f"{mean:.1%}" for mean in s.accuracy[:-1])
            out.append(
                f"| {s.name} | {len(s.curves)} | {early} | {s.accuracy[-1]:.1%}{spread(s)} | "
                f"{s.kl:.3f} | {s.length:.1f} | {s.tokens:,.0f} | {s.updates:.0f} |"
            )
    return "\n".join(out)


def spread(s: Summary) -> str:
    return f" ({s.last[0]:.1%}–{s.last[1]:.1%})" if len(s.curves) > 1 else ""


def picture() -> None:
    """Draw one field a family: held-out accuracy over steps.

    Lines are means, points are seeds, the grey line in every field is the default.
    """
    from plotly.subplots import make_subplots

    from benchmarks.picture import save

    families = [f for f in dict.fromkeys(o.family for o in OPTIONS) if summaries(f)]
    families.remove("defaults")
    rows = -(-len(families) // PICTURE_COLUMNS)
    figure = make_subplots(
        rows,
        PICTURE_COLUMNS,
        subplot_titles=families,
        vertical_spacing=0.07,
        horizontal_spacing=0.045,
    )
    defaults = summaries("defaults")[0].accuracy
    for i, family in enumerate(families):
        at = {"row": i // PICTURE_COLUMNS + 1, "col": i % PICTURE_COLUMNS + 1}
        grey = {"color": "#9aa0a6", "width": 5}
        add_line(figure, defaults, at, line=grey, opacity=0.5)
        add_options(figure, summaries(family), at)
        add_key(figure, summaries(family), str(i + 1) if i else "")
    figure.update_xaxes(tickvals=EVALUATED_AT, range=[-2, 62])
    figure.update_yaxes(range=[0.2, 1.01], tickformat=".0%")
    figure.update_layout(
        template="simple_white",
        width=1280,
        height=400 * rows,
        margin={"l": 50, "r": 20, "t": 40, "b": 40},
        font={"family": "sans-serif"},
    )
    save(figure, PICTURE, ".annotation")


def add_line(figure: Any, accuracy: list[float], at: dict[str, int], **style: Any) -> None:
    figure.add_scatter(x=EVALUATED_AT, y=accuracy, mode="lines", showlegend=False, **style, **at)


def add_options(figure: Any, options: list[Summary], at: dict[str, int]) -> None:
    for j, s in enumerate(options):
        colour = COLOURS[j % len(COLOURS)]
        line = {"color": colour, "dash": DASHES[j % len(DASHES)], "width": 2}
        add_line(figure, s.accuracy, at, line=line)
        figure.add_scatter(
            x=[step for _ in s.curves for step in EVALUATED_AT],
            y=[curve[str(step)] for curve in s.curves for step in EVALUATED_AT],
            mode="markers",
            marker={"color": colour, "size": 4},
            opacity=0.6,
            showlegend=False,
            **at,
        )


def add_key(figure: Any, options: list[Summary], axis: str) -> None:
    """The names of the lines with their accuracy at the end. axis: its number in Plotly's names."""
    lines = []
    for j, s in enumerate(options):
        colour, mark = COLOURS[j % len(COLOURS)], MARKS[DASHES[j % len(DASHES)]]
        text = f"{mark} {s.name}  {s.accuracy[-1]:.0%}"
        lines.append(f'<span style="color:{colour}">{text}</span>')
    figure.add_annotation(
        text="<br>".join(lines),
        x=61,
        y=0.22,
        xref=f"x{axis}",
        yref=f"y{axis}",
        xanchor="right",
        yanchor="bottom",
        showarrow=False,
        align="left",
        font={"size": 12},
        bgcolor="rgba(255,255,255,.75)",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    every = commands.add_parser("train")
    every.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    every.add_argument("--only", nargs="+", default=[])
    every.add_argument("--without", nargs="+", default=[])
    every.add_argument("--through", default="")
    one = commands.add_parser("one")
    one.add_argument("name")
    one.add_argument("seed", type=int)
    commands.add_parser("table")
    commands.add_parser("picture")
    options = parser.parse_args()
    if options.command == "table":
        print(table())
    elif options.command == "picture":
        picture()
    elif options.command == "train":
        train_all(options)
    else:
        result = train_one(next(o for o in OPTIONS if o.name == options.name), options.seed)
        with LINES.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result, separators=(",", ":")) + "\n")
        accuracy = list(result["heldout"].values())
        print(f"{options.name}, seed {options.seed}: {result['seconds']} s, held-out {accuracy}")


if __name__ == "__main__":
    main()
