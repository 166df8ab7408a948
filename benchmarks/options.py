"""What does each option of the algorithm do to the default task? Trains every one over several seeds and keeps the curves.

    python benchmarks/options.py train [--seeds 0 1 2] [--only NAME …] [--through "nice -n 15"]
    python benchmarks/options.py table          the table of docs/algorithms.md, on standard output
    python benchmarks/options.py picture        docs/screenshots/options.png, through Chromium

Every run is 60 steps in a process of its own and adds one line to benchmarks/options.jsonl when it is done; a run whose line is there is not
made again, so the command may be stopped and repeated. `--through` is put before the command of each run.
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
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

LINES = Path(__file__).parent / "options.jsonl"
PICTURE = ROOT / "docs" / "screenshots" / "options.png"
STEPS, EVAL_EVERY, WINDOW = 60, 20, 10
COLOURS = ("#1b6ca8", "#c2410c", "#2e7d32", "#7b3fa0", "#b8860b", "#00838f", "#ad1457")
DASHES = ("solid", "dash", "dot")  # with the colour, so that no line is told by colour alone
MARKS = {"solid": "━", "dash": "╍", "dot": "┅"}
CURVES = ("reward_mean", "kl")
TWO = {
    "updates_per_batch": 2
}  # from the second update on the ratio leaves 1: only there objectives differ


@dataclass(frozen=True, slots=True)
class Option:
    """One run's settings, by what they change in a default run; names without a section are algorithm fields."""

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
    """One run in this process; what is kept of it."""
    from grpo_core.config import nest, parse, with_preset
    from grpo_core.training.control import RunControl
    from grpo_core.training.trainer import train
    from grpo_core.types import Evaluated, StepCompleted

    flat = option.flat() | {"train.seed": seed}
    config = parse(nest(with_preset(flat, option.preset) if option.preset else flat))
    events: list[Any] = []
    started = perf_counter()
    train(config, events.append, RunControl())
    steps = [e.metrics for e in events if isinstance(e, StepCompleted)]
    held = {
        e.step: round(e.metrics["heldout/accuracy"], 4) for e in events if isinstance(e, Evaluated)
    }
    return {
        "option": option.name,
        "family": option.family,
        "seed": seed,
        "commit": commit(),
        "settings": option.settings,
        "preset": option.preset,
        "seconds": round(perf_counter() - started, 1),
        "heldout": held,
        "tokens": sum(s.tokens for s in steps),
        "updates": sum(s.num_updates for s in steps),
        "length": _short(fmean(s.completion_tokens_mean for s in steps[-WINDOW:])),
        **{name: [_short(getattr(s, name)) for s in steps] for name in CURVES},
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")


def commit() -> str:
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return asked.stdout.strip()


def lines() -> list[dict[str, Any]]:
    return (
        [json.loads(line) for line in LINES.read_text("utf-8").splitlines()]
        if LINES.exists()
        else []
    )


def train_all(seeds: list[int], only: list[str], without: list[str], through: str) -> None:
    """Seed by seed, so that what is there after an interruption is whole over fewer seeds."""
    for seed in seeds:
        for option in OPTIONS:
            if (
                (only and option.name not in only)
                or option.name in without
                or any((r["option"], r["seed"]) == (option.name, seed) for r in lines())
            ):
                continue
            command = [
                *shlex.split(through),
                sys.executable,
                __file__,
                "one",
                option.name,
                str(seed),
            ]
            done = subprocess.run(command, capture_output=True, text=True)
            print(
                done.stdout.strip().splitlines()[-1]
                if done.returncode == 0
                else f"{option.name}, seed {seed} FAILED: {done.stderr[-2000:]}",
                flush=True,
            )


def summary(family: str) -> list[dict[str, Any]]:
    """One row an option of the family, in the order of OPTIONS: means over the seeds that are there."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for line in lines():
        by_name.setdefault(line["option"], []).append(line)
    rows = []
    for option in OPTIONS:
        if option.family == family and (runs := by_name.get(option.name)):
            held = [
                [run["heldout"][str(step)] for run in runs]
                for step in range(0, STEPS + 1, EVAL_EVERY)
            ]
            rows.append(
                {
                    "name": option.name,
                    "runs": len(runs),
                    "curves": [run["heldout"] for run in runs],
                    "mean": [fmean(h) for h in held],
                    "range": (min(held[-1]), max(held[-1])),
                    "kl": fmean(v for run in runs for v in run["kl"][-WINDOW:] if v is not None),
                    "length": fmean(run["length"] for run in runs),
                    "tokens": fmean(run["tokens"] for run in runs),
                    "updates": fmean(run["updates"] for run in runs),
                }
            )
    return rows


def table() -> str:
    """Held-out accuracy of every option."""
    out = [
        f"| option | seeds | held-out at {', '.join(str(s) for s in range(0, STEPS, EVAL_EVERY))} | at {STEPS} (least–most) | KL | length | tokens sampled | updates |\n"
        "|---|---|---|---|---|---|---|---|"
    ]
    for family in dict.fromkeys(o.family for o in OPTIONS):
        out.append(f"| **{family}** | | | | | | | |")
        for r in summary(family):
            out.append(
                f"| {r['name']} | {r['runs']} | {', '.join(f'{m:.1%}' for m in r['mean'][:-1])} | {r['mean'][-1]:.1%}{spread(r)} | "
                f"{r['kl']:.3f} | {r['length']:.1f} | {r['tokens']:,.0f} | {r['updates']:.0f} |"
            )
    return "\n".join(out)


def spread(row: dict[str, Any]) -> str:
    return f" ({row['range'][0]:.1%}–{row['range'][1]:.1%})" if row["runs"] > 1 else ""


def picture() -> None:
    """Small multiples, one a family: held-out accuracy over steps, mean line and seeds as points, the defaults in grey in each."""
    from picture import save
    from plotly.subplots import make_subplots

    families = [
        f for f in dict.fromkeys(o.family for o in OPTIONS) if f != "defaults" and summary(f)
    ]
    columns = 3
    figure = make_subplots(
        -(-len(families) // columns),
        columns,
        subplot_titles=families,
        vertical_spacing=0.07,
        horizontal_spacing=0.045,
    )
    at = list(range(0, STEPS + 1, EVAL_EVERY))
    base = summary("defaults")[0]["mean"]
    for i, family in enumerate(families):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        figure.add_scatter(
            x=at,
            y=base,
            mode="lines",
            line={"color": "#9aa0a6", "width": 5},
            opacity=0.5,
            showlegend=False,
            **place,
        )
        rows = summary(family)
        for j, r in enumerate(rows):
            look = {"color": COLOURS[j % len(COLOURS)], "dash": DASHES[j % len(DASHES)]}
            figure.add_scatter(
                x=at,
                y=r["mean"],
                mode="lines",
                line={**look, "width": 2},
                showlegend=False,
                **place,
            )
            figure.add_scatter(
                x=[step for curve in r["curves"] for step in at],
                y=[curve[str(step)] for curve in r["curves"] for step in at],
                mode="markers",
                marker={"color": look["color"], "size": 4},
                opacity=0.6,
                showlegend=False,
                **place,
            )
        key = "<br>".join(
            f'<span style="color:{COLOURS[j % len(COLOURS)]}">{MARKS[DASHES[j % len(DASHES)]]} {r["name"]}  {r["mean"][-1]:.0%}</span>'
            for j, r in enumerate(rows)
        )
        figure.add_annotation(
            text=key,
            x=61,
            y=0.22,
            xref=f"x{i + 1}" if i else "x",
            yref=f"y{i + 1}" if i else "y",
            xanchor="right",
            yanchor="bottom",
            showarrow=False,
            align="left",
            font={"size": 12},
            bgcolor="rgba(255,255,255,.75)",
        )
    figure.update_xaxes(tickvals=at, range=[-2, 62])
    figure.update_yaxes(range=[0.2, 1.01], tickformat=".0%")
    figure.update_layout(
        template="simple_white",
        width=1280,
        height=400 * -(-len(families) // columns),
        margin={"l": 50, "r": 20, "t": 40, "b": 40},
        font={"family": "sans-serif"},
    )
    save(figure, PICTURE, ".annotation")


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
    asked = parser.parse_args()
    if asked.command == "table":
        print(table())
    elif asked.command == "picture":
        picture()
    elif asked.command == "train":
        train_all(asked.seeds, asked.only, asked.without, asked.through)
    else:
        result = train_one(next(o for o in OPTIONS if o.name == asked.name), asked.seed)
        with LINES.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result, separators=(",", ":")) + "\n")
        print(
            f"{asked.name}, seed {asked.seed}: {result['seconds']} s, held-out {list(result['heldout'].values())}"
        )


if __name__ == "__main__":
    main()
