"""Going on from a checkpoint: the same run, or a branch of it with other settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from grpo_core.checkpoint_files import BadCheckpoint, verify
from grpo_core.config import RunConfig, flatten, nest, parse
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.store import CheckpointRow, RunRow, Store
from grpo_core.tasks import load_task
from grpo_core.training.control import KNOB, Start
from grpo_core.types import RunStatus

log = logging.getLogger("grpo_studio")


def plan_resume(store: Store, run_id: str) -> tuple[RunConfig, Start]:
    """How to go on with a run: from its newest checkpoint that is whole, from the beginning if there is none. Raises StudioError."""
    run = store.run(run_id)
    if run.status.is_live:
        raise StudioError(
            f"run {run_id!r} is {run.status}, so there is nothing to resume. Wait until it has ended, or stop it first."
        )
    if run.status is RunStatus.FINISHED:
        raise StudioError(
            f"run {run_id!r} has finished all of its {run.steps_done} steps. To train on, branch from its last step with more steps."
        )
    config = parse(run.config)
    _check_prompts(run, config)
    return config, where_to_start(store, run)


def _check_prompts(run: RunRow, config: RunConfig) -> None:
    """A file or dataset that is gone, or holds other prompts now, is said before anything is loaded: going on would be another run."""
    known, table = (run.env or {}).get("prompts"), load_task(config.task).table
    if known and table is not None and table.fingerprint != known:
        raise InvalidConfig(
            [
                FieldProblem(
                    "task.path",
                    config.task.path,
                    "it holds other prompts than when the run began",
                    "Put it back as it was, or branch from a checkpoint to go on with the new ones.",
                )
            ]
        )


def where_to_start(store: Store, run: RunRow) -> Start:
    """The newest of a run's checkpoints that is whole; if it has none yet, the one it branched from; else the beginning."""
    edits = store.edits(run.id)
    for row in reversed(store.checkpoints(run.id)):
        try:
            verify(row.path, row.sha256)
            return Start(row.step, row.path, row.sha256, edits)
        except BadCheckpoint as problem:
            log.warning("run %s: %s; the checkpoint before it is tried", run.id, problem)
    if run.parent_run_id is not None:
        row = checkpoint_of(store, store.run(run.parent_run_id), run.parent_step)
        return Start(row.step, row.path, row.sha256, edits)
    return Start(edits=edits)


def plan_branch(
    store: Store, run_id: str, step: int | None, changes: Mapping[str, Any]
) -> tuple[RunConfig, Start]:
    """A new run that starts where another was after `step` (None: its last checkpoint), with some settings changed. Raises StudioError."""
    run = store.run(run_id)
    row = checkpoint_of(store, run, step)
    in_force = {
        name.removeprefix(KNOB): v
        for s, values in store.edits(run_id).items()
        if s <= row.step
        for name, v in values.items()
        if name.startswith(KNOB)
    }
    before = flatten(parse(run.config)) | in_force
    if "rubric.name" in changes and "rubric.criteria" not in changes:
        before[
            "rubric.criteria"
        ] = []  # written out in the record; another name means that one's criteria
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
        if name.startswith("model.") and after[name] != before[name]
    ]
    if ("value" in (before["algorithm.advantage"], config.algorithm.advantage)) and before[
        "algorithm.advantage"
    ] != config.algorithm.advantage:
        problems.append(
            FieldProblem(
                "algorithm.advantage",
                config.algorithm.advantage,
                "a critic cannot be added to a run, or taken away",
                "Start a new run instead.",
            )
        )
    if config.train.steps <= row.step:
        problems.append(
            FieldProblem(
                "train.steps",
                config.train.steps,
                f"the branch starts after step {row.step}",
                f"Use more than {row.step}.",
            )
        )
    if problems:
        raise InvalidConfig(problems)
    return config, Start(row.step, row.path, row.sha256)


def checkpoint_of(store: Store, run: RunRow, step: int | None) -> CheckpointRow:
    """The saved state after `step`, or the last one; checked byte by byte. Raises StudioError."""
    rows = store.checkpoints(run.id)
    if not rows:
        raise StudioError(
            f"“{run.name}” has no saved state. Set train.checkpoint_every in a new run."
        )
    row = rows[-1] if step is None else next((r for r in rows if r.step == step), None)
    if row is None:
        raise StudioError(
            f"“{run.name}” has no saved state of step {step!r:.40}. Saved: {', '.join(str(r.step) for r in rows)}."
        )
    verify(row.path, row.sha256)
    return row
