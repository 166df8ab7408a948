"""The Learn tab: the method with the numbers of the person's own run, in parts.

Each part is a Tab of its own, and only the part in view is filled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ui.components.html_panel import QUIET, html_panel, script
from ui.render import glossary
from ui.server.views import Runs, Views
from ui.tabs.frame import Frame, InView, Tab, hidden_values
from ui.tabs.learn_methods import build_methods
from ui.tabs.learn_thinking import build_thinking
from ui.tabs.learn_walk import build_walk

# name in the address -> title
PARTS = {"walk": "Walk", "ppo": "Beside PPO", "thinking": "Longer thinking", "glossary": "Glossary"}
_AT = re.compile(r"[A-Za-z0-9_./@:-]{0,80}")


@dataclass(frozen=True, slots=True)
class Place:
    """A part of the tab, and a place in it; the part gives that text its meaning."""

    part: str
    at: str = ""


FIRST_PLACE = Place(next(iter(PARTS)))


def read_place(query: Mapping[str, str]) -> Place:
    """The place that an address names: ?tab=learn&part=glossary&at=kl."""
    part, at = query.get("part", ""), query.get("at", "")
    if part not in PARTS:
        return FIRST_PLACE
    return Place(part, at if _AT.fullmatch(at) else "")


@dataclass(frozen=True)
class Learn(Tab):
    """The Learn tab, with what its address names."""

    part: gr.Radio
    places: dict[str, gr.Textbox]  # part -> the hidden value with the place in it

    @property
    def place(self) -> list[Any]:
        """The components of the tab's place."""
        return [self.part, *self.places.values()]

    def at(self, place: Place) -> list[tuple[Any, str]]:
        """(component, value) for each that the place sets."""
        own = [(self.places[place.part], place.at)] if place.part in self.places else []
        return [(self.part, place.part), *own]


def build_learn(frame: Frame, views: Views, runs: Runs) -> Learn:
    """Build the tab and connect its events. Call it inside gr.Blocks."""
    part = gr.Radio(
        [(title, name) for name, title in PARTS.items()],
        value=FIRST_PLACE.part,
        label="Part",
        show_label=False,
        elem_id="learn-part",
    )
    values = hidden_values("state-learn-", thinking="", glossary="")
    places: dict[str, gr.Textbox] = dict(zip(("thinking", "glossary"), values, strict=True))
    with _part("walk"):
        walk = build_walk(frame, views)
    places["walk"] = walk.at
    parts: dict[str, Tab] = {"walk": walk}
    with _part("ppo"):
        parts["ppo"] = build_methods(frame, views, runs)
    with _part("thinking"):
        parts["thinking"] = build_thinking(frame, views, places["thinking"])
    with _part("glossary"):
        parts["glossary"] = _build_glossary(frame, part, places["glossary"])
    view = InView(part, parts)
    fill = frame.refresh.js("learn", view, view.inputs, kind="change")
    part.change(None, view.inputs, view.outputs, js=fill, **QUIET)
    in_view = f"(tab, ...given) => tab === 'learn' ? ({fill})(...given) : []"
    frame.run.change(None, [frame.tab, *view.inputs], view.outputs, js=in_view, **QUIET)
    return Learn(view.inputs, view.outputs, view, part, places)


def _part(name: str) -> gr.Column:
    """The box of a part; learn.css shows the one that is chosen."""
    return gr.Column(
        elem_id=f"learn-{name}", elem_classes=["learn-part", "card-box", "stack"], min_width=0
    )


def _build_glossary(frame: Frame, part: gr.Radio, at: gr.Textbox) -> Tab:
    """The glossary depends on no run: it is sent once, when it comes into view."""
    html_panel(glossary.SEARCH, script=script("field_search.js"), elem_id="glossary-tools")
    terms = html_panel(script=script("glossary.js"), elem_id="glossary")
    fill = frame.refresh.js("glossary", lambda: [glossary.glossary()], [])
    js = (
        "(tab, part) => tab === 'learn' && part === 'glossary' && "
        f"!document.querySelector('#glossary .term') ? ({fill})() : []"
    )
    for event in (frame.tab.change, part.change):
        event(None, [frame.tab, part], terms, js=js, **QUIET)
    return Tab([at], [], lambda at: [])
