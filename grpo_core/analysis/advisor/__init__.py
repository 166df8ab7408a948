"""What is wrong with a run, if anything, told from its recorded rows. No notice is better than a wrong one."""

from grpo_core.analysis.advisor.advise import CODES, SHOWN, advise, assess, facts_of
from grpo_core.analysis.advisor.facts import Facts

__all__ = ["CODES", "SHOWN", "Facts", "advise", "assess", "facts_of"]
