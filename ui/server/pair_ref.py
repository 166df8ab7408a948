"""The pair or the ranking that a browser shows, as JSON: places in the store instead of texts.

A judgement names what was shown, so it is about exactly that, whatever happened meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from grpo_core.errors import NotFound
from grpo_core.preferences.pairs import Pair, key_of, pair_of
from grpo_core.store import GroupRow, RolloutRow, Store
from grpo_core.store.preferences import Preference
from grpo_core.types import Completion


def of_pair(store: Store, pair: Pair, mine: Sequence[Preference]) -> str:
    """mine: the person's judgements; `times` is how often they judged this pair."""
    times = sum(key_of(row) == pair.key for row in mine)
    known = {"times": times, "check": _check(pair.prompt, pair.left, pair.right)}
    if pair.row_id is not None:
        return json.dumps({"row": pair.row_id, **known})
    group = store.group(pair.group_id or 0)
    texts = [rollout.text for rollout in group.rollouts]
    sides = {"left": texts.index(pair.left), "right": texts.index(pair.right)}
    return json.dumps({"group": group.id, **sides, **known})


def of_ranking(group: GroupRow, texts: Sequence[str]) -> str:
    """Its group, and the place of each text among the group's completions, as shown."""
    all_texts = [rollout.text for rollout in group.rollouts]
    order = [all_texts.index(text) for text in texts]
    return json.dumps({"group": group.id, "order": order, "check": _check(group.prompt, *texts)})


def pair_at(store: Store, rows: Sequence[Preference], ref: Mapping[str, Any]) -> Pair | None:
    """The pair; None if its run was deleted meanwhile, or for anything else a browser may send."""
    if "row" in ref:
        row = next((row for row in rows if row.id == ref["row"]), None)
        pairs = [] if row is None else [pair_of(row), pair_of(row).swapped]
    else:
        pairs = _pairs_at(_group(store, ref), ref)
    said = ref.get("check")
    return next((p for p in pairs if _check(p.prompt, p.left, p.right) == said), None)


def _pairs_at(group: GroupRow | None, ref: Mapping[str, Any]) -> list[Pair]:
    left, right = (_text_at(group, ref.get(side)) for side in ("left", "right"))
    if group is None or left is None or right is None or left == right:
        return []
    return [Pair(group.prompt_id, group.prompt, group.before, left, right, group.run_id, group.id)]


def answers_of(store: Store, pair: Pair) -> tuple[RolloutRow | Completion, RolloutRow | Completion]:
    """Left and right as they were written, in turns; the text alone if the group is gone."""
    group = _group(store, {"group": pair.group_id})
    if group is None or group.prompt != pair.prompt:
        return _alone(pair.left), _alone(pair.right)
    return in_turns(group, pair.left), in_turns(group, pair.right)


def in_turns(group: GroupRow, text: str) -> RolloutRow | Completion:
    """The group's first completion with this text; the text alone if it has none."""
    return next((r for r in group.rollouts if r.text == text), _alone(text))


def _alone(text: str) -> Completion:
    return Completion(text, None, None)


def ranking_at(store: Store, ref: Mapping[str, Any]) -> tuple[GroupRow, list[str]] | None:
    """The group and the texts as they were shown; None as in pair_at."""
    group, order = _group(store, ref), ref.get("order")
    if group is None or not isinstance(order, list) or len(order) < 2:
        return None
    texts = [text for at in order if (text := _text_at(group, at)) is not None]
    is_same = _check(group.prompt, *texts) == ref.get("check")
    return (group, texts) if is_same and len(set(texts)) == len(order) else None


def _group(store: Store, ref: Mapping[str, Any]) -> GroupRow | None:
    try:
        return store.group(ref["group"]) if type(ref.get("group")) is int else None
    except NotFound:
        return None


def _text_at(group: GroupRow | None, at: Any) -> str | None:
    is_place = group is not None and isinstance(at, int) and not isinstance(at, bool)
    if group is None or not is_place or not 0 <= at < len(group.rollouts):
        return None
    return group.rollouts[at].text


def _check(*texts: str) -> str:
    """A hash of the texts: the store gives the id of a deleted row to another one."""
    return blake2b("\0".join(texts).encode(), digest_size=8).hexdigest()
