"""Writes docs/metrics.md from the definitions in the code: python docs/make_metrics.py"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from grpo_core.analysis.glossary import Entry, checks, heldout_metrics, open_metrics, step_metrics
from grpo_core.rubric import VERDICTS

HEAD = """# Every metric

Made by `python docs/make_metrics.py` from the definitions in the code; a test keeps it complete.
A value that cannot be measured or is not finite is stored as NULL, never as 0. P prompts,
G completions each, B = P·G rows.

## Steps

One value per optimiser step: a column of the table `steps` and of the CSV export.

| name | title | unit | definition | how to read it |
|---|---|---|---|---|
"""
SCORES = """
## Scores

Table `metrics`, one value per optimiser step.

| name | unit | definition | how to read it |
|---|---|---|---|
"""
CHECK_HEAD = """
The built-in checks:

| check | full score when |
|---|---|
"""
HELDOUT = """
## Held-out evaluation

Before step 1, every `train.eval_every` steps and after the last: `train.eval_samples` completions
of each held-out prompt (default 1), sampled at the training temperature from the same random
numbers each time, or greedy (`train.eval_mode`). No held-out prompt is ever trained on.

| name | unit | definition | how to read it |
|---|---|---|---|
"""
VERDICT_HEAD = """
## Verdicts of groups

| code | label | sentence |
|---|---|---|
"""


def metrics_page() -> str:
    """The whole page as Markdown."""
    steps = ((f"`{e.key}`", e.title, e.unit, e.help, e.reading) for e in step_metrics())
    scores = ((_names(e), e.unit, e.help, e.reading) for e in open_metrics())
    heldout = ((_names(e), e.unit, e.help, e.reading) for e in heldout_metrics())
    graders = ((f"`{e.title}`", e.help) for e in checks())
    verdicts = ((f"`{code}`", label, sentence) for code, (label, sentence) in VERDICTS.items())
    return "".join(
        (
            HEAD + table_rows(steps),
            SCORES + table_rows(scores),
            CHECK_HEAD + table_rows(graders),
            HELDOUT + table_rows(heldout),
            VERDICT_HEAD + table_rows(verdicts),
        )
    )


def _names(entry: Entry) -> str:
    return ", ".join(f"`{name}`" for name in entry.names)


def table_rows(rows: Iterable[Iterable[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    (Path(__file__).parent / "metrics.md").write_text(metrics_page(), "utf-8")
