"""The group that best shows what a run has learned: what “See why” opens."""

from __future__ import annotations

from collections.abc import Sequence

from grpo_core.store import PromptVisits, RunRow, Store
from grpo_core.types import GroupKind
from ui.render.place import Place
from ui.render.run_end import Telling

NEWEST = 64  # groups of the last steps that are looked at


def telling_group(store: Store, run: RunRow, repeated: Sequence[PromptVisits]) -> Telling | None:
    """A held-out prompt whose answer changed as the held-out accuracy did, else a trained group.

    That is the group whose rewards differ most in the last step where any do: in a tied group there
    is nothing to see. repeated: the prompts that came up more than once. None: there is no group.
    """
    return _changed_prompt(store, run, repeated) or _widest_group(store, run)


def opening_group(store: Store, run_id: str, step: int) -> int:
    """Position of the group that an ended run opens with: its first of this step.

    If that one is tied, as often in the last step, the one whose rewards differ most.
    """
    found = store.groups(
        run_id, step_from=step, step_to=step, sort="reward_std", descending=True, limit=NEWEST
    ).rows
    if any(g.position == 0 and g.reward_std for g in found):
        return 0
    return next((g.position for g in found if g.reward_std), 0)  # the widest comes first


def _changed_prompt(store: Store, run: RunRow, repeated: Sequence[PromptVisits]) -> Telling | None:
    before, after = run.heldout_before, run.heldout_after
    if before is None or after is None or before == after:
        return None
    sign = 1 if after > before else -1
    best, found = 0.0, None
    for prompt in repeated:
        if not prompt.is_heldout:
            continue
        visits = [
            v
            for v in store.visits(run.id, prompt.prompt_id)
            if v.kind == GroupKind.EVALUATION and v.reward_mean is not None
        ]
        if len(visits) < 2:
            continue
        change = sign * ((visits[-1].reward_mean or 0.0) - (visits[0].reward_mean or 0.0))
        if change > best:
            best, found = change, visits[-1]
    if found is None:
        return None
    what = "better" if sign > 0 else "worse"
    why = f"Opens a held-out prompt that is answered {what} than before training, through time"
    return Telling(Place(found.step, found.position, found.kind), "time", why)


def _widest_group(store: Store, run: RunRow) -> Telling | None:
    newest = store.newest_groups(run.id, NEWEST)
    if not newest:
        return None
    last = max((g.step for g in newest if g.reward_std), default=None)
    if last is None:
        why = f"Opens step {newest[0].step:,}: all rewards of a group are equal in the last steps"
        return Telling(Place(newest[0].step, newest[0].position), "cards", why)
    group = max((g for g in newest if g.step == last), key=lambda g: g.reward_std or 0.0)
    why = f"Opens the group of step {last:,} whose rewards differ most"
    return Telling(Place(group.step, group.position), "cards", why)
