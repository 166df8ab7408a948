"""The Runs tab: every run in a table; open, rename, delete, export, and compare the selected ones."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gradio as gr

from grpo_core.config import RunConfig, flatten, parse
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.recipes import as_command, as_trl_script
from grpo_core.store import RunRow, Store, export
from grpo_core.types import RunStatus
from ui import charts, status, tables
from ui.desk import Desk
from ui.live_chart import live_chart
from ui.panel import QUIET, one_of, panel, typing
from ui.text import count, esc, size
from ui.train import SKIP, Frame, parse_tokens, token
from ui.views import Runs, Views

COMPARED = ("compared reward", "heldout", "kl")
KEEP_SECONDS = 3600  # Gradio copies what it hands out; ours is only a stop on the way


@dataclass(frozen=True)
class RunsTab:
    inputs: list[Any]
    outputs: list[Any]
    show: Any


def build_runs(frame: Frame, views: Views, tabs: gr.Tabs, runs: Runs, desk: Desk) -> RunsTab:
    """Lay the tab out and make it answer. Must be called inside gr.Blocks."""
    store = views.store
    with gr.Column(elem_id="runs-box", elem_classes="card-box stack", min_width=0):
        with gr.Row(elem_id="runs-tools"):
            search = gr.Textbox(label="Filter the list", placeholder="Name, model, task, status", show_label=False, max_lines=1, elem_id="search-runs",
                                interactive=True, scale=1, min_width=160)
            open_, resume, branch, delete = (gr.Button(n, interactive=False, size="sm", scale=0, min_width=72) for n in ("Open", "Resume", "Branch from step…", "Delete"))
            new_name = gr.Textbox(label="New name", placeholder="New name", show_label=False, max_lines=1, max_length=200, elem_id="new-name",
                                  interactive=True, scale=0, min_width=160)
            rename = gr.Button("Rename", interactive=False, size="sm", scale=0, min_width=72)
            exports = [gr.Button(n, interactive=False, size="sm", scale=0, min_width=72) for n in EXPORTS]
        message = panel(elem_id="runs-message")
        with gr.Row(visible=False, elem_id="confirm", elem_classes="banner warn") as confirm:
            question = panel(elem_id="confirm-question")
            sure = gr.Button("Delete for good", size="sm", variant="stop", scale=0, min_width=120)
            keep = gr.Button("Keep", size="sm", scale=0, min_width=72)
        with gr.Row(visible=False, elem_id="branch", elem_classes="banner warn control-row") as branching:
            from_step = gr.Dropdown([], label="From step", filterable=False, elem_id="branch-step", interactive=True, scale=0, min_width=200)
            changes = gr.Textbox(label="Changed settings", placeholder="train.learning_rate=1e-5 algorithm.kl_coef=0.1", max_lines=1, max_length=2000,
                                 elem_id="branch-changes", interactive=True)
            begin = gr.Button("Start branch", size="sm", variant="primary", scale=0, min_width=110)
            leave = gr.Button("Cancel", size="sm", scale=0, min_width=72)
        table = panel(events=("select", "open", "sort"), elem_id="run-table")
        file = gr.DownloadButton("File", visible="hidden", elem_id="export-file")
    with gr.Column(visible=False, elem_id="compare", elem_classes="stack", min_width=0) as compare:
        panel("<h2>Selected runs</h2>")
        with gr.Row(elem_classes="curves"):
            figures = [live_chart(charts.figure(n, [], charts.View()), elem_id=f"compare-{n.split()[-1]}", elem_classes="card-box") for n in COMPARED]
        with gr.Column(elem_classes="card-box", min_width=0):
            panel("<h3>Where their settings differ</h3>")
            differ = panel(elem_id="differences")
    selected, sort, seen = (gr.Textbox(v, visible="hidden", label=n, elem_id=f"state-runs-{n}") for n, v in (
        ("selected", "[]"), ("sort", json.dumps({"key": "created", "descending": True})), ("seen", "{}")))

    buttons = [open_, resume, branch, rename, delete, *exports]
    inputs = [frame.run, frame.tab, search, selected, sort, seen]
    outputs = [table, *buttons, compare, *figures, differ, seen]
    show = ShowRuns(views)

    def then_show(event: Any) -> None:
        event.then(show, inputs, outputs, **QUIET)

    def view_run(run_id: Any) -> list[Any]:
        return [views.picked(run_id), gr.update(selected="train"), "train"] if views.cursor(run_id) else [SKIP, SKIP, SKIP]

    def select_row(chosen: Any, event: gr.EventData) -> str:
        return toggle(views, chosen, _data(event).get("run"))

    def open_row(event: gr.EventData) -> list[Any]:
        return view_run(_data(event).get("run"))

    def open_selected(chosen: Any) -> list[Any]:
        return view_run(next(iter(read_selected(views, chosen)), None))

    in_view = [frame.run, tabs, frame.tab]
    typing(search)(show, inputs, outputs, **(QUIET | {"trigger_mode": "always_last"}))
    then_show(table.select(select_row, selected, selected, **QUIET))
    then_show(table.sort(choose_sort, sort, sort, **QUIET))
    table.open(open_row, None, in_view, **QUIET)
    open_.click(open_selected, selected, in_view, **QUIET)
    then_show(resume.click(partial(resume_run, runs, views), selected, message, **QUIET))
    branch.click(partial(ask_branch, views), selected, [from_step, branching, message], **QUIET)
    leave.click(lambda: gr.update(visible=False), None, branching, **QUIET)
    begin.click(partial(branch_run, runs, views), [selected, from_step, changes], [*in_view, branching, message], **QUIET)
    for event in (rename.click, new_name.submit):
        then_show(event(partial(rename_run, views), [selected, new_name], [message, new_name], **QUIET))
    delete.click(partial(ask, views), selected, [question, confirm, message], **QUIET)
    keep.click(lambda: gr.update(visible=False), None, confirm, **QUIET)
    then_show(sure.click(partial(delete_runs, views), selected, [message, confirm, selected], **QUIET))
    for button, name in zip(exports, EXPORTS, strict=True):
        button.click(partial(export_run, views, store, desk, name), selected, [file, message], **QUIET).success(
            None, file, None, js="(file) => { if (file) document.querySelector('#export-file').click(); }")
    return RunsTab(inputs, outputs, show)


# ---- what a person does ----------------------------------------------------------------------------------------------


def _data(event: gr.EventData) -> dict[str, Any]:
    return event._data if isinstance(event._data, dict) else {}


def read_selected(views: Views, text: Any) -> list[str]:
    """The selected runs that still exist, in the order in which they were selected."""
    try:
        ids = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return []
    return [i for i in dict.fromkeys(x for x in ids if isinstance(x, str)) if views.run(i)] if isinstance(ids, list) else []


def toggle(views: Views, selected: Any, run_id: Any) -> str:
    chosen = read_selected(views, selected)
    return json.dumps([i for i in chosen if i != run_id] if run_id in chosen else [*chosen, str(run_id)])


def choose_sort(now: Any, event: gr.EventData) -> str:
    sort, key = read_sort(now), one_of(_data(event).get("key"), tables.RUN_COLUMNS, "")
    if not key:
        return json.dumps(sort)
    return json.dumps({"key": key, "descending": not sort["descending"] if key == sort["key"] else key not in ("name", "status", "model", "task")})


def read_sort(text: Any) -> dict[str, Any]:
    data = parse_tokens(text)
    return {"key": one_of(data.get("key"), tables.RUN_COLUMNS, "created"), "descending": data.get("descending") is not False}


def rename_run(views: Views, selected: Any, name: Any) -> list[Any]:
    chosen = read_selected(views, selected)
    if len(chosen) != 1:
        return [status.banner("Nothing was renamed.", "Select one run."), SKIP]
    try:
        views.store.rename(chosen[0], str(name or "")[:200])
    except StudioError as error:
        return [status.banner("Nothing was renamed.", str(error)), SKIP]
    return ["", ""]


def resume_run(runs: Runs, views: Views, selected: Any) -> str:
    """Go on with one run from its newest checkpoint, or at once where it waits."""
    chosen = read_selected(views, selected)
    if len(chosen) != 1:
        return status.banner("Nothing was resumed.", "Select one run.")
    try:
        runs.resume(chosen[0])
    except StudioError as error:
        return status.banner("Nothing was resumed.", str(error))
    return ""


def ask_branch(views: Views, selected: Any) -> list[Any]:
    """The checkpoints of a run to choose from, newest first, with their sizes."""
    chosen = read_selected(views, selected)
    saved = views.store.checkpoints(chosen[0])[::-1] if len(chosen) == 1 else []
    if not saved:
        return [SKIP, gr.update(visible=False), status.banner("There is nothing to branch from.", "Select one run that has a checkpoint (train.checkpoint_every).")]
    choices = [(f"step {c.step:,} · {size(c.bytes)}", c.step) for c in saved]
    return [gr.update(choices=choices, value=choices[0][1]), gr.update(visible=True), ""]


def branch_run(runs: Runs, views: Views, selected: Any, step: Any, changes: Any) -> list[Any]:
    """Start a run from another's checkpoint and look at it; or say what is wrong."""
    chosen = read_selected(views, selected)
    try:
        if len(chosen) != 1 or not isinstance(step, (int, float)):
            raise StudioError("Select one run and one of its steps.")
        child = runs.branch(chosen[0], int(step), read_changes(changes))
    except StudioError as error:
        return [SKIP, SKIP, SKIP, SKIP, status.banner("No branch was started.", str(error))]
    return [views.picked(child), gr.update(selected="train"), "train", gr.update(visible=False), ""]


def read_changes(text: Any) -> dict[str, Any]:
    """section.field=value, separated by blanks, as on the command line."""
    changes: dict[str, Any] = {}
    for part in str(text or "").split():
        name, equals, value = part.partition("=")
        if not equals:
            raise StudioError(f"{part!r:.80}: there is no = in it. Write section.field=value, e.g. train.steps=160.")
        try:
            changes[name] = json.loads(value)
        except (ValueError, RecursionError):
            changes[name] = value
    return changes


def ask(views: Views, selected: Any) -> list[Any]:
    """What would be deleted, before it is; live runs are refused."""
    runs = [r for i in read_selected(views, selected) if (r := views.run(i))]
    live = [r for r in runs if r.status.is_live]
    if live:
        return ["", gr.update(visible=False), status.banner(f"“{live[0].name}” is still going.", "Stop it first, then delete it.")]
    if not runs:
        return ["", gr.update(visible=False), status.banner("Nothing is selected.", "Select the runs to delete.")]
    steps = sum(r.steps_done for r in runs)
    names = ", ".join(f"“{r.name}”" for r in runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
    text = f"<p><b>Delete {esc(names)}?</b> {esc(count(steps, 'step'))} with every group and completion. This cannot be undone.</p>"
    return [text, gr.update(visible=True), ""]


def delete_runs(views: Views, selected: Any) -> list[Any]:
    freed, gone, problem = 0, 0, ""
    for run_id in read_selected(views, selected):
        try:
            freed += views.store.delete(run_id)
            gone += 1
        except StudioError as error:
            problem = str(error)
    said = status.banner("Not everything was deleted.", problem) if problem else ""
    if gone:
        said += status.banner(f"Deleted {count(gone, 'run')}.", f"{size(freed)} freed; the file now takes {size(views.store.file_bytes())}.", tone="good")
    return [said, gr.update(visible=False), json.dumps(read_selected(views, selected))]


# ---- export ----------------------------------------------------------------------------------------------------------


def _text_file(write: Callable[[Store, str, Any], None]) -> Callable[[Store, str, Path], None]:
    def to(store: Store, run_id: str, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as out:
            write(store, run_id, out)
    return to


# label -> (how the file's name ends, how it is written)
def _recipe(write: Callable[[RunConfig], str]) -> Callable[[Store, str, Path], None]:
    return lambda store, run_id, path: path.write_text(write(parse(store.run(run_id).config)), "utf-8") and None


EXPORTS: dict[str, tuple[str, Callable[[Store, str, Path], None] | None]] = {
    "Export CSV": ("metrics.csv", _text_file(export.export_metrics_csv)),
    "Export JSONL": ("rollouts.jsonl", _text_file(export.export_rollouts_jsonl)),
    "Export Parquet": ("rollouts.parquet", export.export_rollouts_parquet),
    "Export config": ("config.json", _text_file(export.export_config_json)),
    "Export command": ("command.sh", _recipe(as_command)),
    "Export TRL script": ("trl.py", _recipe(as_trl_script)),
    "Export model": ("model.zip", None),  # by the desk: it needs torch
}


def file_name(run: RunRow, ending: str) -> str:
    """A name that any file system takes: what a person called the run, letters and digits only, and the run's id."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", run.name).strip("-")[:60] or "run"
    return f"{readable}-{re.sub(r'[^A-Za-z0-9-]+', '', run.id)}-{ending}"


def export_run(views: Views, store: Store, desk: Desk, name: str, selected: Any) -> list[Any]:
    """A file of one run, for the hidden download button."""
    run = next((r for i in read_selected(views, selected) if (r := views.run(i))), None)
    if run is None:
        return [None, status.banner("Nothing was exported.", "Select one run.")]
    ending, write = EXPORTS[name]
    try:
        path = export_folder() / file_name(run, ending)
        if write is None:
            folder = desk.export_model(run.id, path.parent / "model")
            shutil.make_archive(str(path.with_suffix("")), "zip", folder)
            shutil.rmtree(folder)
        else:
            write(store, run.id, path)
    except (StudioError, OSError) as error:
        return [None, status.banner("Nothing was exported.", str(error))]
    return [str(path), ""]


@lru_cache(maxsize=1)
def _exports_root() -> Path:
    """A folder of this process alone: a fixed name in a shared temporary folder could be somebody else's."""
    return Path(tempfile.mkdtemp(prefix="grpo-studio-exports-"))


def export_folder() -> Path:
    """A folder of its own for every export, so that two tabs never write one file; old ones are swept."""
    root = _exports_root()
    root.mkdir(mode=0o700, exist_ok=True)  # something may sweep the temporary folder while the server runs
    for old in root.iterdir():
        if old.stat().st_mtime < time.time() - KEEP_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=root))


# ---- what is shown ---------------------------------------------------------------------------------------------------


class ShowRuns:
    """Fills what is out of date, as train.Show does."""

    def __init__(self, views: Views):
        self.views = views

    def __call__(self, run_id: Any, tab: Any, search: Any, selected: Any, sort: Any, seen: Any) -> list[Any]:
        views, was = self.views, parse_tokens(seen)
        if tab != "runs":
            return [SKIP] * (9 + len(EXPORTS) + len(COMPARED))  # table, five buttons, compare, differences, seen; exports; curves
        runs, chosen, order = views.runs(), read_selected(views, selected), read_sort(sort)
        picked = [r for i in chosen if (r := views.run(i))]
        tokens = {
            "table": token([run_id, [(r.id, r.revision) for r in runs], str(search or ""), chosen, order]),
            "tools": token([chosen, [(r.status, r.steps_done) for r in picked]]),
            "compare": token([views.curves_key(r) for r in picked]),
        }
        tools, compare = tokens["tools"] != was.get("tools"), tokens["compare"] != was.get("compare")
        several = len(picked) >= 2
        one = len(picked) == 1
        again = one and picked[0].status in (RunStatus.PAUSED, RunStatus.STOPPED, RunStatus.FAILED, RunStatus.INTERRUPTED)
        enabled = [one, again, one and bool(views.store.checkpoints(picked[0].id)), one, bool(picked) and not any(r.status.is_live for r in picked), *[len(picked) == 1] * len(EXPORTS)]
        return [
            run_list(runs, str(search or ""), chosen, run_id, order) if tokens["table"] != was.get("table") else SKIP,
            *(gr.update(interactive=on) if tools else SKIP for on in enabled),
            gr.update(visible=several) if compare else SKIP,
            *(views.figure(n, chosen, charts.View(smoothing=0.6 if n == "compared reward" else 0)) if compare and several else SKIP for n in COMPARED),
            tables.differences(settings(views, picked)) if compare and several else SKIP,
            json.dumps(tokens),
        ]


def run_list(runs: Sequence[RunRow], search: str, chosen: Sequence[str], in_view: Any, order: dict[str, Any]) -> str:
    if not runs:
        return status.empty("Your runs appear here", "With their reward, held-out accuracy and settings. Start one on the Train tab.")
    wanted = search.casefold().strip()
    found = [r for r in runs if wanted in f"{r.name} {r.model} {r.task} {r.rubric} {tables.algorithm_of(r)} {r.status}".casefold()]
    if not found:
        return status.empty("No run matches", "Empty the search box.")
    values = {r.id: tables.run_values(r)[order["key"]] for r in found}
    known = sorted((r for r in found if values[r.id] is not None), key=lambda r: values[r.id], reverse=order["descending"])
    return tables.run_table([*known, *(r for r in found if values[r.id] is None)], chosen, in_view, order["key"], order["descending"])


def settings(views: Views, runs: Sequence[RunRow]) -> dict[str, dict[str, Any]]:
    """Label of a run -> its dotted settings. A configuration of another version is shown as it was recorded."""
    out: dict[str, dict[str, Any]] = {}
    for run in runs:
        try:
            out[views.label(run)] = flatten(parse(run.config))
        except InvalidConfig:
            out[views.label(run)] = {f"{s}.{k}": v for s, values in run.config.items() if isinstance(values, dict) for k, v in values.items()}
    return out
