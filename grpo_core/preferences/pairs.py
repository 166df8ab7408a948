"""Which two completions a person judges next. Order and run stay hidden."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice

from grpo_core.store import GroupRow, Store
from grpo_core.store.preferences import Preference
from grpo_core.types import GroupKind, Prompt

AGAIN_SHARE = 0.1  # of the pairs are judged again, so that agreement can be measured
REST = 5  # a person's pair comes again after at least this many other ones
SCORED = 64  # pairs that a scorer is asked about, of which the least sure one is shown
MAX_RANKED = 12  # completions that are ranked together: 66 pairs

Scorer = Callable[[Sequence[tuple[Prompt, str]]], Sequence[float | None]]
Key = tuple[str, frozenset[str]]  # a pair whatever its order: the prompt, and both texts


@dataclass(frozen=True, slots=True)
class Asker:
    """Who judges, and how pairs are drawn for them: the same values draw the same pair again.

    scorer: (prompt, completion) -> a reward model's logit, None if it could not be scored.
    """

    who: str = ""
    run_id: str | None = None  # None: of all runs
    seed: int = 0
    scorer: Scorer | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt, with the side on which each is shown.

    row_id: of the judgement that comes again; None for a new pair.
    """

    prompt_id: str
    prompt: str
    before: Sequence[Mapping[str, str]]
    left: str
    right: str
    run_id: str | None
    group_id: int | None
    row_id: int | None = None

    @property
    def key(self) -> Key:
        return self.prompt, frozenset((self.left, self.right))

    @property
    def swapped(self) -> Pair:
        return replace(self, left=self.right, right=self.left)

    def judged(
        self, verdict: str, who: str, source: str, seconds: float | None = None
    ) -> Preference:
        """The judgement to store."""
        return Preference(
            prompt_id=self.prompt_id,
            prompt=self.prompt,
            before=self.before,
            left=self.left,
            right=self.right,
            verdict=verdict,
            who=who,
            seconds=seconds,
            created_at=time.time(),
            source=source,
            run_id=self.run_id,
            group_id=self.group_id,
        )


def key_of(row: Preference) -> Key:
    return row.prompt, frozenset((row.left, row.right))


def pair_of(row: Preference) -> Pair:
    """The pair of a stored judgement, as it was shown."""
    place = row.run_id, row.group_id
    return Pair(row.prompt_id, row.prompt, row.before, row.left, row.right, *place, row.id or None)


def next_pair(store: Store, rows: Sequence[Preference], asker: Asker) -> Pair | None:
    """A pair that this person has neither judged nor skipped; None if there is none left.

    About one in ten is to be judged again: one of their own with its sides swapped, or one that
    somebody else judged. With a scorer, of SCORED pairs the one whose Bradley–Terry probability
    σ(s_left − s_right) is nearest 1/2 (uncertainty sampling, arXiv:cmp-lg/9407020).
    rows: all judgements of the store, the oldest first.
    """
    mine = [row for row in rows if row.who == asker.who]
    draw = random.Random(f"{asker.seed} {asker.who} {len(mine)}")
    again = _again(rows, mine, asker, draw) if draw.random() < AGAIN_SHARE else None
    if again is not None:
        return again
    fresh = _fresh(store, {key_of(row) for row in mine}, asker.run_id, draw)
    if asker.scorer is None:
        return next(fresh, None)
    return _least_sure(list(islice(fresh, SCORED)), asker.scorer)


def _again(
    rows: Sequence[Preference], mine: Sequence[Preference], asker: Asker, draw: random.Random
) -> Pair | None:
    """A pair to judge again; None if there is none."""
    times = Counter(key_of(row) for row in mine)
    own = [row for row in mine[:-REST] if row.verdict != "skip" and times[key_of(row)] == 1]
    others = [
        row
        for row in rows
        if row.who != asker.who and row.verdict != "skip" and key_of(row) not in times
    ]
    lists = [
        [row for row in found if asker.run_id in (None, row.run_id)] for found in (own, others)
    ]
    lists = [found for found in lists if found]
    if not lists:
        return None
    chosen = draw.choice(lists)
    pair = pair_of(draw.choice(chosen))
    return pair.swapped if chosen[0].who == asker.who or draw.random() < 0.5 else pair


def _fresh(
    store: Store, known: set[Key], run_id: str | None, draw: random.Random
) -> Iterator[Pair]:
    """Pairs that are not known, in random order: first one of each group, then the others."""
    groups, others = _group_ids(store, run_id), []
    draw.shuffle(groups)
    for group_id in groups:
        pairs = [p for p in pairs_of(store.group(group_id), draw) if p.key not in known]
        draw.shuffle(pairs)
        yield from pairs[:1]
        others += pairs[1:]
    draw.shuffle(others)
    yield from others


def _group_ids(store: Store, run_id: str | None) -> list[int]:
    runs = [run_id] if run_id is not None else [run.id for run in store.runs()]
    return [i for run in runs for kind in GroupKind for i in store.all_group_ids(run, kind)]


def pairs_of(group: GroupRow, draw: random.Random) -> list[Pair]:
    """All pairs of distinct completions of a group, each with its sides at random."""
    both = [
        Pair(group.prompt_id, group.prompt, group.before, left, right, group.run_id, group.id)
        for left, right in combinations(distinct_texts(group), 2)
    ]
    return [pair.swapped if draw.random() < 0.5 else pair for pair in both]


def distinct_texts(group: GroupRow) -> list[str]:
    """The different completions of a group; blanks around a text make no difference."""
    return list({rollout.text.strip(): rollout.text for rollout in group.rollouts}.values())


def _least_sure(pairs: Sequence[Pair], scorer: Scorer) -> Pair | None:
    if not pairs:
        return None
    texts = [(_asked(pair), text) for pair in pairs for text in (pair.left, pair.right)]
    scores = iter(scorer(texts))

    def doubt() -> float:
        left, right = next(scores), next(scores)
        return float("inf") if left is None or right is None else abs(left - right)

    doubts = [doubt() for _ in pairs]
    return pairs[doubts.index(min(doubts))]


def _asked(pair: Pair) -> Prompt:
    return pair.judged("skip", "", "").asked


# ---- ranking -------------------------------------------------------------------------------------


def next_ranking(
    store: Store, rows: Sequence[Preference], asker: Asker
) -> tuple[GroupRow, list[str]] | None:
    """A group of which this person has ranked nothing, and the texts to rank in random order.

    At most MAX_RANKED texts; None if no group is left.
    """
    mine = [row for row in rows if row.who == asker.who]
    ranked = {key_of(row) for row in mine if row.ranking}
    draw = random.Random(f"{asker.seed} {asker.who} {len(mine)} ranking")
    groups = _group_ids(store, asker.run_id)
    draw.shuffle(groups)
    for group_id in groups:
        group = store.group(group_id)
        texts = distinct_texts(group)
        keys = {(group.prompt, frozenset(both)) for both in combinations(texts, 2)}
        if keys and not keys & ranked:
            draw.shuffle(texts)
            return group, texts[:MAX_RANKED]
    return None


@dataclass(frozen=True, slots=True)
class Ranking:
    """A group's completions, the best first, as a person ranked them."""

    id: str
    group: GroupRow
    texts: Sequence[str]
    skipped: bool = False

    def judged(self, who: str, seconds: float | None) -> list[Preference]:
        """One judgement for each pair; their sides alternate, so that no side always wins.

        A ranking of K texts has K (K − 1) / 2 pairs: InstructGPT, arXiv:2203.02155, section 3.5.
        seconds: of the whole ranking, shared equally.
        """
        group, rows = self.group, []
        both = list(combinations(self.texts, 2))
        for n, (better, worse) in enumerate(both):
            pair = Pair(
                group.prompt_id, group.prompt, group.before, better, worse, group.run_id, group.id
            )
            verdict = "left"
            if n % 2:
                pair, verdict = pair.swapped, "right"
            share = None if seconds is None else seconds / len(both)
            row = pair.judged("skip" if self.skipped else verdict, who, "ranking", share)
            rows.append(replace(row, ranking=self.id))
        return rows
