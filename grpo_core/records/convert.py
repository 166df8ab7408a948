"""Records of another trainer as our rollouts, tokens and groups. Pure functions."""

from __future__ import annotations

import logging
import math
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from grpo_core.config import RunConfig, with_changes
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.records.record import (
    MAX_WHOLE,
    PER_TOKEN,
    SourceGroup,
    SourceRollout,
    SourceRun,
    SourceStep,
)
from grpo_core.records.rubric import SourceRubric
from grpo_core.types import Group, StepTokens, TokenRecord

log = logging.getLogger("grpo_studio.import")  # one line for everything that was left out
MAX_TEXT = 400_000  # characters of a text that are kept; a page shows no more at once
TASK = "recorded"  # the task and the rubric of such a run


def kept_text(text: str, what: str) -> str:
    """The beginning of a text that is too long."""
    if len(text) <= MAX_TEXT:
        return text
    log.warning("%s has %s characters; those after %s were left out.", what, len(text), MAX_TEXT)
    return text[:MAX_TEXT] + "…"


def tokens_of(
    groups: Sequence[SourceGroup], pieces: Mapping[int, str | bytes]
) -> StepTokens | None:
    """The token records of a step's groups; None without any. nan: a token of a tool."""
    records = {
        (i, j): _token_record(rollout)
        for i, group in enumerate(groups)
        for j, rollout in enumerate(group.rollouts)
        if rollout.token_ids
    }
    texts = {
        i: t if isinstance(t, bytes) else t.encode("utf-8", "replace") for i, t in pieces.items()
    }
    return StepTokens(records, texts) if records or texts else None


def _token_record(rollout: SourceRollout) -> TokenRecord:
    acts = rollout.action_mask

    def column(name: str) -> array[float] | None:
        values = getattr(rollout, name)
        if not values:
            return None
        if acts is None:
            return array("f", values)
        return array("f", [v if a else math.nan for v, a in zip(values, acts, strict=True)])

    return TokenRecord(array("i", rollout.token_ids or ()), *(column(name) for name in PER_TOKEN))


def heldout_metrics(groups: Sequence[Group], outcome: str | None) -> dict[str, float | None]:
    """Mean reward, and the share that reaches the outcome where the rubric has one."""
    rollouts = [r for g in groups for r in g.rollouts]
    rewards = [r.reward for r in rollouts if r.reward is not None]
    metrics: dict[str, float | None] = {}
    if rewards:
        metrics["heldout/reward"] = sum(rewards) / len(rewards)
    reached = [s >= 1 for r in rollouts if outcome and (s := r.scores.get(outcome)) is not None]
    if reached:
        metrics["heldout/accuracy"] = sum(reached) / len(reached)
    return metrics


def num_tokens(rollout: SourceRollout) -> int | None:
    """Of the tokens that the policy wrote."""
    if rollout.num_tokens is not None or rollout.token_ids is None:
        return rollout.num_tokens
    return len(rollout.token_ids) if rollout.action_mask is None else sum(rollout.action_mask)


def rubric_fields(rubric: SourceRubric) -> dict[str, Any]:
    return {"rubric.name": TASK, "rubric.criteria": rubric.criteria}


def changed(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """With these fields changed; a value that we do not allow is left out."""
    for name, value in changes.items():
        with suppress(InvalidConfig):
            config = with_changes(config, {name: value})
    return config


def reward_weights(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    weights = settings.get("reward_weights")
    return weights if isinstance(weights, Mapping) else {}


def check_run(run: SourceRun) -> None:
    """Raises InvalidConfig for what cannot be stored."""
    if problems := _check_counts({"run.num_steps": run.num_steps}):
        raise InvalidConfig(problems)


def check(step: SourceStep) -> None:
    """Raises InvalidConfig for what cannot be stored."""
    problems = _check_counts({"step.step": step.step, "step.part": step.part})
    for i, group in enumerate(step.groups):
        at = f"step.groups.{i}"
        if not group.rollouts:
            problems.append(FieldProblem(at, (), "has no completions", "Leave the group out."))
        for j, rollout in enumerate(group.rollouts):
            problems += _check_rollout(f"{at}.rollouts.{j}", rollout)
    if problems:
        raise InvalidConfig(problems[:20])


def _check_counts(values: Mapping[str, int | None]) -> list[FieldProblem]:
    return [
        FieldProblem(at, value, f"must be a whole number from 0 to {MAX_WHOLE}", "")
        for at, value in values.items()
        if value is not None and not 0 <= value <= MAX_WHOLE
    ]


def _check_rollout(at: str, rollout: SourceRollout) -> list[FieldProblem]:
    ids = rollout.token_ids or ()
    counts = {f"{at}.num_tokens": rollout.num_tokens}
    for k, turn in enumerate(rollout.turns):
        counts[f"{at}.turns.{k}.first_token"] = turn.first_token
        counts[f"{at}.turns.{k}.num_tokens"] = turn.num_tokens
    problems = _check_counts(counts)
    if not all(-(2**31) <= i < 2**31 for i in ids):
        problems.append(FieldProblem(f"{at}.token_ids", "…", "an id does not fit 32 bits", ""))
    for name in ("action_mask", *PER_TOKEN):
        values = getattr(rollout, name)
        if values and len(values) != len(ids):
            problem = f"has {len(values)} values for {len(ids)} tokens"
            problems.append(FieldProblem(f"{at}.{name}", "…", problem, "One value a token."))
    return problems
