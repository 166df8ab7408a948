"""A run in the store -> its diagnoses, worst first."""

from __future__ import annotations

from grpo_core.analysis.advisor import diagnoses, signals
from grpo_core.analysis.advisor.facts import Facts
from grpo_core.store import Store
from grpo_core.types import Notice

SHOWN = 3  # on the page at a time
GROUPS = 64  # newest groups that are read

# In the order in which notices of one severity are shown: causes before what follows from them.
DIAGNOSES = (
    diagnoses.non_finite,
    diagnoses.lr_too_high,
    diagnoses.end_token,
    diagnoses.hacking,
    diagnoses.truncation,
    diagnoses.flat_reward,
    diagnoses.phantom,
    diagnoses.dead_groups,
    signals.kl_burst,
    signals.entropy_collapse,
    signals.length_drift,
    signals.mute_criterion,
    diagnoses.lr_too_low,
    signals.noise,
)
CODES = tuple(d.__name__ for d in DIAGNOSES)
SEVERITIES = ("error", "warning", "info")

# What follows from another illness is not a second one.
FOLLOWS: dict[str, set[str]] = {
    "non_finite": {"lr_too_high", "kl_burst"},
    "lr_too_high": {
        "kl_burst",
        "entropy_collapse",
        "length_drift",
        "truncation",
        "phantom",
        "mute_criterion",
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
    "flat_reward": {"dead_groups", "mute_criterion", "lr_too_low", "noise", "entropy_collapse"},
    "phantom": {"mute_criterion", "noise"},
    "hacking": {"dead_groups", "length_drift", "mute_criterion", "entropy_collapse", "noise"},
    "dead_groups": {"noise", "mute_criterion"},
    "lr_too_low": {"noise"},
}


def assess(facts: Facts) -> list[Notice]:
    """Every diagnosis that holds and does not merely follow from another; errors first, then warnings, then hints. Pure."""
    found = [notice for diagnose in DIAGNOSES if (notice := diagnose(facts)) is not None]
    explained = {code for notice in found for code in FOLLOWS.get(notice.code, ())}
    kept = [n for n in found if n.code not in explained]
    return sorted(kept, key=lambda n: SEVERITIES.index(n.severity))


def facts_of(store: Store, run_id: str) -> Facts:
    """What the diagnoses need of a run. NotFound."""
    run = store.run(run_id)
    return Facts(
        run.config,
        store.steps(run_id),
        store.metrics(run_id),
        store.newest_groups(run_id, GROUPS),
        run.error,
    )


def advise(store: Store, run_id: str) -> list[Notice]:
    return assess(facts_of(store, run_id))
