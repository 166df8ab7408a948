"""Diagnoses of a policy with tools: calls that fail, and tools that nobody calls.

Each is a pure function from Facts to a Notice, or None. benchmarks/advisor.py measures the
thresholds on healthy runs and on runs with one deliberate fault.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from grpo_core.analysis.advisor.facts import Facts, mean, percent
from grpo_core.store import RolloutRow
from grpo_core.types import Notice, Turn, TurnRole

MANY_ERRORS = 0.3  # of the calls of the last 10 steps
ENOUGH_CALLS = 20  # of the newest groups
ENOUGH_GROUPS = 10
# Reasons of calls that were never made: what was written is no call of a tool that there is.
_NOT_MADE = re.compile(r"the call cannot be read|there is no tool|it lacks |its arguments|JSON")
_TOO_SLOW = re.compile(r"took (longer|too long)")


def tool_errors(f: Facts) -> Notice | None:
    """30 % of the tool calls of the last 10 steps were answered with an error.

    It needs 20 calls in the newest groups, which also give the tool and the commonest reason.
    """
    share = mean(f.recent("tool_error_frac", 10))
    calls = [(t, g.id) for g in f.groups for t in _calls(g.rollouts)]
    failed = [(t, group_id) for t, group_id in calls if t.error]
    if share < MANY_ERRORS or len(calls) < ENOUGH_CALLS or not failed:
        return None
    kinds = Counter((t.tool, _kind(t.error)) for t, _ in failed)
    kind, times = kinds.most_common(1)[0]
    example, group_id = next(
        pair for pair in failed if (pair[0].tool, _kind(pair[0].error)) == kind
    )
    tool = example.tool or "an unreadable call"
    return Notice(
        "tool_errors",
        "warning",
        f.last_step,
        f"{percent(share)} of the tool calls are answered with an error. Most often it is {tool}, "
        f"{times} of {len(failed)} times: {example.error.rstrip('.')[:200]}.",
        {
            "tool errors": round(share, 3),
            "threshold": MANY_ERRORS,
            "calls": len(calls),
            "failed": len(failed),
            "tool": tool,
        },
        group_id,
        _advice(f, example.error),
    )


def _advice(f: Facts, reason: str) -> str:
    if _TOO_SLOW.search(reason):
        limit = f.setting("rollout.tool_seconds")
        return f"Make the tool faster, or raise Time for a tool ({limit} s)."
    if _NOT_MADE.search(reason):
        return (
            "The policy does not know how a call is written. Show one in the template or the "
            "system prompt, name the tool's arguments plainly, or choose a model that was trained "
            "to call tools."
        )
    return (
        "The tool itself fails. Read a call of this group with its arguments: correct the tool, "
        "or say in its docstring what it accepts."
    )


def _kind(reason: str) -> str:
    """A reason without what differs from call to call: numbers, and what stands in quotes."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "…", reason)


def tool_unused(f: Facts) -> Notice | None:
    """No completion of the newest groups (at least 10) called a tool, and half are not solved."""
    unsolved = [g for g in f.groups if g.verdict == "no_call"]
    if len(f.groups) < ENOUGH_GROUPS or len(unsolved) < 0.5 * len(f.groups):
        return None
    if any(_calls(g.rollouts) for g in f.groups):
        return None
    num = sum(len(g.rollouts) for g in f.groups)
    return Notice(
        "tool_unused",
        "warning",
        f.last_step,
        f"None of the newest {num:,} completions called a tool. What is never tried gets no "
        "advantage, so the policy cannot learn to call it.",
        {
            "groups that are not solved": round(len(unsolved) / len(f.groups), 3),
            "threshold": 0.5,
            "calls": 0,
        },
        unsolved[0].id,
        "Show a call in the template or the system prompt, raise the temperature or the group "
        "size, or choose a model that was trained to call tools.",
    )


def _calls(rollouts: Sequence[RolloutRow]) -> list[Turn]:
    return [t for r in rollouts for t in r.turns if t.role == TurnRole.OBSERVATION]
