"""“Start from”: the settings of a run, of a file or of an address, copied into the form."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import gradio as gr

from grpo_core.config import flatten, parse
from grpo_core.errors import InvalidConfig
from grpo_core.store import RunRow
from ui.components import form
from ui.components.html_panel import QUIET, html_panel
from ui.render.status import banner
from ui.render.text import esc
from ui.server.views import Views
from ui.tabs.foreign_settings import for_form
from ui.tabs.frame import SKIP, UPLOADED, Frame

MAX_CONFIG_BYTES = 1_000_000
OPEN_FILE_JS = "() => { document.querySelector('#from-file').click(); }"
SHOW_ADDRESS_JS = """() => {
  const root = document.documentElement;
  root.dataset.address = root.dataset.address === 'on' ? '' : 'on';
  document.querySelector('#from-address input')?.focus();
}"""


@dataclass(frozen=True, slots=True)
class StartFrom:
    links: gr.HTML
    file: gr.UploadButton
    address: gr.Textbox
    copy: gr.Button


def build_start_from() -> StartFrom:
    """The line below the cards. Call it inside gr.Blocks."""
    links = html_panel(
        start_links(None), events=("defaults", "run", "file", "address"), elem_id="start-from"
    )
    file = gr.UploadButton(
        "Settings from a file", file_types=[".json"], size="sm", elem_id="from-file"
    )
    with gr.Row(elem_id="from-address", elem_classes="buttons"):
        address = gr.Textbox(
            label="Address of a run",
            placeholder="http://…/?run=…",
            max_lines=1,
            max_length=2000,
        )
        copy = gr.Button("Copy settings", size="sm", scale=0)
    return StartFrom(links, file, address, copy)


def start_links(run: RunRow | None) -> str:
    """HTML: where settings can be copied from. run: the one in view."""
    view = ""
    if run is not None:
        view = (
            f' · <button type="button" class="link" data-do="run" title="{esc(run.name)}">'
            f"{esc(run.name)}</button>"
        )
    return (
        '<p class="start-links">Start from: '
        f'<button type="button" class="link" data-do="defaults">defaults</button>{view} · '
        '<button type="button" class="link" data-do="file">a file</button> · '
        '<button type="button" class="link" data-do="address">an address</button></p>'
    )


def wire_start_from(box: StartFrom, filled: list[Any], frame: Frame, views: Views) -> None:
    """filled: what `fill` returns values for."""
    outputs = [*filled, frame.notice]

    def from_defaults() -> list[Any]:
        return [*fill(form.DEFAULTS), ""]

    def from_run(run_id: Any) -> list[Any]:
        return copy_run(views, run_id)

    def from_address(address: Any) -> list[Any]:
        return copy_address(views, address)

    box.links.defaults(from_defaults, None, outputs, **QUIET)
    box.links.run(from_run, frame.run, outputs, **QUIET)
    box.links.file(None, None, None, js=OPEN_FILE_JS, **QUIET)
    box.links.address(None, None, None, js=SHOW_ADDRESS_JS, **QUIET)
    box.file.upload(copy_file, box.file, outputs, **UPLOADED)
    for event in (box.copy.click, box.address.submit):
        event(from_address, box.address, outputs, **QUIET)


# ---- settings -> the form --------------------------------------------------------------------


def fill(flat: Mapping[str, Any]) -> list[Any]:
    """The values of Setup.filled for these settings, given by their dotted names.

    The last value is new every time: its change makes the page check the form.
    """
    rows = [form.row_of(c) for c in flat[form.CRITERIA]]
    rows = rows or form.preset_rows(flat["rubric.name"]) or []
    values = {name: form.shown(name, flat[name]) for name in form.NAMES}
    values |= {form.CRITERIA: rows, "rubric.name": form.rubric_name(rows)}
    return [*(values[name] for name in form.NAMES), f"filled {time.time_ns()}"]


def copy_config(config: Any, whose: str) -> list[Any]:
    """Fill the form from a configuration as JSON stores it; and say what happened.

    Settings of another version of this program are refused with their reason.
    """
    try:
        flat = flatten(parse(config))
    except InvalidConfig as error:
        return _not_copied(f"{whose} cannot be used.", str(error))
    done = banner(f"The set-up has the settings of {whose}.", "Check them and start.", tone="good")
    return [*fill(flat), done]


def copy_run(views: Views, run_id: Any) -> list[Any]:
    run = views.run(run_id)
    if run is None:
        return _not_copied("There are no settings to copy.", "Choose a run first.")
    if run.source is not None:
        flat, message = for_form(run, run.source)
        return [*fill(flat), message]
    return copy_config(run.config, f"“{run.name}”")


def copy_address(views: Views, address: Any) -> list[Any]:
    """Copy the settings of the run that an address of this page names."""
    text = str(address or "").strip()[:2000]
    try:
        query = parse_qs(urlsplit(text).query)
    except ValueError:
        query = {}
    run_id = query.get("run", [text])[0]
    if views.run(run_id) is None:
        return _not_copied(
            "The run of this address is not here.",
            "Paste the address of a run of this page. From another server, download the run's "
            "config JSON there and choose “a file”.",
        )
    return copy_run(views, run_id)


def copy_file(path: Any) -> list[Any]:
    """Copy the settings in a config JSON file, as a run's export writes it."""
    file = Path(str(path))
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("it is too large for settings")
        data = json.loads(file.read_text("utf-8"))
        if not isinstance(data, dict):
            raise ValueError("it holds no settings")
    except (OSError, ValueError, RecursionError) as error:
        return _not_copied("This file cannot be used.", f"It is not a config JSON: {error}.")
    config = data.get("config") if isinstance(data.get("config"), dict) else data
    return copy_config(config, "the file")


def _not_copied(what: str, why: str) -> list[Any]:
    return [SKIP] * (len(form.NAMES) + 1) + [banner(what, why)]
