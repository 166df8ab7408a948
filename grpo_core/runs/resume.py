"""Continuing from a checkpoint: the same run, or a branch with other settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from grpo_core.checkpoint_files import BadCheckpoint, verify
from grpo_core.config import RunConfig, flatten, nest, parse
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.store import CheckpointRow, RunRow, Store
from grpo_core.tasks import is_gym, load_task
from grpo_core.training.control import Start
from grpo_core.types import RunStatus

log = logging.getLogger("grpo_studio")

MAY_CHANGE = ("model.device",)  # the settings of the model that a branch may change


def refuse_foreign(run: RunRow) -> None:
    """Raises StudioError for a run of another trainer, which takes no command here."""
    if run.source is not None:
        raise StudioError(
            f"“{run.name}” was trained with {run.source.trainer}, so its weights are not here. "
            "Start a run of your own with its settings."
        )


def plan_resume(store: Store, run_id: str) -> tuple[RunConfig, Start]:
    """Configuration and start of a resumed run. Raises StudioError.

    The start is its newest intact checkpoint, or the beginning without one.
    """
    run = store.run(run_id)
    refuse_foreign(run)
    if run.status.is_live:
        raise StudioError(
            f"run {run_id!r} is {run.status}, so there is nothing to resume. "
            "Wait until it ends, or stop it first."
        )
    if run.status is RunStatus.FINISHED:
        raise StudioError(
            f"run {run_id!r} has finished all of its {run.steps_done} steps. "
            "To train on, branch from its last step with more steps."
        )
    config = parse(run.config)
    _check_prompts(run, config)
    return config, where_to_start(store, run)


def _check_prompts(run: RunRow, config: RunConfig) -> None:
    """Raises InvalidConfig if the prompts are missing or have changed since the run started."""
    known, table = (run.env or {}).get("prompts"), load_task(config.task).table
    if known and table is not None and table.fingerprint != known:
        problem = "its prompts have changed since the run started"
        hint = "Restore the old prompts, or branch from a checkpoint to continue with the new ones."
        place = (
            ("task.name", config.task.name)
            if is_gym(config.task.name)
            else ("task.path", config.task.path)
        )
        raise InvalidConfig([FieldProblem(*place, problem, hint)])


def where_to_start(store: Store, run: RunRow) -> Start:
    """The newest intact checkpoint of a run, else the one it branched from, else the beginning."""
    interventions = tuple(store.interventions(run.id))
    for row in reversed(store.checkpoints(run.id)):
        try:
            verify(row.path, row.sha256)
            return Start(row.step, row.path, row.sha256, interventions)
        except BadCheckpoint as problem:
            log.warning("run %s: %s; trying the checkpoint before it", run.id, problem)
    if run.parent_run_id is not None:
        row = checkpoint_of(store, store.run(run.parent_run_id), run.parent_step)
        return Start(row.step, row.path, row.sha256, interventions)
    return Start(interventions=interventions)


def plan_branch(
    store: Store, run_id: str, step: int | None, changes: Mapping[str, Any]
) -> tuple[RunConfig, Start]:
    """Configuration and start of a branch: a new run from a checkpoint, with settings changed.

    step: of the checkpoint, None for the last one. Raises StudioError.
    """
    run = store.run(run_id)
    row = checkpoint_of(store, run, step)
    in_force = {
        i.field: i.value
        for i in store.interventions(run_id)
        if i.kind == "setting" and i.field and i.value is not None and i.step <= row.step
    }
    before = flatten(parse(run.config)) | in_force
    if "rubric.name" in changes and "rubric.criteria" not in changes:
        # The stored criteria belong to the old rubric; the new name brings its own.
        before["rubric.criteria"] = []
    config = parse(nest(before | dict(changes)))
    after = flatten(config)
    problems = [
        FieldProblem(
            name,
            after[name],
            f"a branch keeps the model that it starts from ({before[name]!r})",
            "Start a new run instead.",
        )
        for name in before
        if name.startswith("model.") and name not in MAY_CHANGE and after[name] != before[name]
    ]
    had_critic = before["algorithm.advantage"] == "value"
    has_critic = config.algorithm.advantage == "value"
    if had_critic != has_critic:
        problem = "a critic cannot be added to a run, or removed"
        hint = "Start a new run instead."
        advantage = config.algorithm.advantage
        problems.append(FieldProblem("algorithm.advantage", advantage, problem, hint))
    if config.train.steps <= row.step:
        problem = f"the branch starts after step {row.step}"
        hint = f"Use more than {row.step}."
        problems.append(FieldProblem("train.steps", config.train.steps, problem, hint))
    if problems:
        raise InvalidConfig(problems)
    return config, Start(row.step, row.path, row.sha256)


def checkpoint_of(store: Store, run: RunRow, step: int | None) -> CheckpointRow:
    """The checkpoint of `step`, or the last one; its hashes are checked. Raises StudioError."""
    rows = store.checkpoints(run.id)
    refuse_foreign(run)
    if run.example:
        raise StudioError(
            f"“{run.name}” is the recorded example. Its trained weights are not shipped. "
            "Start a run of your own first."
        )
    if not rows:
        raise StudioError(
            f"“{run.name}” has no saved state. Set train.checkpoint_every in a new run."
        )
    row = rows[-1] if step is None else next((r for r in rows if r.step == step), None)
    if row is None:
        raise StudioError(
            f"“{run.name}” has no saved state of step {step!r:.40}. "
            f"Saved: {', '.join(str(r.step) for r in rows)}."
        )
    verify(row.path, row.sha256)
    return row
