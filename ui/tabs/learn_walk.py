"""Learn, part “Walk”: one group of the run in view, from its prompt to its update."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import gradio as gr

from grpo_core.analysis.provenance import why_missing
from grpo_core.analysis.walk import Change, Walk, Walker
from grpo_core.analysis.walk_picture import ratio_picture
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.store import RunRow, Store, WalkableGroup
from grpo_core.store.example import example_store
from ui.components.html_panel import QUIET, html_panel, script
from ui.render import learn_walk, provenance, status
from ui.render.learn_walk_cells import Drawn, Screen
from ui.render.learn_walk_controls import controls, read_change, read_token, summary
from ui.render.learn_walk_more import more
from ui.render.place import Place
from ui.render.text import esc
from ui.server import group_ref
from ui.server.calls import slow
from ui.server.views import Views
from ui.tabs.frame import SKIP, Frame, Tab, hidden_values, parse_tokens, token

NUM_PANELS = 5
_NO_GROUP = status.empty(
    "No group to walk through yet",
    "A run’s first step makes one. Choose a run above, or start one on Train.",
)


@dataclass(frozen=True)
class WalkTab(Tab):
    """The part, with what the address names of it."""

    at: gr.Textbox  # hidden: "37/2:kl" is group 3 of step 37, screen "kl"


def build_walk(frame: Frame, views: Views) -> WalkTab:
    """Build the part and connect its events. Call it inside gr.Blocks."""
    html_panel(learn_walk.INTRO, elem_id="walk-intro")
    walking = script("controls.js") + script("learn_walk.js")
    head = html_panel(events=("go", "edit"), script=walking, elem_id="walk-head")
    with gr.Row(elem_id="walk-row", equal_height=False):
        with gr.Column(elem_id="walk-main", min_width=0):
            numbers = html_panel(events=("reset",), elem_id="walk-numbers")
        with gr.Column(elem_id="walk-aside", min_width=0):
            form = html_panel(
                events=("edit",), script=script("controls.js"), elem_id="walk-controls"
            )
            notes = html_panel(elem_id="walk-notes")
    below = html_panel(elem_id="walk-more")
    at, options, seen = hidden_values("state-walk-", at="", said="{}", seen="{}")
    inputs, outputs = [frame.run, at, options, seen], [head, numbers, form, notes, below, seen]
    show = ShowWalk(views)
    refresh = frame.refresh.events("walk", slow(show), inputs, outputs)
    refresh.after(head.go(None, at, at, js="at => studioWalkGo(at)", **QUIET))
    # What was changed belongs to the group that was in view.
    pick = "at => [studioWalkPick(at), '{}', '{}']"
    refresh.after(head.edit(None, at, [at, options, seen], js=pick, **QUIET))
    refresh.after(form.edit(None, options, options, js="said => studioWalkEdit(said)", **QUIET))
    refresh.after(numbers.reset(None, None, [options, seen], js="() => ['{}', '{}']", **QUIET))
    anew = frame.run.change(
        None, frame.run, [at, options], js="run => studioAnew(run, ['', '{}'])", **QUIET
    )
    refresh.on_change(anew.then)
    return WalkTab(inputs, outputs, show, at)


# ---- what is shown ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """The run that is walked, in the store that holds it."""

    store: Store
    run: RunRow
    candidates: Sequence[WalkableGroup]
    said: str  # what the run is called, if it is not the one in view
    linked: bool  # whether Inspect can show its groups


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The group with its changes and without them."""

    walk: Walk
    was: Walk
    walker: Walker
    change: Change
    problem: str


def parse_at(text: Any) -> tuple[Place | None, str]:
    """The group and the screen in "37/2:kl". Anything may arrive from a browser."""
    match = (
        re.fullmatch(r"([0-9/]{0,20})(?::([a-z]{1,20}))?", text) if isinstance(text, str) else None
    )
    if match is None:
        return None, learn_walk.NAMES[0]
    ref = group_ref.parse(match[1])
    name = match[2] if match[2] in learn_walk.NAMES else learn_walk.NAMES[0]
    return (Place(*ref) if ref else None), name


class ShowWalk:
    """Fills every panel that is out of date. Everything is read from rows."""

    def __init__(self, views: Views):
        self.views = views
        self._walker = lru_cache(maxsize=8)(self._read)
        self._candidates = lru_cache(maxsize=8)(
            lambda store, run_id, steps_done: store.groups_to_walk(run_id)
        )

    def __call__(self, run_id: Any, at: Any, options: Any, seen: Any) -> list[Any]:
        was = parse_tokens(seen)
        source = self._source(self.views.run(run_id))
        place, name = parse_at(at)
        if source is None:
            return self._nothing(was)
        place = place or self._remembered(was, source) or _first(source)
        said = parse_tokens(options)
        done = source.run.steps_done >= place.step
        which = [source.run.id, source.said, str(place), done]
        numbers = [*which, source.store.edited(source.run.id, place.step), said]
        now = {
            "head": token([*which, name]),
            "numbers": token([*numbers, name]),
            "form": token([*which, name]),
            "more": token([*numbers, name == "ratio"]),
        }
        new = {key for key in now if now[key] != was.get(key)}
        if not new:
            return [SKIP] * (NUM_PANELS + 1)
        now |= {"run": source.run.id, "place": str(place)}
        head = learn_walk.head(place, name, source.candidates, source.said)
        found = self._numbers(source, place, said)
        if isinstance(found, str):
            return [head, found, "", "", "", json.dumps(now)]
        shown, below = self._screen(source, place, found, said, name)
        return [
            head if "head" in new else SKIP,
            shown.numbers if "numbers" in new else SKIP,
            controls(name, found.was, said) if "form" in new else SKIP,
            shown.notes if "numbers" in new else SKIP,
            below if "more" in new else SKIP,
            json.dumps(now),
        ]

    def _nothing(self, was: dict[str, Any]) -> list[Any]:
        if was.get("head") == "nothing":
            return [SKIP] * (NUM_PANELS + 1)
        return ["", _NO_GROUP, "", "", "", json.dumps({"head": "nothing"})]

    def _source(self, run: RunRow | None) -> _Source | None:
        """The run in view; the example while that has no group."""
        store = self.views.store
        if run is not None and (found := self._candidates(store, run.id, run.steps_done)):
            return _Source(store, run, found, "", True)
        example = next((r for r in self.views.runs() if r.example), None)
        if example is None:
            shipped = example_store()
            if shipped is None or not shipped.runs():
                return None
            store, example = shipped, shipped.runs()[0]
        found = self._candidates(store, example.id, example.steps_done)
        said = f"the recorded example “{example.name}”"
        return _Source(store, example, found, said, False) if found else None

    def _remembered(self, was: dict[str, Any], source: _Source) -> Place | None:
        """The group that was chosen first, which stays while a run goes on."""
        ref = group_ref.parse(was.get("place"))
        return Place(*ref) if ref and was.get("run") == source.run.id else None

    def _numbers(self, source: _Source, place: Place, said: dict[str, Any]) -> _Numbers | str:
        """The group's numbers; HTML that says why there are none."""
        ids = source.store.group_ids(source.run.id, place.step)
        if place.position >= len(ids):
            has_none = f"Step {place.step:,} has no group {place.position + 1}"
            return status.empty(has_none, "Choose another group above.")
        if why := why_missing(source.run.source, "advantage"):
            return status.empty("This run cannot be walked", f"{why} Choose another run above.")
        done = source.run.steps_done >= place.step
        edited = source.store.edited(source.run.id, place.step)
        try:
            walker, was = self._walker(
                source.store, source.run.id, ids[place.position], done, edited
            )
        except (InvalidConfig, StudioError) as error:
            return f'<p class="problem" role="alert">{esc(error)}</p>'
        try:
            change = read_change(was, said)
            walk = was if change == Change() else walker.walk(change)
        except (InvalidConfig, ValueError) as error:
            problem = f'<p class="problem" role="alert">{esc(error)} The own numbers are shown.</p>'
            return _Numbers(was, was, walker, Change(), problem)
        return _Numbers(walk, was, walker, change, "")

    def _read(
        self, store: Store, run_id: str, group_id: int, done: bool, edited: tuple[Any, ...]
    ) -> tuple[Walker, Walk]:
        """done, edited: the rows of a step change with them."""
        walker = Walker(store, store.run(run_id), store.group(group_id))
        return walker, walker.walk()

    def _screen(
        self, source: _Source, place: Place, found: _Numbers, said: dict[str, Any], name: str
    ) -> tuple[Drawn, str]:
        """The screen in view, and what is below the walk."""
        picture = ratio_picture(found.walk)
        href = learn_walk.href(place) if source.linked else ""
        screen = Screen(found.walk, found.was, href, read_token(found.was, said))
        shown = learn_walk.screen(screen, name, picture)
        changed = found.problem or summary(found.was, found.change)
        groupings = found.walker.groupings(found.change)
        # The screen of the ratio has the picture itself.
        below = more(found.walk, None if name == "ratio" else picture, groupings)
        whose = provenance.provenance(source.run.source)
        return Drawn(whose + changed + shown.numbers, shown.notes), below


def _first(source: _Source) -> Place:
    first = source.candidates[0]
    return Place(first.step, first.position)
