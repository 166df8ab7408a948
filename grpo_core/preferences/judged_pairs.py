"""What a reward model learns from: judged pairs, checked and split by prompt."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from grpo_core.errors import StudioError
from grpo_core.store.preferences import Preference
from grpo_core.types import Prompt

MIN_PAIRS = 10  # decided ones


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of a prompt, of which a person prefers `chosen`, or neither if `is_tie`.

    margin: how much better, in units of the person's scores; 0 if nobody said.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    is_tie: bool = False
    margin: float = 0.0

    @property
    def asked(self) -> str:
        """What tells prompts apart: two runs may give the same text different ids."""
        return self.prompt.conversation


def judged_pairs(preferences: Sequence[Preference]) -> list[Pair]:
    """The pairs of stored judgements, without those that were skipped.

    Raises StudioError if every judgement names the same side: its order is random, so whoever
    always says "left" has not compared.
    """
    sides = [p.verdict for p in preferences if p.verdict in ("left", "right")]
    on_page = [p.verdict for p in preferences if p.source in ("page", "terminal")]
    if len(sides) >= MIN_PAIRS and len(set(sides)) == 1 and sides == on_page:
        raise StudioError(
            f"pairs: all {len(sides)} judgements say {sides[0]!r}, although the order is random. "
            "Compare again, reading both answers."
        )
    pairs = []
    for p in preferences:
        margin = abs(p.margin or 0.0)
        if p.verdict == "tie":
            pairs.append(Pair(p.asked, p.left, p.right, True))
        elif p.chosen is not None and p.rejected is not None:
            pairs.append(Pair(p.asked, p.chosen, p.rejected, False, margin))
    return pairs


@dataclass(frozen=True, slots=True)
class Split:
    """Pairs to learn from and pairs to measure with; no prompt is in both."""

    train: list[Pair]
    heldout: list[Pair]


def split_by_prompt(pairs: Sequence[Pair], share: float, seed: int) -> Split:
    """Hold out whole prompts, drawn by `seed`, until they have `share` of the decided pairs.

    Raises StudioError if there are too few decided pairs or prompts.
    """
    different = [p for p in pairs if p.chosen != p.rejected]
    decided = [p for p in different if not p.is_tie]
    if not decided and pairs:
        raise StudioError(
            f"pairs: none of the {len(pairs):,} pairs has a better answer: all are ties. "
            "Compare answers that differ."
        )
    if len(decided) < MIN_PAIRS:
        raise StudioError(
            f"pairs: {len(decided)} decided pairs are too few; a reward model needs at least "
            f"{MIN_PAIRS}, and some hundred to be of use. Compare more answers on Inspect."
        )
    counts = Counter(p.asked for p in decided)
    prompts = sorted(counts)
    if len(prompts) < 2:
        raise StudioError(
            "pairs: all are answers to one prompt, so none can be held out. "
            "Compare answers to other prompts too."
        )
    random.Random(seed).shuffle(prompts)
    held: set[str] = set()
    missing = max(1, round(share * len(decided)))
    for prompt in prompts[:-1]:  # one stays to learn from
        if missing <= 0:
            break
        held.add(prompt)
        missing -= counts[prompt]
    return Split(
        [p for p in different if p.asked not in held], [p for p in different if p.asked in held]
    )
