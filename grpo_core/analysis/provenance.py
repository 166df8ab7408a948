"""What is known of the fields of a run that another trainer made, as sentences. Pure."""

from __future__ import annotations

from grpo_core.analysis.text import together
from grpo_core.config.options import ADVANTAGES
from grpo_core.store import Source

# field of a record -> what a person calls it
FIELDS = {
    "prompt": "prompts",
    "completion": "completions",
    "answer": "right answers",
    "reward": "rewards",
    "scores": "scores by criterion",
    "advantage": "advantages",
    "token_ids": "tokens",
    "sampling_logprobs": "log-probabilities when sampled",
    "logprobs": "log-probabilities at the update",
    "ref_logprobs": "log-probabilities of the reference",
    "entropy": "entropies",
    "finish_reason": "ends of the completions",
    "turns": "turns",
    "metrics": "metrics of the steps",
}


def whose(source: Source) -> str:
    """Who wrote the records, inside a sentence."""
    return "the table" if source.format == "table" else source.trainer


def is_absent(source: Source | None, field: str) -> bool:
    return source is not None and field in source.absent


def why_absent(source: Source, field: str) -> str:
    """Why there is no value: for the place where it would stand."""
    return f"Not known: the records of {whose(source)} have no {FIELDS.get(field, field)}."


def why_missing(source: Source | None, field: str) -> str:
    """The same where the whole run has no value; empty where it has some, and for our own runs."""
    if source is None or not is_absent(source, field):
        return ""
    return why_absent(source, field)


def how_made(source: Source, field: str) -> str:
    """How a recomputed field was made; empty for any other."""
    how = source.recomputed.get(field)
    if how is None:
        return ""
    if how in ADVANTAGES:
        how = f"{how}: {ADVANTAGES[how].formula}"
    return f"Not recorded by {whose(source)}; recomputed here, {how}."


def recorded(source: Source) -> str:
    """“prompts, completions and rewards”; empty if nothing was recorded."""
    return together([FIELDS.get(f, f) for f in source.recorded])


def recomputed(source: Source) -> str:
    """“advantages (group_std)”; empty if nothing was."""
    return together([f"{FIELDS.get(f, f)} ({how})" for f, how in source.recomputed.items()])


def absent(source: Source) -> str:
    """“tokens and entropies”; empty if nothing is."""
    return together([FIELDS.get(f, f) for f in source.absent])


def disagreements(source: Source) -> str:
    """How many groups disagree, as a sentence without its full stop; empty if none does."""
    num = source.disagreements
    several, their = (f"{num:,} groups have", "their") if num != 1 else ("1 group has", "its")
    return f"{several} recorded advantages that {their} rewards do not give" if num else ""
