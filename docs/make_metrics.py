"""Writes docs/metrics.md from the definitions in the code: python docs/make_metrics.py"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from grpo_core.rubric import CHECKS, VERDICTS
from grpo_core.types import StepMetrics

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

`score/NAME`, table `metrics`: the mean score of criterion NAME over the step's completions, in the
range of its check, before its weight. Completions that could not be scored are left out.
`used/NAME/WHAT`: what an LLM judge used in the step: requests, cached, tokens, seconds, cost.
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
# Columns: name, unit, definition, how to read it.
HELDOUT_ROWS = (
    (
        "`heldout/accuracy`",
        "share",
        "Share of completions that reach the rubric's outcome criterion (score 1).",
        "The result. Compare it with its interval, not with the last digit.",
    ),
    (
        "`heldout/accuracy_low`, `heldout/accuracy_high`",
        "share",
        "95 % interval of that share: Wilson's for one completion a prompt, "
        "mean ± 1.96 standard errors over prompts for several.",
        "Two runs whose intervals overlap widely may be equal.",
    ),
    (
        "`heldout/pass@K`",
        "share",
        "With several completions a prompt: chance that one of K is right, "
        "1 - C(n-c, K)/C(n, K) for c right of n, mean over prompts; `_low`, `_high` as above.",
        "Far above accuracy: the policy can, but seldom does; there is something to reinforce.",
    ),
    (
        "`heldout/reward`",
        "reward",
        "Mean total reward.",
        "If training reward rises and this does not, the policy memorises the prompts.",
    ),
    (
        "`heldout/NAME`",
        "share",
        "Mean score of criterion NAME.",
        "`heldout/reasoning`: the share that reasons, which is recorded and not rewarded.",
    ),
    (
        "`heldout/completion_tokens`",
        "tokens",
        "Mean completion length, end token counted.",
        "Longer and better is thinking; longer alone is not.",
    ),
    (
        "`second/NAME`",
        "as above",
        "The same for `task.second`, which is evaluated and never trained on.",
        "Falling while held-out accuracy rises: the policy forgets.",
    ),
)
VERDICT_HEAD = """
## Verdicts of groups

| code | label | sentence |
|---|---|---|
"""


def metrics_page() -> str:
    """The whole page as Markdown."""
    steps = (
        (f"`{f.name}`", *(f.metadata[key] for key in ("title", "unit", "help", "reading")))
        for f in fields(StepMetrics)
    )
    checks = ((f"`{name}`", check.help) for name, check in CHECKS.items())
    verdicts = ((f"`{code}`", label, sentence) for code, (label, sentence) in VERDICTS.items())
    return "".join(
        (
            HEAD + table_rows(steps),
            SCORES + table_rows(checks),
            HELDOUT + table_rows(HELDOUT_ROWS),
            VERDICT_HEAD + table_rows(verdicts),
        )
    )


def table_rows(rows: Iterable[Iterable[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    (Path(__file__).parent / "metrics.md").write_text(metrics_page(), "utf-8")
