"""The verdict of a group: a pill, and a sentence that explains it. Rows -> escaped HTML; pure."""

from __future__ import annotations

from grpo_core.analysis.provenance import why_missing
from grpo_core.rubric.verdict import DISAGREES, VERDICTS, SiblingScores, explain, variance_shares
from grpo_core.store import GroupRow
from grpo_core.types import GroupKind
from ui.render.recorded_config import (
    Config,
    algorithm_of,
    criteria_of,
    estimator_of,
    source_of,
    wider_grouping,
)
from ui.render.text import esc, is_number

# Colours of good verdicts and of those that need attention; the rest is neutral. The label says
# the same, so colour is not the only cue.
TONES = {
    "healthy": "good",
    "graded": "good",
    "polish": "good",
    "phantom": "warn",
    "truncated": "warn",
    "unscored": "warn",
    "dominated": "warn",
    "disagrees": "bad",
    "no_call": "warn",
}

# What the labels mean, shown on hover.
MEANINGS = {
    "healthy": "Some completions are right and some are wrong: the policy learns which to prefer.",
    "graded": "Rewards differ: the policy learns better from worse.",
    "polish": "All completions are right. Only smaller criteria, such as format, still differ.",
    "all_right": "All completions are right and have equal rewards: nothing to prefer.",
    "all_wrong": "All completions are wrong and have equal rewards: nothing to prefer.",
    "tied": "All rewards are equal: nothing to prefer.",
    "phantom": "No completion is right, yet smaller criteria still push the policy.",
    "gated": "No completion is right, so the gate holds the smaller criteria back.",
    "truncated": "Many completions were cut at the token limit and scored without their end.",
    "dominated": "One criterion decides nearly all of the reward and hides the others.",
    "no_call": "The policy had tools, and no completion of the group called one: nothing here can "
    "teach it to.",
    "unscored": "Too few completions could be scored to compare them.",
    "disagrees": "Another trainer recorded advantages that do not follow from these rewards.",
}


def verdict_pill(code: str) -> str:
    label = VERDICTS.get(code, (code, ""))[0]
    meaning = f' title="{esc(MEANINGS[code])}"' if code in MEANINGS else ""
    return f'<span class="verdict {TONES.get(code, "plain")}"{meaning}>{esc(label)}</span>'


def verdict_line(group: GroupRow, config: Config) -> str:
    """The pill and the sentence."""
    sentence = esc(verdict_sentence(group, config))
    return f'<div class="says">{verdict_pill(group.verdict)}<span>{sentence}</span></div>'


def verdict_sentence(group: GroupRow, config: Config) -> str:
    """What the group teaches, with its own numbers; empty for a verdict of a newer version."""
    if group.kind == GroupKind.EVALUATION:
        return (
            f"A held-out prompt, answered after step {group.step:,}. "
            "The run never trains on it, so there are no advantages."
        )
    if group.verdict not in VERDICTS:
        return ""
    if why := why_missing(source_of(config), "reward"):
        return f"{why} So there is nothing to compare."
    if group.verdict == DISAGREES:
        return _disagreement(config)
    criteria = criteria_of(config)
    weights = {str(c["name"]): float(c.get("weight") or 0) for c in criteria}
    outcome = next((c["name"] for c in criteria if c.get("outcome")), None)
    siblings = SiblingScores(
        [r.reward for r in group.rollouts],
        [r.scores.get(outcome) for r in group.rollouts] if outcome else [],
        [r.finish_reason for r in group.rollouts],
        variance_shares([r.scores for r in group.rollouts], weights),
    )
    return explain(group.verdict, siblings, _compared_with(config), _other_loss_terms(config))


def _disagreement(config: Config) -> str:
    """Which two numbers differ, and under which assumption."""
    source, name = source_of(config), estimator_of(config)
    whose = source.trainer if source else "another trainer"
    return (
        f"The advantages that {whose} recorded are not those that these rewards give with {name}. "
        "Either other rewards were compared, or these completions were not one group."
    )


def _compared_with(config: Config) -> str:
    """What an advantage compares a completion with, other than its prompt's completions.

    If there is such a thing, a tied group can have advantages other than 0. Empty otherwise.
    """
    if estimator_of(config) == "value":
        return "a critic's predictions"
    return wider_grouping(config).removeprefix("over ")


def _other_loss_terms(config: Config) -> list[str]:
    """Terms of the loss that do not depend on advantages: they train on tied groups too."""
    a = algorithm_of(config)
    terms = []
    if _above_zero(a.get("kl_coef")):
        terms.append("KL term")
    if _above_zero(a.get("entropy_coef")) or a.get("entropy_target") is not None:
        terms.append("entropy bonus")
    return terms


def _above_zero(value: object) -> bool:
    return is_number(value) and value > 0
