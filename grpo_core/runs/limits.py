"""Limits of a public server. Its operator sets them in environment variables; there are none by
default.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from threading import Lock

from grpo_core.config import RunConfig
from grpo_core.config.places import is_below, local_path
from grpo_core.config.server_urls import ROLLOUT_HOSTS, check_host
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.runs.work import num_evaluations, work
from grpo_core.tasks import FILE, environment_named

DAY = 24 * 3600.0
LOWER = "Lower it, or run your own copy of the studio, which has no limits."


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may use; None = not limited."""

    steps: int | None = None  # updates of the policy
    new_tokens: int | None = None
    rollouts_per_step: int | None = None
    heldout: int | None = None
    waiting: int | None = None  # runs that may be queued
    per_visitor: int | None = None  # runs that one visitor may start or resume in a day
    minutes: int | None = None  # of a run, pauses included
    disk_mib: int | None = None  # of the store and of all files that visitors made
    models: tuple[str, ...] | None = None  # the only values of model.name
    turns: int | None = None  # of a completion in an environment
    tool_seconds: int | None = None  # of each tool call
    roots: tuple[Path, ...] | None = None  # models and prompt files must be below one of these

    def check(self, config: RunConfig, num_queued: int = 0) -> None:
        """Check a run before it starts. Raises InvalidConfig with every field beyond a limit."""
        problems = self._sizes(config)
        problems += self._not_offered("model.name", config.model.name)
        problems += _not_asked(config)
        if self.waiting is not None and num_queued >= self.waiting:
            problem = f"{num_queued} runs are already queued"
            hint = "Come back when one has ended."
            problems.append(FieldProblem("train.steps", config.train.steps, problem, hint))
        for field, name in _paths(config):
            problems += self._out_of_reach(field, name)
        if problems:
            raise InvalidConfig(problems)

    def check_base(self, name: str) -> None:
        """Check the base of a reward model. Raises InvalidConfig."""
        if problems := [*self._not_offered("base", name), *self._out_of_reach("base", name)]:
            raise InvalidConfig(problems)

    def _not_offered(self, field: str, name: str) -> list[FieldProblem]:
        if self.models is None or name in self.models:
            return []
        hint = f"Choose one of: {', '.join(self.models)}."
        return [FieldProblem(field, name, "this server does not offer it", hint)]

    def _out_of_reach(self, field: str, name: str) -> list[FieldProblem]:
        if self._allowed(name):
            return []
        hint = "Upload the file, or name one of the Hub."
        return [FieldProblem(field, name, "this server does not read files there", hint)]

    def _sizes(self, config: RunConfig) -> list[FieldProblem]:
        a, asked = config.algorithm, work(config)
        # The field to lower: of those that are multiplied, one that is not at its default.
        updates_field = "train.steps"
        if a.updates_per_batch > 1:
            updates_field = "algorithm.updates_per_batch"
        rollouts_field = "algorithm.dynamic_sampling" if a.dynamic_sampling else "train.group_size"
        sizes = (
            (updates_field, asked.updates, self.steps, " optimiser steps"),
            ("train.max_new_tokens", asked.new_tokens, self.new_tokens, ""),
            (rollouts_field, asked.rollouts, self.rollouts_per_step, " completions a step"),
            ("task.heldout_size", asked.evaluated, self.heldout, " completions an evaluation"),
        )
        if environment_named(config.task) or config.task.name == FILE.name:  # a row may name one
            r = config.rollout
            sizes += (
                ("rollout.max_turns", r.max_turns, self.turns, " turns"),
                ("rollout.tool_seconds", r.tool_seconds, self.tool_seconds, " s a tool call"),
            )
        problems = [
            FieldProblem(field, value, f"this server allows at most {limit:,}{unit}", LOWER)
            for field, value, limit, unit in sizes
            if limit is not None and value > limit
        ]
        most, value = self._in_evaluations, asked.completions
        if not problems and most is not None and value > most:
            problem = f"this server allows at most {most:,} completions in a run's evaluations"
            hint = "Raise it, evaluate fewer prompts, or run your own copy of the studio."
            problems.append(FieldProblem("train.eval_every", value, problem, hint))
        return problems

    @property
    def _in_evaluations(self) -> int | None:
        """Completions of the evaluations of a run at all limits that evaluates as by default."""
        if self.heldout is None or self.steps is None:
            return None
        every = RunConfig().train.eval_every
        return self.heldout * num_evaluations(self.steps, every)

    def reason_to_stop(self, seconds: float, used_bytes: int) -> str | None:
        """Why a run must stop now: limit, value and what to do. None while it may go on.

        seconds: since the run started or was resumed; used_bytes: of all that visitors made.
        """
        if self.minutes is not None and seconds > 60 * self.minutes:
            return (
                f"This server lets a run take {self.minutes:,} minutes (GRPO_MAX_MINUTES). Its "
                "state is saved: press Resume for the same time again, or run your own copy."
            )
        return self._disk_is_used_up(used_bytes)

    def _disk_is_used_up(self, used_bytes: int) -> str | None:
        if self.disk_mib is not None and used_bytes > self.disk_mib * 2**20:
            return (
                f"The runs and files of this server use {used_bytes / 2**20:,.0f} MiB; the limit "
                f"is {self.disk_mib:,} MiB (GRPO_MAX_DISK_MIB). "
                "Delete old runs on the Runs tab, then start or resume."
            )
        return None

    def check_disk(self, used_bytes: int) -> None:
        """Check the disk before a run starts. Raises StudioError if its limit is passed."""
        if reason := self._disk_is_used_up(used_bytes):
            raise StudioError(reason)

    def _allowed(self, name: str) -> bool:
        """Whether `name` is no path of this machine, or a path below the roots."""
        if self.roots is None:
            return True
        try:
            path = local_path(name)
        except ValueError:
            return False
        return path is None or is_below(path, self.roots)


class Visitors:
    """Counts the runs that each visitor started in the last day.

    Addresses are kept as salted hashes, in memory only.
    """

    def __init__(self, limit: int | None, clock: Callable[[], float] = time.time):
        self._limit = limit
        self._clock = clock
        self._salt = secrets.token_bytes(16)
        self._lock = Lock()
        self._starts: dict[bytes, list[float]] = {}  # hash of an address -> times, oldest first

    def admit(self, visitor: str | None) -> None:
        """Count one more run of this visitor. Raises InvalidConfig beyond the limit.

        visitor: an address; None for the server itself, which has no limit.
        """
        if self._limit is None or visitor is None:
            return
        key, now = self._key(visitor), self._clock()
        with self._lock:
            self._forget_before(now - DAY)
            starts = self._starts.setdefault(key, [])
            if len(starts) >= self._limit:
                raise self._refusal(len(starts), wait_seconds=starts[0] + DAY - now)
            starts.append(now)

    def _key(self, visitor: str) -> bytes:
        address = visitor.encode("utf-8", "replace")
        return blake2b(address, key=self._salt, digest_size=16).digest()

    def check(self, visitor: str | None, num_runs: int) -> None:
        """Whether this visitor may start so many more runs. Raises InvalidConfig; counts nothing.

        visitor: as in `admit`; None also while nobody is known, who may start the limit at most.
        """
        if self._limit is None:
            return
        now = self._clock()
        with self._lock:
            self._forget_before(now - DAY)
            starts = self._starts.get(self._key(visitor), []) if visitor is not None else []
            if len(starts) + num_runs > self._limit:
                wait = starts[0] + DAY - now if starts else DAY
                raise self._refusal(len(starts) + num_runs, wait)

    def _forget_before(self, oldest: float) -> None:
        recent = {key: [t for t in times if t > oldest] for key, times in self._starts.items()}
        self._starts = {key: times for key, times in recent.items() if times}

    def _refusal(self, num_runs: int, wait_seconds: float) -> InvalidConfig:
        problem = f"each visitor may start {self._limit} runs a day (GRPO_MAX_RUNS_PER_VISITOR)"
        hint = (
            f"Come back in {wait_seconds / 3600:.1f} hours, or run your own copy of the studio, "
            "which has no limits."
        )
        return InvalidConfig([FieldProblem("train.steps", num_runs, problem, hint)])


def _not_asked(config: RunConfig) -> list[FieldProblem]:
    """A rollout server that this one may not ask."""
    if config.rollout.engine == "own":
        return []
    try:
        check_host(config.rollout.url, ROLLOUT_HOSTS)
    except ValueError as error:
        hint = "Set rollout.engine to own."
        return [FieldProblem("rollout.url", config.rollout.url, str(error), hint)]
    return []


def _paths(config: RunConfig) -> list[tuple[str, str]]:
    """Field and value of every setting that may be a path on this machine."""
    task = config.task
    paths = [("model.name", config.model.name)]
    if task.name == "file":
        paths += [("task.path", task.path), ("task.heldout_source", task.heldout_source)]
    paths.append(("task.second", task.second))
    if config.rollout.engine != "own":
        paths.append(("rollout.shared_folder", config.rollout.shared_folder))
    for i, criterion in enumerate(config.rubric.criteria):
        if criterion.check == "reward_model":
            model = str(criterion.params.get("model") or "")
            paths.append((f"rubric.criteria.{i}.params.model", model))
    return [(field, path) for field, path in paths if path or field == "model.name"]


def from_environment(environment: Mapping[str, str], roots: Sequence[Path] | None) -> Limits:
    """Limits from GRPO_MAX_… variables and GRPO_MODELS (comma-separated). Raises InvalidConfig."""

    def limit(name: str) -> int | None:
        text = environment.get(name, "").strip()
        if not text:
            return None
        if not (text.isdecimal() and int(text) > 0):
            problem = "must be a whole number of at least 1"
            hint = "Correct the environment variable, or unset it."
            raise InvalidConfig([FieldProblem(name, text, problem, hint)])
        return int(text)

    models = tuple(filter(None, map(str.strip, environment.get("GRPO_MODELS", "").split(","))))
    return Limits(
        steps=limit("GRPO_MAX_STEPS"),
        new_tokens=limit("GRPO_MAX_NEW_TOKENS"),
        rollouts_per_step=limit("GRPO_MAX_ROLLOUTS"),
        heldout=limit("GRPO_MAX_HELDOUT"),
        waiting=limit("GRPO_MAX_WAITING"),
        per_visitor=limit("GRPO_MAX_RUNS_PER_VISITOR"),
        minutes=limit("GRPO_MAX_MINUTES"),
        disk_mib=limit("GRPO_MAX_DISK_MIB"),
        turns=limit("GRPO_MAX_TURNS"),
        tool_seconds=limit("GRPO_MAX_TOOL_SECONDS"),
        models=models or None,
        roots=None if roots is None else tuple(roots),
    )
