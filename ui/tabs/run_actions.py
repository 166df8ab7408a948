"""Actions on runs: describe, resume, copy settings, branch, delete; and questions before them.

Each returns the values of the components that the Runs tab connects to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from grpo_core.errors import StudioError
from grpo_core.store import CheckpointRow, RunRow
from ui.components.html_panel import one_of
from ui.render import status
from ui.render.run_table import RUN_SORTS
from ui.render.tables import Sort
from ui.render.text import count, esc, plain, size
from ui.server.views import Runs, Views
from ui.tabs.frame import SKIP, parse_list, parse_tokens
from ui.tabs.start_from import copy_run

MAX_NAME, MAX_TAG, MAX_TAGS, MAX_NOTE = 200, 40, 12, 2000  # characters, and number of tags
MAX_LISTED = 12  # saved steps that are named one by one


def read_selected(views: Views, text: Any) -> list[str]:
    """Ids of the selected runs that still exist, in the order of selection."""
    ids = [i for i in parse_list(text) if isinstance(i, str)]
    return [i for i in dict.fromkeys(ids) if views.run(i)]


def only_selected(views: Views, text: Any) -> RunRow | None:
    """The selected run; None unless it is exactly one."""
    chosen = read_selected(views, text)
    return views.run(chosen[0]) if len(chosen) == 1 else None


def read_sort(text: Any) -> Sort:
    data = parse_tokens(text)
    return Sort(
        one_of(data.get("key"), RUN_SORTS, "created"),
        data.get("descending") is not False,
    )


def describe_run(views: Views, data: Mapping[str, Any]) -> str:
    """Give a run the name, tags and note that a person typed. Returns a message."""
    run = views.run(data.get("run"))
    if run is None:
        return status.banner("Nothing was saved.", "This run was deleted. Choose another one.")
    name, tags, note = (str(data.get(key) or "") for key in ("name", "tags", "note"))
    words = [tag.strip().lstrip("#")[:MAX_TAG] for tag in tags.split(",")][:MAX_TAGS]
    try:
        if name.strip() != run.name:
            views.store.rename(run.id, name[:MAX_NAME])
        views.store.annotate(run.id, words, note[:MAX_NOTE])
    except StudioError as error:
        return status.banner("Nothing was saved.", str(error))
    return ""


def resume_run(runs: Runs, views: Views, selected: Any) -> str:
    """Resume one run: at once if it is paused, else from its newest checkpoint."""
    run = only_selected(views, selected)
    if run is None:
        return status.banner("Nothing was resumed.", "Select one run.")
    try:
        runs.resume(run.id)
    except StudioError as error:
        return status.banner("Nothing was resumed.", str(error))
    return ""


def copy_settings(views: Views, selected: Any) -> list[Any]:
    """The settings of the selected run, for the form of the Train tab, and the notice there."""
    run = only_selected(views, selected)
    return copy_run(views, run.id if run else None)


def ask_branch(views: Views, selected: Any) -> list[Any]:
    """Show the saved steps of the selected run, newest first, with their sizes.

    Returns the question, the step, how far to train, the learning rate, the changes, and the run
    that the question is about.
    """
    run = only_selected(views, selected)
    saved = views.store.checkpoints(run.id)[::-1] if run else []
    if run is None or not saved:
        return [SKIP] * 5 + ["[]"]
    steps = [(f"step {c.step:,} · {size(c.bytes)}", c.step) for c in saved]
    newest, planned = saved[0].step, run.num_steps or 0
    rate = (run.config.get("train") or {}).get("learning_rate")
    question = (
        f"<p tabindex='-1'><b>Go on from a saved step of {_named(run.name)}, in a new run</b></p>"
        f'<p class="note">{esc(_saved_steps(saved))} What you leave empty stays as in that run.</p>'
    )
    return [
        question,
        gr.update(choices=steps, value=newest),
        str(planned if newest < planned else newest + planned),
        gr.update(value="", placeholder=plain(rate) if isinstance(rate, float) else "as before"),
        "",
        json.dumps([run.id]),
    ]


def _saved_steps(saved: Sequence[CheckpointRow]) -> str:
    """Which steps have a checkpoint; saved: newest first."""
    if len(saved) == 1:
        return f"Step {saved[0].step:,} is saved."
    steps = [f"{c.step:,}" for c in reversed(saved)]
    if len(steps) > MAX_LISTED:
        return f"{len(steps):,} steps from {steps[0]} to {steps[-1]} are saved."
    return f"Saved steps: {', '.join(steps)}."


def branch_run(
    runs: Runs, views: Views, asked: Any, step: Any, changes: Mapping[str, Any]
) -> list[Any]:
    """Start a run from another run's checkpoint and show it, or a message of what is wrong.

    changes: field -> what was typed for it, and under "" further section.field=value pairs.
    """
    run = only_selected(views, asked)
    try:
        if run is None or not isinstance(step, (int, float)):
            raise StudioError("Select one run and one of its saved steps.")
        typed = {
            k: _value(str(v).strip()) for k, v in changes.items() if k and str(v or "").strip()
        }
        child = runs.branch(run.id, int(step), typed | read_changes(changes.get("")))
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
        changes[name] = _value(value)
    return changes


def _value(text: str) -> Any:
    """A typed value: a number, true or false, a list; else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def ask_delete(views: Views, selected: Any) -> list[Any]:
    """The question before the selected runs are deleted, and the runs that it is about."""
    runs = [r for i in read_selected(views, selected) if (r := views.run(i))]
    if not runs or any(run.status.is_live for run in runs):
        return [SKIP, "[]"]
    steps = count(sum(r.steps_done for r in runs), "step")
    names = ", ".join(_named(r.name) for r in runs[:3])
    if len(runs) > 3:
        names += f" and {len(runs) - 3} more"
    question = (
        f"<p tabindex='-1'><b>Delete {names}?</b> {esc(steps)} with every group and completion. "
        "This cannot be undone.</p>"
    )
    return [question, json.dumps([run.id for run in runs])]


def ask_push(views: Views, selected: Any) -> list[Any]:
    """The question before a model is pushed to the Hub, and the run that it is about."""
    run = only_selected(views, selected)
    if run is None:
        return [SKIP, "[]"]
    question = (
        f"<p tabindex='-1'><b>Push the model of {_named(run.name)} to the Hub</b></p>"
        '<p class="note">A new repository is made private.</p>'
    )
    return [question, json.dumps([run.id])]


def delete_runs(views: Views, asked: Any, selected: Any) -> list[Any]:
    """Delete the runs that the question is about. Returns a message, its box and the selection."""
    freed, num_deleted, problem = 0, 0, ""
    for run_id in read_selected(views, asked):
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


def _named(name: str) -> str:
    """A run's name in a sentence: a long one is cut, and whole on hover."""
    return f'“<span class="cut">{esc(name)}</span>”'
