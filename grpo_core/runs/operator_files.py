"""The files that the operator names: reward functions and environments, in the process of a run."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_core.environments.environment import Environment
from grpo_core.environments.registry import use_environments
from grpo_core.rubric import add_plugins


def load_operator_files(rewards: Sequence[str], environments: Sequence[Environment]) -> None:
    """Make them known in this process. Raises StudioError for a file that cannot be used."""
    add_plugins(rewards)
    use_environments(environments)
