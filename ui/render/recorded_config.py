"""What the pages read from a run's recorded configuration. Fields may be missing in old files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from grpo_core.config.options import GROUPINGS
from grpo_core.store import RunRow, Source

Config = Mapping[str, Any]
SOURCE = "source"  # a key that RunConfig has no section for


def shown_config(run: RunRow | None) -> Config:
    """A run's configuration for what draws its groups; of another trainer's run with its source."""
    if run is None or run.source is None:
        return run.config if run else {}
    return {**run.config, SOURCE: run.source}


def source_of(config: Config) -> Source | None:
    source = config.get(SOURCE)
    return source if isinstance(source, Source) else None


def criteria_of(config: Config) -> list[dict[str, Any]]:
    """The rubric's criteria as recorded: name, weight, outcome."""
    criteria = (config.get("rubric") or {}).get("criteria") or []
    return [dict(c) for c in criteria if isinstance(c, Mapping) and "name" in c]


def algorithm_of(config: Config) -> Mapping[str, Any]:
    return config.get("algorithm") or {}


def estimator_of(config: Config) -> str:
    return str(algorithm_of(config).get("advantage", "group_std"))


def wider_grouping(config: Config) -> str:
    """What an advantage compares a completion with, e.g. "over the step's completions".

    Empty if that is the default: the other completions of its own prompt.
    """
    grouping = str(algorithm_of(config).get("grouping", "prompt"))
    if grouping == "prompt" or grouping not in GROUPINGS:
        return ""
    return GROUPINGS[grouping].formula


def highest_reward(config: Config) -> float:
    """The reward of a completion with every score at 1: the full length of a reward bar."""
    return sum(float(c.get("weight") or 0) for c in criteria_of(config)) or 1.0


def advantage_scale(config: Config, group_size: int) -> float:
    """The advantage that fills a bar: the largest that the estimator can give, at most 3.

    It is the same in the whole run, so that bars of different groups can be compared.
    In a group of G the largest (r − mean)/std is (G − 1)/√G: one completion against all others.
    """
    estimator = estimator_of(config)
    if estimator == "value":
        # A critic's advantages are unbounded, but whitened over the step's tokens:
        # a completion's mean beyond 3 standard deviations is rare.
        return 3.0
    if estimator in ("group_std", "batch_std", "rank", "per_criterion"):
        return min(3.0, max(1.0, (group_size - 1) / math.sqrt(max(1, group_size))))
    return min(3.0, highest_reward(config))
