"""A run as a file to take away: numbers, completions, settings, recipes, the model."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from grpo_core.config import RunConfig, parse
from grpo_core.errors import StudioError
from grpo_core.exporting.recipes import as_command, as_trl_script
from grpo_core.store import RunRow, Store, export
from ui.render import status
from ui.server.service import Desk
from ui.server.views import Views
from ui.tabs.run_actions import read_selected

KEEP_SECONDS = 3600  # Gradio copies what it hands out; ours is only a stop on the way


def _text_file(write: Callable[[Store, str, Any], None]) -> Callable[[Store, str, Path], None]:
    def to(store: Store, run_id: str, path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as out:
            write(store, run_id, out)

    return to


def _recipe(write: Callable[[RunConfig], str]) -> Callable[[Store, str, Path], None]:
    return lambda store, run_id, path: (
        path.write_text(write(parse(store.run(run_id).config)), "utf-8") and None
    )


# label -> (how the file's name ends, how it is written)
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


def push_run(views: Views, desk: Desk, repository: Any, selected: Any) -> str:
    """One run's model as a commit on the Hub."""
    run = next((r for i in read_selected(views, selected) if (r := views.run(i))), None)
    if run is None:
        return status.banner("Nothing was pushed.", "Select one run.")
    try:
        address = desk.push_model(run.id, str(repository or "").strip()[:200])
    except (StudioError, OSError) as error:
        return status.banner("Nothing was pushed.", str(error))
    return status.banner("The model is on the Hub.", address, tone="good")


@lru_cache(maxsize=1)
def _exports_root() -> Path:
    """A folder of this process alone: a fixed name in a shared temporary folder could be somebody else's."""
    return Path(tempfile.mkdtemp(prefix="grpo-studio-exports-"))


def export_folder() -> Path:
    """A folder of its own for every export, so that two tabs never write one file; old ones are swept."""
    root = _exports_root()
    root.mkdir(
        mode=0o700, exist_ok=True
    )  # something may sweep the temporary folder while the server runs
    for old in root.iterdir():
        if old.stat().st_mtime < time.time() - KEEP_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=root))
