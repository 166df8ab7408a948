"""What the page needs of grpo_core.preflight.service.

app.py passes the service in, so that pages are built and tested without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from grpo_core.config import RunConfig
from grpo_core.exporting.play_request import PlayRequest, PlayResult
from grpo_core.records.imports import Found, Wanted
from grpo_core.types import Prompt

RewardScorer = Callable[[Sequence[tuple[Prompt, str]]], Sequence[float | None]]


class RewardTrainer(Protocol):
    """Trains reward models, one at a time; the store has their rows."""

    def start(self, values: Mapping[str, Any], name: str = "") -> str: ...

    def stop(self) -> None: ...


class Importer(Protocol):
    """Imports runs of other trainers."""

    def preview(self, wanted: Wanted) -> Found: ...

    def run(self, wanted: Wanted) -> Found: ...

    def columns(self, wanted: Wanted) -> list[str]: ...

    def follow(self, wanted: Wanted) -> None: ...

    def followed(self) -> list[str]: ...

    def unfollow(self, place: str) -> None: ...


class Service(Protocol):
    """Answers questions about prompts, models and rubrics.

    Every method raises StudioError with a message of one line.
    """

    lease_seconds: int | None
    may_push: bool
    reward_models: RewardTrainer
    imports: Importer

    def outlook(self, config: RunConfig) -> str: ...

    def estimate(self, config: RunConfig) -> Any: ...

    def preview(self, config: RunConfig, count: int = 5) -> Any: ...

    def check_model(self, config: RunConfig, sample: bool = True) -> tuple[Any, str]: ...

    def preflight(self, config: RunConfig) -> Sequence[Any]: ...

    def refusal(self, config: RunConfig, anyway: bool) -> str: ...

    def try_rubric(self, config: RunConfig, num_prompts: int = 3) -> Any: ...

    def score_texts(self, config: RunConfig, texts: Sequence[str]) -> Any: ...

    def reward_scorer(self) -> RewardScorer | None: ...

    def reweigh(self, config: RunConfig, key: str) -> Any: ...

    def probe(self, config: RunConfig) -> Sequence[Any]: ...

    def run_prompt(self, run_id: str, number: int) -> Prompt: ...

    def reason_to_wait(self, run_id: str) -> str: ...

    def play(self, run_id: str, request: PlayRequest, question: str = "") -> PlayResult: ...

    def look_at_play(self, question: str) -> tuple[int, PlayResult] | None: ...

    def stop_play(self, question: str) -> None: ...

    def export_model(
        self, run_id: str, folder: Path, step: int | None = None, adapter_only: bool = False
    ) -> Path: ...

    def push_model(self, run_id: str, repository: str, adapter_only: bool = False) -> str: ...
