"""A run as a file to download: metrics, completions, settings, recipes, the model."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import gradio as gr

from grpo_core.analysis.html_report import write_report
from grpo_core.config import RunConfig, parse
from grpo_core.errors import StudioError
from grpo_core.exporting.recipes import as_command, as_trl_script
from grpo_core.store import RunRow, Store, export
from ui.render import status
from ui.server.service import Service
from ui.server.views import Views
from ui.tabs.frame import SKIP
from ui.tabs.run_actions import only_selected

# Gradio copies each file that it hands out, so ours can be deleted later.
KEEP_SECONDS = 3600

Write = Callable[[Store, str, Path], None]  # writes a run, by its id, to a file


def _text_file(write: Callable[[Store, str, TextIO], None]) -> Write:
    def to_file(store: Store, run_id: str, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as out:
            write(store, run_id, out)

    return to_file


def _recipe(write: Callable[[RunConfig], str]) -> Write:
    def to_file(store: Store, run_id: str, path: Path) -> None:
        path.write_text(write(parse(store.run(run_id).config)), "utf-8")

    return to_file


REPORT, MODEL = "Report", "Export model"
# label -> (how the file's name ends, how it is written)
EXPORTS: dict[str, tuple[str, Write | None]] = {
    REPORT: ("report.html", _text_file(write_report)),
    "Export CSV": ("metrics.csv", _text_file(export.export_metrics_csv)),
    "Export JSONL": ("rollouts.jsonl", _text_file(export.export_rollouts_jsonl)),
    "Export messages": ("messages.jsonl", _text_file(export.export_messages_jsonl)),
    "Export Parquet": ("rollouts.parquet", export.export_rollouts_parquet),
    "Export config": ("config.json", _text_file(export.export_config_json)),
    "Export command": ("command.sh", _recipe(as_command)),
    "Export TRL script": ("trl.py", _recipe(as_trl_script)),
    MODEL: ("model.zip", None),  # by the service: it needs torch
}
NEEDS_CHECKPOINT = (MODEL,)
NEEDS_SETTINGS = ("Export command", "Export TRL script")  # that this version can read


def file_name(run: RunRow, ending: str) -> str:
    """A name valid on any file system: letters and digits of the run's name, and its id."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", run.name).strip("-")[:60] or "run"
    return f"{readable}-{re.sub(r'[^A-Za-z0-9-]+', '', run.id)}-{ending}"


def export_run(views: Views, service: Service, name: Any, selected: Any) -> list[Any]:
    """The selected run as a file, for the hidden download button, and a message.

    name: a key of EXPORTS.
    """
    run = only_selected(views, selected)
    if run is None or not isinstance(name, str) or name not in EXPORTS:
        return [None, status.banner("Nothing was exported.", "Select one run.")]
    ending, write = EXPORTS[name]
    try:
        path = export_folder() / file_name(run, ending)
        if write is None:
            folder = service.export_model(run.id, path.parent / "model")
            shutil.make_archive(str(path.with_suffix("")), "zip", folder)
            shutil.rmtree(folder)
        else:
            write(views.store, run.id, path)
    except (StudioError, OSError) as error:
        return [None, status.banner("Nothing was exported.", str(error))]
    return [str(path), ""]


def push_run(views: Views, service: Service, repository: Any, asked: Any) -> list[Any]:
    """Push the model of a run to the Hub. Returns a message, and closes the question if it went."""
    run = only_selected(views, asked)
    if run is None:
        return [status.banner("Nothing was pushed.", "Select one run."), SKIP]
    try:
        address = service.push_model(run.id, str(repository or "").strip()[:200])
    except (StudioError, OSError) as error:
        return [status.banner("Nothing was pushed.", str(error)), SKIP]
    message = status.banner(f"The model of “{run.name}” is on the Hub.", address, tone="good")
    return [message, gr.update(visible=False)]


@lru_cache(maxsize=1)
def exports_root() -> Path:
    """A folder of this process alone.

    Another user could own a folder of a fixed name in the shared temporary folder.
    """
    return Path(tempfile.mkdtemp(prefix="grpo-studio-exports-"))


def export_folder() -> Path:
    """A new folder for one export, so that two tabs never write the same file.

    Folders older than KEEP_SECONDS are deleted.
    """
    root = exports_root()
    # The system may clean the temporary folder while the server runs.
    root.mkdir(mode=0o700, exist_ok=True)
    for old in root.iterdir():
        if old.stat().st_mtime < time.time() - KEEP_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=root))
