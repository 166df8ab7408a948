"""A place in a run, as it travels between browser and server: "37/2" is step 37, third group. Anything may arrive."""

from __future__ import annotations

import re
from typing import Any

_PLACE = re.compile(r"([0-9]{1,9})/([0-9]{1,6})")

GroupRef = tuple[int, int]  # step, position of the group in it, from 0


def parse(text: Any) -> GroupRef | None:
    match = _PLACE.fullmatch(text) if isinstance(text, str) else None
    return (int(match[1]), int(match[2])) if match else None


def text(place: GroupRef | None) -> str:
    return "" if place is None else f"{place[0]}/{place[1]}"


def from_query(query: Any) -> GroupRef | None:
    """?step=37&group=3, where groups count from 1, as on the page."""
    step, group = str(query.get("step", "")), str(query.get("group", "1"))
    if not (step.isascii() and step.isdigit() and len(step) < 10):
        return None
    first = group.isascii() and group.isdigit() and len(group) < 7 and int(group) > 0
    return (int(step), int(group) - 1 if first else 0)


# Keeps the address in step with the page, so that it can be shared and reloaded; nothing is sent for it.
# Inputs: tab, run, the pinned place of Train, the opened place of Inspect.
ADDRESS_JS = """(tab, run, pin, opened) => {
  const url = new URL(window.location.href);
  const set = (key, value) => value ? url.searchParams.set(key, value) : url.searchParams.delete(key);
  const [step, position] = ((tab === 'inspect' ? opened : tab === 'train' ? pin : '') || '').split('/');
  set('tab', tab === 'train' ? '' : tab);
  set('run', run || '');
  set('step', step);
  set('group', step ? String(Number(position) + 1) : '');
  if (url.href !== window.location.href) history.replaceState(history.state, '', url);
}"""
