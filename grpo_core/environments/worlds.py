"""The worlds of a run: an environment's processes live as long as the run that acts in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from grpo_core.config.sections import RolloutConfig
from grpo_core.environments.instances import Instances
from grpo_core.environments.registry import find_environment
from grpo_core.environments.tool_chat import ToolChat
from grpo_core.environments.trajectories import World
from grpo_core.models import Policy, Reader
from grpo_core.tasks import Task, environment_of, environments_of
from grpo_core.types import Prompt


class RowEncoder:
    """Makes ids of a task's prompts, each with the tools of what the policy acts in for it."""

    def __init__(self, task: Task, policy: Policy | Reader, chats: Mapping[str, ToolChat]) -> None:
        """chats: by environment."""
        self._task, self._policy, self._chats = task, policy, chats
        self.tokenizer, self.context = policy.tokenizer, policy.context

    def encode(self, prompt: Prompt, instruction: str) -> list[int]:
        """Ids of the prompt. Raises as the policy's own does."""
        chat = self._chats.get(environment_of(self._task, prompt))
        return (chat or self._policy).encode(prompt, instruction)


class Worlds:
    """Makes the world of an environment at its first use. Close it at the end."""

    def __init__(self, policy: Policy | Reader, check_interrupt: Callable[[], None]) -> None:
        self._policy, self._check_interrupt = policy, check_interrupt
        self._known: dict[tuple[str, float], tuple[ToolChat, Instances]] = {}

    def of(self, name: str, config: RolloutConfig) -> World:
        """Raises InvalidConfig for an unknown name, or a chat template without tools' answers."""
        key = name, config.tool_seconds
        if key not in self._known:
            environment = find_environment(name)
            chat = ToolChat(self._policy, environment)
            instances = Instances(environment, config.tool_seconds, self._check_interrupt)
            self._known[key] = chat, instances
        return World(*self._known[key], config.max_turns)

    def encoder(self, task: Task, config: RolloutConfig) -> RowEncoder:
        """What makes ids of the task's prompts. Raises InvalidConfig as `of` does."""
        chats = {name: self.of(name, config).chat for name in environments_of(task) if name}
        return RowEncoder(task, self._policy, chats)

    def close(self) -> None:
        """End all processes."""
        for _, instances in self._known.values():
            instances.close()
        self._known.clear()
