"""“Import” on the Runs tab: the files of another trainer's run, uploaded or on this server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from grpo_core.errors import StudioError
from grpo_core.records.formats import FORMATS
from grpo_core.records.formats.table import NAMES
from grpo_core.records.imports import Wanted
from ui.components.html_panel import QUIET, data_of, html_panel
from ui.render import imported
from ui.render.status import banner
from ui.server.calls import slow
from ui.server.refresh import RefreshEvents
from ui.server.service import Service
from ui.tabs.frame import SKIP, UPLOADED

FOUND = "found by its fields"
KINDS = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".db", ".sqlite")
MAX_PLACE, MAX_NAME = 1000, 200
TABLE = "table"
# role of a column in a table -> the label of its field
COLUMNS = {role: f"Column: {role.removeprefix('num_').replace('_', ' ')}" for role in NAMES}
HELP = (
    "The records of a run that TRL, Unsloth, verl, prime-rl, NeMo-RL, ms-swift or trackio wrote, "
    "or any table with a completion a row. Upload all files of one run together."
)
# What the command line says in its messages -> what the page says.
OPTIONS = (
    (r"with --columns (\w+)=NAME", r"in “Column: \1”"),
    (r"--columns", "Column"),
    (r"--from", "Format"),
    (r" Import it with: python -m grpo_core import PATH", ""),
)
FOLLOWING = "The folder is followed. Its run grows in the table below."
READING = '<p class="note" role="status">Reading. The run grows in the table below.</p>'
SHOW_JS = "() => requestAnimationFrame(() => document.querySelector('#import-help')?.focus())"


@dataclass(frozen=True, slots=True)
class ImportBox:
    """The components of this part. columns: in the order of COLUMNS."""

    open: gr.Button
    box: gr.Column
    files: gr.File
    place: gr.Textbox
    format: gr.Dropdown
    name: gr.Textbox
    mapping: gr.Column
    columns: list[gr.Dropdown]
    preview: gr.Button
    go: gr.Button
    close: gr.Button
    result: gr.HTML
    follow: gr.Checkbox
    followed: gr.HTML

    @property
    def given(self) -> list[Any]:
        """What `read_wanted` takes, in its order."""
        return [self.files, self.place, self.format, self.name, *self.columns]


def build_open() -> gr.Button:
    """The button beside the search."""
    return gr.Button("Import", size="sm", scale=0, min_width=90, elem_id="open-import")


def build_import(opens: gr.Button) -> ImportBox:
    with gr.Column(visible=False, elem_id="import-box", elem_classes="banner plain stack") as box:
        html_panel(
            f'<p id="import-help" tabindex="-1"><b>Import a run</b> {HELP}</p>',
            elem_id="import-says",
        )
        with gr.Row(elem_classes="two-sides"):
            with gr.Column(elem_classes="stack", min_width=0):
                files = gr.File(
                    label="Upload a run",
                    file_count="multiple",
                    file_types=list(KINDS),
                    height=140,
                    elem_id="import-files",
                )
            with gr.Column(elem_classes="stack", min_width=0):
                place = _text("File or folder on this server", "import-place", MAX_PLACE)
                format = gr.Dropdown(
                    [(FOUND, ""), *((f.title, name) for name, f in FORMATS.items())],
                    value="",
                    label="Format",
                    elem_id="import-format",
                    filterable=False,
                    interactive=True,
                )
                name = _text("Name of the run", "import-name", MAX_NAME)
                follow = gr.Checkbox(
                    False,
                    label="Follow a folder that still grows",
                    elem_id="import-follow",
                    interactive=True,
                )
        with gr.Column(visible=False, elem_id="import-mapping", min_width=0) as mapping:
            html_panel(
                '<p class="help">Which column of the table holds what. Empty: found by its name. '
                "Every further column of numbers is a score.</p>"
            )
            with gr.Row(elem_classes="dialog-fields"):
                columns = [
                    gr.Dropdown(
                        [],
                        label=label,
                        allow_custom_value=True,
                        elem_id=f"import-column-{field}",
                        interactive=True,
                    )
                    for field, label in COLUMNS.items()
                ]
        with gr.Row(elem_classes="dialog-buttons"):
            preview = _button("Preview import", 130)
            go = _button("Import run", 110, variant="primary")
            close = _button("Close", 80)
        result = html_panel(events=("open",), elem_id="import-result")
        following = html_panel(events=("unfollow",), elem_id="import-followed")
    return ImportBox(
        open=opens,
        box=box,
        files=files,
        place=place,
        format=format,
        name=name,
        mapping=mapping,
        columns=columns,
        preview=preview,
        go=go,
        close=close,
        result=result,
        follow=follow,
        followed=following,
    )


def _text(label: str, elem_id: str, max_length: int) -> gr.Textbox:
    return gr.Textbox(
        label=label, max_lines=1, max_length=max_length, elem_id=elem_id, interactive=True
    )


def _button(label: str, min_width: int, **options: Any) -> gr.Button:
    return gr.Button(label, size="sm", scale=0, min_width=min_width, **options)


def wire_import(box: ImportBox, service: Service, refresh: RefreshEvents) -> None:
    # Gradio passes the event to a parameter of this annotation; a partial function has none.
    def unfollow(event: gr.EventData) -> str:
        place = data_of(event).get("place")
        if isinstance(place, str):
            service.imports.unfollow(place)
        return imported.followed(service.imports.followed())

    def preview(*given: Any) -> list[Any]:
        return show_preview(service, given)

    def run(*given: Any) -> list[Any]:
        return import_run(service, given)

    def open_box() -> list[Any]:
        return [gr.update(visible=True), imported.followed(service.imports.followed())]

    box.open.click(open_box, None, [box.box, box.followed], **QUIET).success(None, js=SHOW_JS)
    box.close.click(lambda: [gr.update(visible=False), ""], None, [box.box, box.result], **QUIET)
    box.format.change(_show_mapping, box.format, box.mapping, **QUIET)
    wait = f"() => {READING!r}"
    previewed = box.preview.click(None, None, box.result, js=wait, **QUIET)
    previewed.then(slow(preview), box.given, [box.result, box.mapping, *box.columns], **UPLOADED)
    begun = box.go.click(None, None, box.result, js=wait, **QUIET)
    given, outputs = [*box.given, box.follow], [box.result, box.files, box.followed]
    refresh.after(begun.then(slow(run), given, outputs, **UPLOADED))
    refresh.after(box.followed.unfollow(slow(unfollow), None, box.followed, **QUIET))


def _show_mapping(format: Any) -> dict[str, Any]:
    """Columns are named for the format of tables only."""
    return gr.update(visible=format == TABLE)


# ---- what a person does ----------------------------------------------------------------------


def read_wanted(given: Sequence[Any]) -> Wanted:
    """The request in the values of `ImportBox.given`; a browser can send anything."""
    files, place, format, name, *columns = given
    uploads = files if isinstance(files, list) else [files] if files else []
    named = {
        field: column.strip()[:MAX_NAME]
        for field, column in zip(COLUMNS, columns, strict=True)
        if isinstance(column, str) and column.strip()
    }
    chosen = format if isinstance(format, str) and format in FORMATS else ""
    return Wanted(
        tuple(Path(str(file)) for file in uploads),
        str(place or "").strip()[:MAX_PLACE],
        TABLE if named and not chosen else chosen,
        str(name or "").strip()[:MAX_NAME],
        named,
    )


def show_preview(service: Service, given: Sequence[Any]) -> list[Any]:
    """What is in the files, whether the columns of a table are to be named, and their choices.

    They are to be named where nothing was found, and where a person chose the format.
    """
    wanted, names = read_wanted(given), list[str]()
    is_table = wanted.format == TABLE
    try:
        said = imported.preview(service.imports.preview(wanted))
    except (StudioError, OSError) as error:
        said = banner("There is no preview.", _said(error, wanted))
        is_table = wanted.format in ("", TABLE)
    if is_table:
        with suppress(StudioError, OSError):
            names = service.imports.columns(wanted)
    choices = gr.update(choices=["", *names]) if names else SKIP
    is_shown = bool(names) or wanted.format == TABLE
    return [said, gr.update(visible=is_shown), *[choices] * len(COLUMNS)]


def import_run(service: Service, given: Sequence[Any]) -> list[Any]:
    """Import, or follow a folder, and say what was written.

    Returns the message; the uploads, empty again; and the folders that are followed.
    """
    *values, follow = given
    wanted = read_wanted(values)
    try:
        if follow is True:
            service.imports.follow(wanted)
            said = banner(FOLLOWING, "", tone="good")
        else:
            said = imported.result(service.imports.run(wanted))
    except (StudioError, OSError) as error:
        return [banner("Nothing was imported.", _said(error, wanted)), SKIP, SKIP]
    return [said, None, imported.followed(service.imports.followed())]


def _said(error: Exception, wanted: Wanted) -> str:
    """The message in the words of the page: an upload by its name, no options of a command."""
    said = str(error)
    for option, name in OPTIONS:
        said = re.sub(option, name, said)
    for file in wanted.files:
        said = re.sub(rf"/[^'\"]*/{re.escape(file.name)}", lambda _, name=file.name: name, said)
    return re.sub(r"/[^'\"]*/import-\w+", "the upload", said) if wanted.files else said
