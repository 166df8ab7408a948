"""Reads a run from the store and returns its diagnoses, the most severe first."""

from __future__ import annotations

import logging

from grpo_core.analysis.advisor import (
    criteria,
    groups,
    length,
    records,
    reward_models,
    stability,
    tools,
)
from grpo_core.analysis.advisor.facts import Facts
from grpo_core.errors import StoreError
from grpo_core.store import Store, preferences
from grpo_core.types import Notice

log = logging.getLogger("grpo_studio")

SHOWN = 3  # notices on the page at a time
GROUPS = 64  # the newest groups, which the diagnoses read

# Notices of one severity are shown in this order: causes before their consequences.
DIAGNOSES = (
    records.disagreement,
    stability.non_finite,
    stability.lr_too_high,
    length.end_token,
    reward_models.over_optimisation,
    criteria.hacking,
    length.truncation,
    tools.tool_errors,
    tools.tool_unused,
    groups.flat_reward,
    groups.phantom,
    groups.dead_groups,
    stability.kl_burst,
    stability.entropy_collapse,
    length.length_drift,
    criteria.mute_criterion,
    stability.lr_too_low,
    groups.noise,
)
CODES = tuple(d.__name__ for d in DIAGNOSES)
SEVERITIES = ("error", "warning", "info")

# Cause -> consequences. When the cause is found, its consequences are not reported.
FOLLOWS: dict[str, set[str]] = {
    "non_finite": {"lr_too_high", "kl_burst"},
    "lr_too_high": {
        "kl_burst",
        "entropy_collapse",
        "length_drift",
        "truncation",
        "phantom",
        "mute_criterion",
        "over_optimisation",
        "hacking",
        "flat_reward",
        "dead_groups",
        "noise",
        "end_token",
    },
    "end_token": {
        "truncation",
        "phantom",
        "flat_reward",
        "dead_groups",
        "length_drift",
        "mute_criterion",
    },
    "truncation": {"mute_criterion", "phantom", "dead_groups"},
    "tool_errors": {"phantom", "dead_groups", "mute_criterion", "noise"},
    "tool_unused": {"phantom", "dead_groups", "mute_criterion", "noise"},
    "flat_reward": {"dead_groups", "mute_criterion", "lr_too_low", "noise", "entropy_collapse"},
    "phantom": {"mute_criterion", "noise"},
    "over_optimisation": {
        "hacking",
        "dead_groups",
        "length_drift",
        "mute_criterion",
        "entropy_collapse",
        "noise",
    },
    "hacking": {"dead_groups", "length_drift", "mute_criterion", "entropy_collapse", "noise"},
    "dead_groups": {"noise", "mute_criterion"},
    "lr_too_low": {"noise"},
}


def assess(facts: Facts) -> list[Notice]:
    """All diagnoses that hold, without consequences of others: errors first, then warnings."""
    notices = [notice for diagnose in DIAGNOSES if (notice := diagnose(facts)) is not None]
    explained = {code for notice in notices for code in FOLLOWS.get(notice.code, ())}
    kept = [notice for notice in notices if notice.code not in explained]
    return sorted(kept, key=lambda notice: SEVERITIES.index(notice.severity))


def facts_of(store: Store, run_id: str) -> Facts:
    """The rows of a run that the diagnoses read. Raises NotFound."""
    run = store.run(run_id)
    return Facts(
        run.config,
        store.steps(run_id),
        store.metrics(run_id),
        store.newest_groups(run_id, GROUPS),
        run.error,
        preferences.judged_scores(store, run_id),
        run.source,
    )


def advise(store: Store, run_id: str) -> list[Notice]:
    """The diagnoses of a stored run, the most severe first. Raises NotFound."""
    return assess(facts_of(store, run_id))


def keep_advice(store: Store, run_id: str) -> None:
    """Write the diagnoses of a run to its alerts. What goes wrong here ends no run."""
    try:
        store.set_alerts(run_id, advise(store, run_id))
    except StoreError:  # whoever records the run meets it too, and tells it
        return
    except Exception:
        log.warning("no advice on run %s", run_id, exc_info=True)
