"""Actions on the selected runs: rename, resume, branch, delete.

Each returns the values of the components that the Runs tab connects to it.
"""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from grpo_core.errors import StudioError
from ui.components.html_panel import one_of
from ui.render import status, tables
from ui.render.text import count, esc, size
from ui.server.views import Runs, Views
from ui.tabs.frame import SKIP, parse_tokens


def read_selected(views: Views, text: Any) -> list[str]:
    """Ids of the selected runs that still exist, in the order of selection."""
    try:
        ids = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return []
    if not isinstance(ids, list):
        return []
    return [i for i in dict.fromkeys(x for x in ids if isinstance(x, str)) if views.run(i)]


def read_sort(text: Any) -> tables.Sort:
    data = parse_tokens(text)
    return tables.Sort(
        one_of(data.get("key"), tables.RUN_COLUMNS, "created"),
        data.get("descending") is not False,
    )


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
    """Resume one run: at once if it is paused, else from its newest checkpoint."""
    chosen = read_selected(views, selected)
    if len(chosen) != 1:
        return status.banner("Nothing was resumed.", "Select one run.")
    try:
        runs.resume(chosen[0])
    except StudioError as error:
        return status.banner("Nothing was resumed.", str(error))
    return ""


def ask_branch(views: Views, selected: Any) -> list[Any]:
    """Show the checkpoints of the selected run, newest first, with their sizes."""
    chosen = read_selected(views, selected)
    saved = views.store.checkpoints(chosen[0])[::-1] if len(chosen) == 1 else []
    if not saved:
        return [
            SKIP,
            gr.update(visible=False),
            status.banner(
                "There is nothing to branch from.",
                "Select one run that has a checkpoint (train.checkpoint_every).",
            ),
        ]
    choices = [(f"step {c.step:,} · {size(c.bytes)}", c.step) for c in saved]
    return [gr.update(choices=choices, value=choices[0][1]), gr.update(visible=True), ""]


def branch_run(runs: Runs, views: Views, selected: Any, step: Any, changes: Any) -> list[Any]:
    """Start a run from another run's checkpoint and show it, or a message of what is wrong."""
    chosen = read_selected(views, selected)
    try:
        if len(chosen) != 1 or not isinstance(step, (int, float)):
            raise StudioError("Select one run and one of its steps.")
        child = runs.branch(chosen[0], int(step), read_changes(changes))
    except StudioError as error:
        return [SKIP, SKIP, SKIP, SKIP, status.banner("No branch was started.", str(error))]
    return [views.picked(child), gr.update(selected="train"), "train", gr.update(visible=False), ""]


def read_changes(text: Any) -> dict[str, Any]:
    """section.field=value pairs, separated by spaces, as on the command line.

    Raises StudioError for a part without =.
    """
    changes: dict[str, Any] = {}
    for part in str(text or "").split():
        name, equals, value = part.partition("=")
        if not equals:
            raise StudioError(
                f"{part!r:.80}: there is no = in it. "
                "Write section.field=value, e.g. train.steps=160."
            )
        try:
            changes[name] = json.loads(value)
        except (ValueError, RecursionError):
            changes[name] = value
    return changes


def ask_delete(views: Views, selected: Any) -> list[Any]:
    """Ask before the selected runs are deleted; refuse live runs."""
    runs = [r for i in read_selected(views, selected) if (r := views.run(i))]
    live = [r for r in runs if r.status.is_live]
    if live:
        message = status.banner(
            f"“{live[0].name}” is still running.", "Stop it first, then delete it."
        )
        return ["", gr.update(visible=False), message]
    if not runs:
        message = status.banner("Nothing is selected.", "Select the runs to delete.")
        return ["", gr.update(visible=False), message]
    steps = count(sum(r.steps_done for r in runs), "step")
    names = ", ".join(f"“{r.name}”" for r in runs[:3])
    if len(runs) > 3:
        names += f" and {len(runs) - 3} more"
    question = (
        f"<p><b>Delete {esc(names)}?</b> {esc(steps)} with every group and completion. "
        "This cannot be undone.</p>"
    )
    return [question, gr.update(visible=True), ""]


def delete_runs(views: Views, selected: Any) -> list[Any]:
    """Delete the selected runs. Returns the message, the question's box and the selection."""
    freed, num_deleted, problem = 0, 0, ""
    for run_id in read_selected(views, selected):
        try:
            freed += views.store.delete(run_id)
            num_deleted += 1
        except StudioError as error:
            problem = str(error)
    message = status.banner("Not everything was deleted.", problem) if problem else ""
    if num_deleted:
        message += status.banner(
            f"Deleted {count(num_deleted, 'run')}.",
            f"{size(freed)} freed; the file now takes {size(views.store.file_bytes())}.",
            tone="good",
        )
    return [message, gr.update(visible=False), json.dumps(read_selected(views, selected))]
