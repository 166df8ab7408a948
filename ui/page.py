"""The page: header, tabs and wiring. build_app(store, runs, service) -> a page for launch()."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr
from gradio.themes import Base as BaseTheme
from starlette.middleware import Middleware
from starlette.types import Scope

from grpo_core.store import Store
from ui.components.html_panel import QUIET, html_panel, script, styles
from ui.components.live_chart import chart_scripts, plotly_js
from ui.render import status
from ui.render.text import esc
from ui.server import group_ref
from ui.server.api import build_api
from ui.server.calls import SHOW, function_is_slow
from ui.server.guard import Guard, own_hosts
from ui.server.ingest import Desk, Ingest
from ui.server.login import Login
from ui.server.refresh import Refresh, apart
from ui.server.service import Service
from ui.server.traffic import Traffic
from ui.server.views import Runs, Views
from ui.tabs.frame import SKIP, Frame, InView, Tab, hidden_values
from ui.tabs.inspect import Inspect, build_inspect
from ui.tabs.learn import FIRST_PLACE, Learn, Place, build_learn, read_place
from ui.tabs.playground import build_playground
from ui.tabs.runs import Neighbours, build_runs
from ui.tabs.setup import restore_draft
from ui.tabs.train import Train, build_train

POLL_SECONDS = 1.0
SELDOM_SECONDS = 15.0
TABS = ("train", "inspect", "runs", "playground", "learn")
DAY = 24 * 3600
# setup.js opens the section that was open last.
NEW_RUN = '<button type="button" class="quiet" data-section="">New run</button>'
# Before the first run of one's own the set-up opens, beside the example run if there is one.
WELCOME_JS = "(own, tab) => { if (own && tab === 'train') window.studioWelcome?.(own); }"


@dataclass(frozen=True, slots=True)
class _Tabs:
    tabs: gr.Tabs
    train: Train
    inspect: Inspect
    runs: Tab
    playground: Tab
    learn: Learn

    def by_name(self) -> dict[str, Tab]:
        tabs = (self.train, self.inspect, self.runs, self.playground, self.learn)
        return dict(zip(TABS, tabs, strict=True))


class Page(gr.Blocks):
    """The Gradio app, and what fills it from the store."""

    def __init__(self, refresh: Refresh, **options: Any):
        super().__init__(**options)
        self.refresh = refresh
        # Raises StudioError while the server keeps no more files of visitors.
        self.check_upload: Callable[[], object] = lambda: None
        self.ingest: Desk | None = None  # takes what trainers elsewhere record


def build_app(
    store: Store,
    runs: Runs,
    service: Service,
    space: bool = False,
    storage: Callable[[], str] | None = None,
) -> Page:
    """The whole page over a store, from which it reads everything that it shows.

    runs: receives what a person does to a run. service: answers questions about models and prompts.
    space: on a Hugging Face Space, which can be duplicated.
    storage: says whether runs outlive the disk; None for an ordinary disk.
    """
    views, refresh = Views(store), Refresh()
    gr.set_static_paths([plotly_js()])
    with Page(
        refresh,
        title="GRPO Studio",
        fill_width=True,
        delete_cache=(DAY, DAY),
        analytics_enabled=False,
    ) as page:
        build_api(views, runs)  # first: the endpoints' names are then still free
        brand, run, pill = _build_header(runs, space)
        if storage is not None:
            _build_storage(storage)
        notice = html_panel(elem_id="notice", script=script("history.js"))
        tab = gr.Textbox("train", visible="hidden", label="tab", elem_id="state-tab")
        [fresh] = hidden_values("state-", fresh="")
        frame = Frame(run, pill, tab, notice, fresh, refresh)
        tabs = _build_tabs(frame, views, runs, service)
        poll = InView(frame.tab, tabs.by_name(), always=("train",))  # Train fills the header too
        _wire_poll(poll, frame)
        if runs.has_many_devices:  # a cluster grows and shrinks
            for event in (page.load, gr.Timer(SELDOM_SECONDS).tick):
                event(partial(_brand, runs), None, brand, **QUIET)
        _wire_why(tabs)
        _wire_address(tabs, frame)
        arrival = _arrival(poll, tabs, frame, views)
        arrived = page.load(None, **arrival, **QUIET)
        arrived.then(None, [frame.fresh, frame.tab], None, js=WELCOME_JS)
        page.load(**restore_draft(tabs.train.setup), **QUIET)
        page.load(**tabs.inspect.restore, **QUIET)
        back = notice.arrive(None, **arrival, **QUIET)  # Back and Forward
        opened, mode = tabs.inspect.group, tabs.inspect.mode
        back.then(None, [opened, mode], mode, js="(at, mode) => at ? 'explore' : mode", **QUIET)
        for shown in (arrived, back):
            shown.then(None, frame.run, None, js="studioArrived")
    return page


def _build_header(runs: Runs, space: bool) -> tuple[gr.HTML, gr.Dropdown, gr.HTML]:
    """The devices, the run picker and the state of the run in view."""
    with gr.Row(elem_id="header"):
        brand = html_panel(_brand(runs), script=script("theme.js"), elem_id="brand")
        run = gr.Dropdown([], label="Run", elem_id="run", interactive=True, scale=0, min_width=240)
        pill = html_panel(status.run_pill(None), elem_id="run-pill")
        html_panel(NEW_RUN, elem_id="new-run")
        if space:
            gr.DuplicateButton("Duplicate this Space", size="sm", scale=0, min_width=180)
    return brand, run, pill


def _brand(runs: Runs) -> str:
    return status.brand(runs.device, runs.device_details)


def _build_storage(storage: Callable[[], str]) -> None:
    def read() -> str:
        return status.storage_note(storage())

    panel = html_panel(read(), elem_id="storage")
    gr.Timer(SELDOM_SECONDS).tick(read, None, panel, **QUIET)


def _build_tabs(frame: Frame, views: Views, runs: Runs, service: Service) -> _Tabs:
    with gr.Tabs(elem_id="tabs") as tabs:
        # render_children: a tab that was left keeps its charts and their zoom.
        with gr.Tab("Train", id="train", elem_id="tab-train", render_children=True) as on_train:
            train = build_train(frame, tabs, views, runs, service)
        with gr.Tab("Inspect", id="inspect", elem_id="tab-inspect") as on_inspect:
            inspect = build_inspect(frame, views, train.setup, tabs, service)
        with gr.Tab("Runs", id="runs", elem_id="tab-runs") as on_runs:
            around = Neighbours(tabs, train.setup)
            listing = build_runs(frame, views, around, runs, service)
        with gr.Tab("Playground", id="playground", elem_id="tab-playground") as on_playground:
            playground = build_playground(frame, views, service, train.setup, tabs)
        with gr.Tab("Learn", id="learn", elem_id="tab-learn") as on_learn:
            learn = build_learn(frame, views, runs)
    tab_items = (on_train, on_inspect, on_runs, on_playground, on_learn)
    for name, tab in zip(TABS, tab_items, strict=True):
        tab.select(None, None, frame.tab, js=f"() => '{name}'")
    return _Tabs(tabs, train, inspect, listing, playground, learn)


# ---- filling the page ------------------------------------------------------------------------


def _wire_poll(poll: InView, frame: Frame) -> None:
    every_second = frame.refresh.js("poll", poll, poll.inputs, kind="poll")
    gr.Timer(POLL_SECONDS).tick(None, poll.inputs, poll.outputs, js=every_second, **QUIET)
    at_once = frame.refresh.js("poll", poll, poll.inputs, kind="change")
    apart(frame.tab.change)(None, poll.inputs, poll.outputs, js=at_once, **QUIET)


def _wire_why(tabs: _Tabs) -> None:
    """“See why” opens its group on Inspect, in the view that shows it."""
    inspect = tabs.inspect
    opened = tabs.train.banner.why(
        None,
        None,
        [inspect.group, inspect.look, inspect.options, inspect.mode],
        js="() => [studioPressed.at, studioPressed.look, '{}', 'explore']",
        **QUIET,
    )
    opened.then(None, None, None, js="() => studioOpenTab('inspect')")


def _wire_address(tabs: _Tabs, frame: Frame) -> None:
    """Keep the address of the page equal to what it shows."""
    shown = [frame.tab, frame.run, tabs.train.pin, tabs.inspect.group, *tabs.learn.place]
    gr.on(
        [component.change for component in shown],
        None,
        shown,
        None,
        js=f"(...shown) => studioAddress({list(tabs.learn.places)}, ...shown)",
        trigger_mode="always_last",
    )


def _arrival(poll: InView, tabs: _Tabs, frame: Frame, views: Views) -> dict[str, Any]:
    """Arguments of an event after which the page shows what its address names, in one request."""
    pin, group, learn = tabs.train.pin, tabs.inspect.group, tabs.learn

    def arrive(search: Any, *values: Any) -> list[Any]:
        """search: the query of the address, from its question mark on."""
        query = search.removeprefix("?") if isinstance(search, str) else ""
        arrived = read_address(views, dict(parse_qsl(query)))
        was = dict(zip(map(id, poll.inputs), values, strict=True))
        if arrived.run_id == was[id(frame.run)]:  # the place on the other tab stays
            arrived = replace(
                arrived,
                pin=arrived.pin if arrived.tab == "train" else _checked(was[id(pin)]),
                group=arrived.group if arrived.tab == "inspect" else _checked(was[id(group)]),
            )
        named = {
            id(frame.run): arrived.run_id,
            id(frame.tab): arrived.tab,
            id(pin): arrived.pin,
            id(group): arrived.group,
        }
        if arrived.tab == "learn":
            named |= {id(component): value for component, value in learn.at(arrived.place)}
        given = [named.get(id(c), v) for c, v in zip(poll.inputs, values, strict=True)]
        out = poll(*given)
        out[poll.outputs.index(frame.run)] = views.picked(arrived.run_id)
        selected = gr.update(selected=arrived.tab)
        places = [named.get(id(component), SKIP) for component in learn.place]
        first = [selected, arrived.tab, arrived.pin, arrived.group, arrived.notice]
        return [*first, views.nothing_of_own(), *places, *out]

    js = frame.refresh.js(
        "arrive", arrive, poll.inputs, kind="first", first="window.location.search"
    )
    hidden = [frame.tab, pin, group, frame.notice, frame.fresh]
    outputs = [tabs.tabs, *hidden, *learn.place, *poll.outputs]
    return {"inputs": poll.inputs, "outputs": outputs, "js": js}


def _checked(ref: Any) -> str:
    return ref if group_ref.parse_place(ref) else ""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What an address of the page names."""

    run_id: str | None
    tab: str
    pin: str  # the pinned group of Train, as text
    group: str  # the open group of Inspect, as text
    notice: str
    place: Place = FIRST_PLACE  # of Learn


def read_address(views: Views, query: Mapping[str, str]) -> Arrival:
    """Check the address. For a run that does not exist, name the newest one and say so."""
    tab = query.get("tab", "train")
    if tab not in TABS:
        tab = "train"
    run_id = query.get("run", "")
    if views.cursor(run_id) is None:
        notice = ""
        if run_id:
            notice = status.banner(
                "The run in this address is not here.",
                "It may have been deleted, or belong to another file. This is the newest one.",
            )
        return Arrival(views.default_run(), tab, "", "", notice, read_place(query))
    place = group_ref.from_query(query)
    ref = "" if place is None else str(place)
    pin = ref if tab == "train" and group_ref.parse(ref) else ""
    group = ref if tab == "inspect" else ""
    return Arrival(run_id, tab, pin, group, "", read_place(query))


def launch_options(
    page: Page,
    host: str = "127.0.0.1",
    share: bool = False,
    login: Login | None = None,
) -> dict[str, Any]:
    """Arguments of launch() for a page of build_app; Gradio 6 takes theme, styles and head there.

    Nothing in them makes a request to another machine.
    """
    plotly = f"gradio_api/file={esc(plotly_js())}"
    guard = Middleware(
        Guard, hosts=own_hosts(host), suffixes=(".gradio.live",) if share else (), login=login
    )

    def is_slow(scope: Scope, content: dict[str, Any]) -> bool:
        if scope["path"] == SHOW:
            return page.refresh.is_slow(content.get("name"))
        return function_is_slow(scope, content)

    return {
        "auth": login.check if login is not None else None,
        "theme": BaseTheme(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        "head": (
            f'<meta name="plotly-js" content="{plotly}">\n<style>{styles()}</style>'
            f"\n<script>{script('refresh.js')}{script('choices.js')}{script('draft.js')}"
            f"{script('playground.js')}{script('ellipsis.js')}{chart_scripts()}</script>"
        ),
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "max_file_size": "200mb",
        "ssr_mode": False,
        "pwa": False,
        "app_kwargs": {
            "middleware": [
                guard,
                Middleware(Ingest, desk=page.ingest),
                Middleware(Traffic, is_slow=is_slow, check_upload=page.check_upload),
            ],
            "routes": [page.refresh.route()],
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
    }
