"""The page: header, tabs and wiring. build_app(store, runs) -> gr.Blocks; launch it with launch_options()."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr
from starlette.middleware import Middleware

from grpo_core.store import Store
from ui.components.html_panel import QUIET, html_panel, script
from ui.components.live_chart import plotly_js
from ui.render import status
from ui.render.text import esc
from ui.server import group_ref as place
from ui.server.api import build_api
from ui.server.guard import Guard, own_hosts
from ui.server.refresh import Shows
from ui.server.service import Desk
from ui.server.views import Runs, Views
from ui.tabs.inspect import build_inspect
from ui.tabs.playground import build_playground
from ui.tabs.runs import build_runs
from ui.tabs.train import SKIP, Frame, build_train

POLL_SECONDS = 1.0
STORAGE_SECONDS = 15.0
TABS = ("train", "inspect", "runs", "playground")
DAY = 24 * 3600


def build_app(
    store: Store,
    runs: Runs,
    desk: Desk,
    space: bool = False,
    storage: Callable[[], str] | None = None,
) -> gr.Blocks:
    """The whole page over a store. Everything it shows is read from there; `runs` is only told to start and to stop, `desk` only asked.

    space: on a Hugging Face Space, which can be duplicated. storage: says whether what is recorded outlives the disk; None: an ordinary disk.
    """
    views, shows = Views(store), Shows()
    gr.set_static_paths([plotly_js()])
    with gr.Blocks(
        title="GRPO Studio", fill_width=True, delete_cache=(DAY, DAY), analytics_enabled=False
    ) as app:
        build_api(views, runs)  # first, so that no other handler takes its names
        with gr.Row(elem_id="header"):
            html_panel(status.brand(runs.device), script=script("theme.js"), elem_id="brand")
            run = gr.Dropdown(
                [], label="Run", elem_id="run", interactive=True, scale=0, min_width=240
            )
            pill = html_panel(status.run_pill(None), elem_id="run-pill")
            if space:
                gr.DuplicateButton("Duplicate this Space", size="sm", scale=0, min_width=180)
        if storage is not None:
            kept = html_panel(status.storage_note(storage()), elem_id="storage")
            gr.Timer(STORAGE_SECONDS).tick(
                lambda: status.storage_note(storage()), None, kept, **QUIET
            )
        notice = html_panel(elem_id="notice")
        tab = gr.Textbox("train", visible="hidden", label="tab", elem_id="state-tab")
        frame = Frame(run, pill, tab, notice, shows)
        with gr.Tabs(elem_id="tabs") as tabs:
            # render_children: a tab that was left keeps its charts, and with them every zoom.
            with gr.Tab(
                "Train", id="train", elem_id="tab-train", render_children=True
            ) as train_tab:
                train = build_train(frame, views, runs, desk)
            with gr.Tab("Inspect", id="inspect", elem_id="tab-inspect") as inspect_tab:
                inspect = build_inspect(frame, views, train.setup, tabs)
            with gr.Tab("Runs", id="runs", elem_id="tab-runs") as runs_tab:
                listing = build_runs(frame, views, tabs, runs, desk)
            with gr.Tab("Playground", id="playground", elem_id="tab-playground") as playground_tab:
                playground = build_playground(frame, views, desk)

        parts = (train, inspect, listing, playground)
        inputs = [tab, *(i for part in parts for i in part.inputs)]
        outputs = [o for part in parts for o in part.outputs]

        def poll(chosen: Any, *values: Any) -> list[Any]:
            """One request a second for all tabs; what is not in view is skipped until it is."""
            out, at = [], 0
            for name, part in zip(TABS, parts, strict=True):
                mine = values[at : at + len(part.inputs)]
                at += len(part.inputs)
                out += (
                    part.show(*mine)
                    if name == chosen or part is train
                    else [SKIP] * len(part.outputs)
                )
            return out

        gr.Timer(POLL_SECONDS).tick(
            None, inputs, outputs, js=shows.js("poll", poll, inputs, "poll"), **QUIET
        )
        for name, button in zip(
            TABS, (train_tab, inspect_tab, runs_tab, playground_tab), strict=True
        ):
            button.select(None, None, tab, js=f"() => '{name}'")
        tab.change(None, inputs, outputs, js=shows.js("poll", poll, inputs), **QUIET)
        gr.on(
            [tab.change, run.change, train.pin.change, inspect.opened.change],
            None,
            [tab, run, train.pin, inspect.opened],
            None,
            js=place.ADDRESS_JS,
            trigger_mode="always_last",
        )

        def arrive(search: Any, *values: Any) -> list[Any]:
            """The first answer: everything at once, so that a shared address is there after one request. search: the address from its ? on."""
            run_id, first, pin, opened, said = arrival(
                views, dict(parse_qsl(search.removeprefix("?"))) if isinstance(search, str) else {}
            )
            given = {
                id(run): run_id,
                id(tab): first,
                id(train.pin): pin,
                id(inspect.opened): opened,
            }
            out = poll(*(given.get(id(c), v) for c, v in zip(inputs, values, strict=True)))
            out[outputs.index(run)] = views.picked(run_id)
            return [gr.update(selected=first), first, pin, opened, said, *out]

        app.load(
            None,
            inputs,
            [tabs, tab, train.pin, inspect.opened, notice, *outputs],
            js=shows.js("arrive", arrive, inputs, "first", first="window.location.search"),
            **QUIET,
        )
    app.shows = shows
    return app


def arrival(views: Views, query: dict[str, str]) -> tuple[str | None, str, str, str, str]:
    """An address -> run, tab, pinned place, opened place, notice. A run that is not here is said, and the newest one is shown."""
    tab = query.get("tab", "train") if query.get("tab", "train") in TABS else "train"
    wanted = query.get("run", "")
    found = views.cursor(wanted) is not None
    at = place.text(place.from_query(query)) if found else ""
    said = (
        ""
        if found or not wanted
        else status.banner(
            "The run in this address is not here.",
            "It may have been deleted, or belong to another file. This is the newest one.",
        )
    )
    return (
        wanted if found else views.default_run(),
        tab,
        at if tab == "train" else "",
        at if tab == "inspect" else "",
        said,
    )


def launch_options(
    page: gr.Blocks,
    host: str = "127.0.0.1",
    share: bool = False,
    auth: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """What a page of build_app needs of launch(): Gradio 6 takes theme, styles and head there. Nothing in it leaves the machine."""
    here = Path(__file__).parent / "components"
    head = (
        f'<meta name="plotly-js" content="gradio_api/file={esc(plotly_js())}">\n<style>{(here / "style.css").read_text("utf-8")}</style>'
        f"\n<script>{(here / 'refresh.js').read_text('utf-8')}{(here / 'choices.js').read_text('utf-8')}</script>"
    )
    guard = Middleware(
        Guard, hosts=own_hosts(host), suffixes=(".gradio.live",) if share else (), auth=auth
    )
    return {
        "theme": gr.themes.Base(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        "head": head,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "max_file_size": "200mb",
        "ssr_mode": False,
        "pwa": False,
        "app_kwargs": {
            "middleware": [guard],
            "routes": [page.shows.route()],
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
    }
