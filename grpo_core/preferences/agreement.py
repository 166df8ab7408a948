"""How far two people agree, and one person with themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grpo_core.preferences.pairs import Key, key_of
from grpo_core.store.preferences import Preference

OTHER_SIDE = {"left": "right", "right": "left", "tie": "tie"}


@dataclass(frozen=True, slots=True)
class Agreement:
    """num_pairs: that were judged twice. kappa: None where it is not defined."""

    num_pairs: int
    same_frac: float | None  # share of equal judgements
    kappa: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """One person's judgements. With whom: name -> agreement over the pairs both judged."""

    num_judged: int
    num_skipped: int
    own: Agreement
    others: Mapping[str, Agreement]


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Agreement beyond chance of two lists of equal length.

        κ = (p_o − p_e) / (1 − p_e),   p_e = Σ_k share_1(k) · share_2(k)

    p_o: share of equal judgements. Cohen 1960, Educational and Psychological Measurement 20(1),
    pages 37–46. None for empty lists, and where both always say one and the same (p_e = 1).
    """
    assert len(first) == len(second)
    n = len(first)
    if not n:
        return None
    same = sum(a == b for a, b in zip(first, second, strict=True))
    # Whole numbers, so that p_e = 1 is found exactly.
    chance = sum(first.count(k) * second.count(k) for k in set(first))
    return None if chance == n * n else (same * n - chance) / (n * n - chance)


def between(first: Sequence[Preference], second: Sequence[Preference]) -> Agreement:
    """Agreement of two people over the pairs that both judged; of each the first judgement.

    Which side a text stood on is by chance. So each pair counts in both orders, and kappa does not
    depend on the order.
    """
    a, b = _first_judgements(first), _first_judgements(second)
    return _agreement([(a[key], b[key]) for key in a if key in b])


def with_oneself(rows: Sequence[Preference]) -> Agreement:
    """Agreement of one person's first and second judgement of the same pair."""
    first: dict[Key, Preference] = {}
    second: dict[Key, Preference] = {}
    for row in _counted(rows):
        if first.setdefault(key_of(row), row) is not row:
            second.setdefault(key_of(row), row)
    return _agreement([(first[key], row) for key, row in second.items()])


def summary(rows: Sequence[Preference], who: str) -> Summary:
    """What one person judged, and with whom they agree. rows: all judgements of the store."""
    by_person: dict[str, list[Preference]] = {}
    for row in rows:
        by_person.setdefault(row.who, []).append(row)
    mine = by_person.pop(who, [])
    others = {name: between(mine, theirs) for name, theirs in by_person.items()}
    judged = len(list(_counted(mine)))
    met = {name: found for name, found in others.items() if found.num_pairs}
    return Summary(judged, len(mine) - judged, with_oneself(mine), met)


def _counted(rows: Sequence[Preference]) -> list[Preference]:
    return [row for row in rows if row.verdict != "skip"]


def _first_judgements(rows: Sequence[Preference]) -> dict[Key, Preference]:
    found: dict[Key, Preference] = {}
    for row in _counted(rows):
        found.setdefault(key_of(row), row)
    return found


def _agreement(twice: Sequence[tuple[Preference, Preference]]) -> Agreement:
    if not twice:
        return Agreement(0, None, None)
    first, second = [], []
    for a, b in twice:
        theirs = b.verdict if a.left == b.left else OTHER_SIDE[b.verdict]
        first += [a.verdict, OTHER_SIDE[a.verdict]]
        second += [theirs, OTHER_SIDE[theirs]]
    same = sum(x == y for x, y in zip(first, second, strict=True)) / len(first)
    return Agreement(len(twice), same, cohen_kappa(first, second))
