"""Section `rollout`: who samples completions, and how a policy acts in an environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import field_validator

from grpo_core.config import options
from grpo_core.config.places import Name
from grpo_core.config.sections.fields import Section, choice, setting
from grpo_core.config.server_urls import checked_url

if TYPE_CHECKING:
    Engine = Correction = str
else:
    Engine = Literal[*options.ENGINES]
    Correction = Literal[*options.CORRECTIONS]


class RolloutConfig(Section):
    """Who samples completions, and how a policy acts in an environment.

    Without an environment a completion has one turn.
    """

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
    engine: Engine = choice(
        "own", "Rollout engine", "Who samples the completions of a run.", options.ENGINES
    )
    url: Name = setting(
        "",
        "vLLM server",
        "Address of the vLLM server, such as http://127.0.0.1:8000. A key comes from the "
        "environment variable GRPO_ROLLOUT_KEY.",
        max_length=500,
        hint="Write its address, such as http://127.0.0.1:8000.",
    )
    shared_folder: Name = setting(
        "",
        "Shared folder",
        "Adapters or weights are written here for the server, under a name of their own; both must "
        "see it by the same path. Empty: a temporary folder, for a server on this machine.",
        max_length=512,
        hint="Name a folder that this machine and the server see by the same path.",
    )
    server_seconds: float = setting(
        600.0,
        "Time for a prompt",
        "Time limit of one request to the server: all completions of one prompt, waiting included.",
        unit="s",
        gt=0,
        le=86_400,
    )
    correction: Correction = choice(
        "none",
        "Correction",
        "What is done about the difference between the server's probabilities and the learner's.",
        options.CORRECTIONS,
    )
    correction_max: float = setting(
        3.0,
        "Correction, limit",
        "The ratio of probabilities, learner/server, above which a token is cut or left out.",
        ge=1,
        le=1000,
        hint="2 or 3 is usual.",
    )

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        return url and checked_url(url).removesuffix("/v1")
