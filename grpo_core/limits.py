"""What a public server allows: steps, tokens, models, runs, folders. Set by its operator in environment variables; none is set by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo_core.config import RunConfig
from grpo_core.errors import FieldProblem, InvalidConfig

WAY_OUT = "Lower it, or run your own copy of the studio, where nothing is limited."


@dataclass(frozen=True, slots=True)
class Limits:
    """None = not limited. `models`: the only ones that may be named. `roots`: the only folders below which models and prompt files may be."""

    steps: int | None = None
    new_tokens: int | None = None
    rollouts_per_step: int | None = None
    heldout: int | None = None
    waiting: int | None = None  # runs that may be queued
    models: tuple[str, ...] | None = None
    roots: tuple[Path, ...] | None = None

    def check(self, config: RunConfig, num_waiting: int = 0) -> None:
        """Raises InvalidConfig with every field that goes beyond."""
        t = config.train
        most = (("train.steps", t.steps, self.steps), ("train.max_new_tokens", t.max_new_tokens, self.new_tokens),
                ("train.group_size", t.prompts_per_step * t.group_size, self.rollouts_per_step), ("task.heldout_size", config.task.heldout_size * t.eval_samples, self.heldout))
        problems = [FieldProblem(field, value, f"this server allows at most {limit:,}" + (" completions a step" if field == "train.group_size" else ""), WAY_OUT)
                    for field, value, limit in most if limit is not None and value > limit]
        if self.models is not None and config.model.name not in self.models:
            problems.append(FieldProblem("model.name", config.model.name, "this server does not offer it", f"Choose one of: {', '.join(self.models)}."))
        if self.waiting is not None and num_waiting >= self.waiting:
            problems.append(FieldProblem("train.steps", t.steps, f"{num_waiting} runs are waiting already", "Come back when one has ended."))
        problems += [FieldProblem(field, name, "this server does not read files there", "Upload the file, or name one of the Hub.") for field, name in _places(config) if not self._allowed(name)]
        if problems:
            raise InvalidConfig(problems)

    def _allowed(self, name: str) -> bool:
        """Whether a name is no path of this machine, or one below the roots, links followed."""
        if self.roots is None:
            return True
        try:
            path = Path(name).expanduser()
            if not path.exists() and not name.startswith(("/", ".", "~")):
                return True
            found = path.resolve()
        except (OSError, ValueError, RuntimeError):
            return False
        return any(found.is_relative_to(root.resolve()) for root in self.roots)


def _places(config: RunConfig) -> list[tuple[str, str]]:
    """Every setting that may name a place on this machine."""
    named = [("task.path", config.task.path), ("task.heldout_source", config.task.heldout_source)] if config.task.name == "file" else []
    named += [(f"rubric.criteria.{i}.params.model", str(c.params["model"])) for i, c in enumerate(config.rubric.criteria) if c.check == "reward_model" and c.params.get("model")]
    return [("model.name", config.model.name), *((field, name) for field, name in named if name)]


def from_environment(environment: Mapping[str, str], roots: Sequence[Path] | None) -> Limits:
    """GRPO_MAX_STEPS, GRPO_MAX_NEW_TOKENS, GRPO_MAX_ROLLOUTS, GRPO_MAX_HELDOUT, GRPO_MAX_WAITING, GRPO_MODELS (comma-separated). Raises InvalidConfig."""
    def number(name: str) -> int | None:
        text = environment.get(name, "").strip()
        if text and not (text.isdecimal() and int(text) > 0):
            raise InvalidConfig([FieldProblem(name, text, "is no whole number from 1 up", "Correct the environment variable, or unset it.")])
        return int(text) if text else None

    models = tuple(m.strip() for m in environment.get("GRPO_MODELS", "").split(",") if m.strip()) or None
    return Limits(number("GRPO_MAX_STEPS"), number("GRPO_MAX_NEW_TOKENS"), number("GRPO_MAX_ROLLOUTS"), number("GRPO_MAX_HELDOUT"), number("GRPO_MAX_WAITING"),
                  models, None if roots is None else tuple(roots))
