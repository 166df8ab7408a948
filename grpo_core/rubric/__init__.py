"""Rubrics: criteria give a completion scores, and their weighted sum is its reward.

Only reward_model.py imports torch.
"""

from grpo_core.rubric.check import Check, Notes, RunState
from grpo_core.rubric.criteria import CHECKS, add_plugins, plugin_files
from grpo_core.rubric.rubric import PRESETS, Rubric, Scored, build_rubric, resolve_rubric, total
from grpo_core.rubric.shaping import RunningStd, gated, shaped
from grpo_core.rubric.verdict import (
    VERDICTS,
    SiblingScores,
    dominant,
    explain,
    tie,
    variance_shares,
    verdict,
)

__all__ = [
    "CHECKS",
    "PRESETS",
    "VERDICTS",
    "Check",
    "Notes",
    "Rubric",
    "RunState",
    "RunningStd",
    "Scored",
    "SiblingScores",
    "add_plugins",
    "build_rubric",
    "dominant",
    "explain",
    "gated",
    "plugin_files",
    "resolve_rubric",
    "shaped",
    "tie",
    "total",
    "variance_shares",
    "verdict",
]
