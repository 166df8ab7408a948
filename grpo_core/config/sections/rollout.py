"""Section `rollout`: completions of several turns, in an environment with tools."""

from __future__ import annotations

from grpo_core.config.sections.fields import Section, setting


class RolloutConfig(Section):
    """How a policy acts in an environment. Without one, a completion has one turn."""

    max_turns: int = setting(
        8,
        "Turns at most",
        "How often the policy may write in one completion. A tool that it calls in its last turn "
        "is not run, and the completion counts as cut.",
        unit="turns",
        ge=1,
        le=1000,
    )
    tool_seconds: float = setting(
        5.0,
        "Time for a tool",
        "Time limit of each tool call. A call that takes longer is answered with an error.",
        unit="s",
        gt=0,
        le=600,
    )
