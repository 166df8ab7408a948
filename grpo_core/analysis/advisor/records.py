"""Diagnoses of runs that other trainers recorded; as in the other modules, Facts -> Notice."""

from __future__ import annotations

from grpo_core.analysis import provenance
from grpo_core.analysis.advisor.facts import Facts
from grpo_core.rubric.verdict import DISAGREES
from grpo_core.types import Notice

# Source.estimator -> how the estimator of the run is known
HOW_KNOWN = {
    "settings": "its settings",
    "found": "its other advantages",
    "assumed": "assumed",
}


def disagreement(f: Facts) -> Notice | None:
    """Groups whose recorded advantages are not those that their rewards give."""
    if f.source is None or not (several := provenance.disagreements(f.source)):
        return None
    num, name = f.source.disagreements, f.setting("algorithm.advantage")
    return Notice(
        "disagreement",
        "error",
        f.last_step,
        f"{several} with {name}.",
        {"groups": num, "estimator": str(name), "how it is known": HOW_KNOWN[f.source.estimator]},
        f.example(DISAGREES),
        "Open the group: both numbers stand there. Check that the completions of one prompt stand "
        "together, that the group size is the trained one, and that no reward was changed later.",
    )
