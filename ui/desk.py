"""What the page needs of grpo_core.desk: handed in by app.py, so that pages are built and tested without torch."""

from __future__ import annotations

from typing import Any, Protocol

from grpo_core.config import RunConfig


class Desk(Protocol):
    """Answers questions about prompts, models and rubrics. Every method raises StudioError in one line."""

    def preview(self, config: RunConfig, count: int = 5) -> Any: ...

    def check_model(self, config: RunConfig, sample: bool = True) -> tuple[Any, str]: ...
