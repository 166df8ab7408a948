"""Preferences as files on the page: export to a download, import of an upload."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from grpo_core.errors import StudioError
from grpo_core.preferences import exchange
from grpo_core.tasks.table import keep_upload
from ui.components.html_panel import QUIET, data_of, html_panel
from ui.render import status
from ui.server.calls import slow
from ui.server.refresh import RefreshEvents
from ui.server.views import Views
from ui.tabs.exports import export_folder
from ui.tabs.frame import UPLOADED, Frame

ENDINGS = ("jsonl", "parquet")
EXPORTS = "".join(
    f'<button type="button" data-do="save" data-ending="{ending}">Export {name}</button>'
    for ending, name in zip(ENDINGS, ("JSONL", "Parquet"), strict=True)
)
MAX_CHARS = 1000


@dataclass(frozen=True, slots=True)
class PairFiles:
    """The components of this part."""

    save: gr.HTML
    file: gr.DownloadButton  # hidden
    columns: gr.Textbox
    load: gr.UploadButton


def build_files() -> PairFiles:
    with gr.Row(elem_id="pair-files"):
        return PairFiles(
            save=html_panel(f'<div class="tools">{EXPORTS}</div>', ("save",), elem_id="pair-save"),
            file=gr.DownloadButton("Preferences", visible="hidden", elem_id="pair-file"),
            load=gr.UploadButton(
                "Import preferences",
                size="sm",
                file_types=[".jsonl", ".parquet"],
                scale=0,
                min_width=150,
            ),
            columns=gr.Textbox(
                label="Columns of the import",
                placeholder="chosen=better, rejected=worse",
                max_lines=1,
                max_length=MAX_CHARS,
                elem_id="pair-columns",
                interactive=True,
            ),
        )


def wire_files(
    files: PairFiles, frame: Frame, views: Views, who: gr.Textbox, refresh: RefreshEvents
) -> None:
    """Connect the events of this part. refresh: fills the pairs after an import."""

    # Gradio passes the event to a parameter of this annotation; a partial function has none.
    def save(event: gr.EventData) -> list[Any]:
        return save_preferences(views, data_of(event).get("ending"))

    def load(path: Any, columns: Any, name: Any) -> list[Any]:
        return load_preferences(views, path, columns, name)

    files.save.save(slow(save), None, [files.file, frame.notice], **QUIET).success(
        None,
        files.file,
        None,
        js="(file) => { if (file) document.querySelector('#pair-file').click(); }",
    )
    given, outputs = [files.load, files.columns, who], [frame.notice, files.load]
    refresh.after(files.load.upload(slow(load), given, outputs, **UPLOADED))


def save_preferences(views: Views, ending: Any) -> list[Any]:
    """All preferences as a file for the hidden download button, and a message."""
    if ending not in ENDINGS:
        return [None, ""]
    try:
        path = export_folder() / f"preferences.{ending}"
        num = exchange.export_preferences(views.store, path)
    except (StudioError, OSError) as error:
        return [None, status.banner("Nothing was exported.", str(error))]
    if not num:
        return [None, status.banner("Nothing was exported.", "There are no preferences yet.")]
    return [str(path), ""]


def load_preferences(views: Views, path: Any, columns: Any, who: Any) -> list[Any]:
    """Add an uploaded file's preferences. Returns a message, and the upload, empty again."""
    name, kept = Path(str(path)).name, None
    try:
        kept = keep_upload(Path(str(path)))  # only there may every server read it
        mapped = read_columns(columns)
        found = exchange.import_preferences(views.store, str(kept), mapped, str(who or "").strip())
    except (StudioError, OSError, shutil.Error) as error:
        said = str(error).replace(str(kept or path), name)
        return [status.banner("Nothing was imported.", said), None]
    tone = "warn" if found.num_bad else "good"
    return [status.banner(f"Preferences of {name}:", str(found), tone=tone), None]


def read_columns(text: Any) -> dict[str, str]:
    """COLUMN=NAME pairs, separated by commas, as the command line's --map. Raises StudioError."""
    pairs = [part.partition("=") for part in str(text or "").split(",") if part.strip()]
    if wrong := [part for part, equals, name in pairs if not equals or not name.strip()]:
        raise StudioError(f"{wrong[0].strip()!r}: write COLUMN=NAME, such as chosen=better.")
    return {column.strip(): name.strip() for column, _, name in pairs}
