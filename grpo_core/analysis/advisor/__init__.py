"""Diagnoses of a run, computed from its recorded rows. A missed fault beats a false alarm."""

from grpo_core.analysis.advisor.advise import (
    CODES,
    SHOWN,
    advise,
    assess,
    facts_of,
    keep_advice,
)
from grpo_core.analysis.advisor.facts import Facts

__all__ = ["CODES", "SHOWN", "Facts", "advise", "assess", "facts_of", "keep_advice"]
