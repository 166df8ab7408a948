"""What the set-up shows of the runs: it is filled with the Train tab, once a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ui.server.views import Views
from ui.tabs.frame import SKIP, hidden_values, parse_tokens, token
from ui.tabs.setup import Setup
from ui.tabs.start_bar import start_label
from ui.tabs.start_from import start_links

Show = Callable[..., Sequence[Any]]


def beside(
    show: Show, inputs: list[Any], outputs: list[Any], setup: Setup, views: Views
) -> tuple[list[Any], list[Any], Show]:
    """The inputs, outputs and function of the Train tab, with the set-up's at their ends.

    inputs: the run in view is the first. Call it inside gr.Blocks.
    """
    [seen] = hidden_values("state-setup-", seen="{}")

    def show_both(*values: Any) -> list[Any]:
        *given, was = values
        return [*show(*given), *show_setup(views, given[0], was)]

    more = [setup.bar.start, setup.summary.start_from.links, setup.bar.ended, seen]
    return [*inputs, seen], [*outputs, *more], show_both


def show_setup(views: Views, run_id: Any, seen: Any) -> list[Any]:
    """The start button, where settings can be copied from, and how many runs have ended.

    SKIP for what has not changed.
    """
    label, links = start_label(views.runs()), start_links(views.run(run_id))
    ended = str(sum(not run.status.is_live for run in views.runs()))
    was, now = parse_tokens(seen), {"label": label, "links": token(links), "ended": ended}
    if was == now:
        return [SKIP, SKIP, SKIP, SKIP]
    return [
        gr.update(value=label) if was.get("label") != label else SKIP,
        links if was.get("links") != now["links"] else SKIP,
        ended if was.get("ended", ended) != ended else SKIP,  # the page came with the first
        json.dumps(now),
    ]
