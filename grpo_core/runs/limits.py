"""What a public server allows: steps, tokens, models, runs, time, disk, folders. Set by its operator in environment variables; none is set by default."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from threading import Lock

from grpo_core.config import RunConfig
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError

DAY = 24 * 3600.0
WAY_OUT = "Lower it, or run your own copy of the studio, where nothing is limited."


@dataclass(frozen=True, slots=True)
class Limits:
    """None = not limited. `models`: the only ones that may be named. `roots`: the only folders below which models and prompt files may be."""

    steps: int | None = None
    new_tokens: int | None = None
    rollouts_per_step: int | None = None
    heldout: int | None = None
    waiting: int | None = None  # runs that may be queued
    per_visitor: int | None = None  # runs that one visitor may begin or resume in a day
    minutes: int | None = None  # that a run may take, pauses included
    disk_mib: int | None = None  # that the store and its checkpoints may take
    models: tuple[str, ...] | None = None
    roots: tuple[Path, ...] | None = None

    def check(self, config: RunConfig, num_waiting: int = 0) -> None:
        """Raises InvalidConfig with every field that goes beyond."""
        t = config.train
        most = (
            ("train.steps", t.steps, self.steps),
            ("train.max_new_tokens", t.max_new_tokens, self.new_tokens),
            ("train.group_size", t.prompts_per_step * t.group_size, self.rollouts_per_step),
            (
                "task.heldout_size",
                config.task.heldout_size * t.eval_samples * (2 if config.task.second else 1),
                self.heldout,
            ),
        )
        problems = [
            FieldProblem(
                field,
                value,
                f"this server allows at most {limit:,}"
                + (" completions a step" if field == "train.group_size" else ""),
                WAY_OUT,
            )
            for field, value, limit in most
            if limit is not None and value > limit
        ]
        if self.models is not None and config.model.name not in self.models:
            problems.append(
                FieldProblem(
                    "model.name",
                    config.model.name,
                    "this server does not offer it",
                    f"Choose one of: {', '.join(self.models)}.",
                )
            )
        if self.waiting is not None and num_waiting >= self.waiting:
            problems.append(
                FieldProblem(
                    "train.steps",
                    t.steps,
                    f"{num_waiting} runs are waiting already",
                    "Come back when one has ended.",
                )
            )
        problems += [
            FieldProblem(
                field,
                name,
                "this server does not read files there",
                "Upload the file, or name one of the Hub.",
            )
            for field, name in _places(config)
            if not self._allowed(name)
        ]
        if problems:
            raise InvalidConfig(problems)

    def too_much(self, seconds: float, used_bytes: int) -> str | None:
        """Why a run that goes on must stop: one sentence with limit, value and way out; None while all is well."""
        if self.minutes is not None and seconds > 60 * self.minutes:
            return f"This server lets a run take {self.minutes:,} minutes (GRPO_MAX_MINUTES). Its state is saved: press Resume for as long again, or run your own copy."
        return self._full(used_bytes)

    def _full(self, used_bytes: int) -> str | None:
        if self.disk_mib is not None and used_bytes > self.disk_mib * 2**20:
            return (
                f"The runs of this server take {used_bytes / 2**20:,.0f} MiB of the {self.disk_mib:,} MiB that they may (GRPO_MAX_DISK_MIB). "
                "Delete old runs on the Runs tab, then start or resume."
            )
        return None

    def check_place(self, used_bytes: int) -> None:
        """Before a run: raises StudioError when the disk's share is used up."""
        if why := self._full(used_bytes):
            raise StudioError(why)

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


class Visitors:
    """How many runs each visitor began in the last day. Addresses are kept as salted hashes, in memory only."""

    def __init__(self, limit: int | None, clock: Callable[[], float] = time.time):
        self._limit, self._clock, self._salt, self._lock = (
            limit,
            clock,
            secrets.token_bytes(16),
            Lock(),
        )
        self._began: dict[bytes, list[float]] = {}

    def admit(self, visitor: str | None) -> None:
        """Count one more run of this visitor; raises InvalidConfig when there were enough. None: nobody outside, the server itself."""
        if self._limit is None or visitor is None:
            return
        key, now = (
            blake2b(visitor.encode("utf-8", "replace"), key=self._salt, digest_size=16).digest(),
            self._clock(),
        )
        with self._lock:
            self._began = {
                k: recent
                for k, times in self._began.items()
                if (recent := [t for t in times if t > now - DAY])
            }
            mine = self._began.setdefault(key, [])
            if len(mine) >= self._limit:
                hours = (mine[0] + DAY - now) / 3600
                raise InvalidConfig(
                    [
                        FieldProblem(
                            "train.steps",
                            len(mine),
                            f"this server allows a visitor {self._limit} runs a day (GRPO_MAX_RUNS_PER_VISITOR)",
                            f"Come back in {hours:.1f} hours, or run your own copy of the studio, where nothing is limited.",
                        )
                    ]
                )
            mine.append(now)


def _places(config: RunConfig) -> list[tuple[str, str]]:
    """Every setting that may name a place on this machine."""
    named = (
        [("task.path", config.task.path), ("task.heldout_source", config.task.heldout_source)]
        if config.task.name == "file"
        else []
    )
    named += [("task.second", config.task.second)]
    named += [
        (f"rubric.criteria.{i}.params.model", str(c.params["model"]))
        for i, c in enumerate(config.rubric.criteria)
        if c.check == "reward_model" and c.params.get("model")
    ]
    return [("model.name", config.model.name), *((field, name) for field, name in named if name)]


def from_environment(environment: Mapping[str, str], roots: Sequence[Path] | None) -> Limits:
    """GRPO_MAX_STEPS, _NEW_TOKENS, _ROLLOUTS, _HELDOUT, _WAITING, _RUNS_PER_VISITOR, _MINUTES, _DISK_MIB and GRPO_MODELS (comma-separated). Raises InvalidConfig."""

    def number(name: str) -> int | None:
        text = environment.get(name, "").strip()
        if text and not (text.isdecimal() and int(text) > 0):
            raise InvalidConfig(
                [
                    FieldProblem(
                        name,
                        text,
                        "is no whole number from 1 up",
                        "Correct the environment variable, or unset it.",
                    )
                ]
            )
        return int(text) if text else None

    models = (
        tuple(m.strip() for m in environment.get("GRPO_MODELS", "").split(",") if m.strip()) or None
    )
    return Limits(
        number("GRPO_MAX_STEPS"),
        number("GRPO_MAX_NEW_TOKENS"),
        number("GRPO_MAX_ROLLOUTS"),
        number("GRPO_MAX_HELDOUT"),
        number("GRPO_MAX_WAITING"),
        number("GRPO_MAX_RUNS_PER_VISITOR"),
        number("GRPO_MAX_MINUTES"),
        number("GRPO_MAX_DISK_MIB"),
        models,
        None if roots is None else tuple(roots),
    )
