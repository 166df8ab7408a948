"""Mirror the curves and some groups of a run to experiment trackers, while it goes on.

Each tracker has a thread and a process. The run only puts small messages into a queue: a tracker
that is slow loses steps, and one that fails or hangs is left out; both are said once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grpo_core.child_process import KILL_AFTER, Child, ChildFailed, one_line
from grpo_core.config import RunConfig, flatten
from grpo_core.errors import StopRequested, StudioError
from grpo_core.runs.tracker_child import TRACKERS
from grpo_core.store import Store
from grpo_core.training.control import Emit, RunControl, Train
from grpo_core.types import Evaluated, Event, Group, GroupsScored, RunStatus, StepCompleted

START_SECONDS, LOG_SECONDS, FINISH_SECONDS = 90.0, 30.0, 60.0
MAX_WAITING = 256  # messages
NUM_TABLES = 50  # of a run
GROUPS_A_TABLE, ROWS_A_GROUP, MAX_CHARS = 2, 8, 4000
ROOT = Path(__file__).parents[2]
# What the packages would send their makers although nobody asked.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}

log = logging.getLogger("grpo_studio")
Say = Callable[[str], object]


def check_trackers(names: Sequence[str]) -> None:
    """Raises StudioError for a tracker that is not known or not installed."""
    for name in names:
        if name not in TRACKERS:
            known = ", ".join(TRACKERS)
            raise StudioError(f"--report-to {name!r}: there is no such tracker. Use {known}.")
        if importlib.util.find_spec(name) is None:
            raise StudioError(
                f"--report-to {name} needs the package {name}. Install it: pip install {name}."
            )


def mirrored(
    train: Train, store: Store, names: Sequence[str], say: Say = log.warning, wait: float = 0.0
) -> Train:
    """`train`, but what it emits goes to these trackers too, after it was recorded.

    names: one that is named twice counts once. say: is told where the trackers are and what fails.
    wait: seconds for the trackers to end after the run; what is late goes on in the background.
    """
    if not names:
        return train

    def train_mirrored(config: RunConfig, emit: Emit, control: RunControl) -> None:
        assert control.folder is not None
        run_id = control.folder.name
        run = {
            "id": run_id,
            "name": store.run(run_id).name,
            "config": {k: v if _is_plain(v) else str(v) for k, v in flatten(config).items()},
            "folder": str(store.path.resolve().with_name(f"{store.path.name}.tensorboard")),
        }
        mirrors = [Mirror(name, run, say) for name in dict.fromkeys(names)]
        every = max(1, config.train.steps // NUM_TABLES)

        def both(event: Event) -> None:
            emit(event)
            for do, step, content in _messages(event, every):
                for mirror in mirrors:
                    mirror.send(do, step, content)

        status = RunStatus.FAILED
        try:
            train(config, both, control)
            status = RunStatus.FINISHED
        except StopRequested:
            status = RunStatus.STOPPED
            raise
        finally:
            until = time.monotonic() + wait
            for mirror in mirrors:
                mirror.send("finish", status.value)
            for mirror in mirrors:
                mirror.join(max(0.0, until - time.monotonic()))
                if wait and mirror.is_alive():
                    say(f"{mirror.tracker} did not end in time, so it lacks some steps of the run.")

    return train_mirrored


class Mirror(threading.Thread):
    """Passes messages on to one tracker until "finish", or until the tracker fails."""

    def __init__(self, name: str, run: Mapping[str, Any], say: Say):
        super().__init__(name=f"mirror {run['id']}", daemon=True)
        self.tracker, self._run_record, self._say = name, run, say
        self._waiting: queue.Queue[tuple[Any, ...]] = queue.Queue(MAX_WAITING)
        self._failed, self._is_behind = False, False
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        arguments = ["-m", "grpo_core.runs.tracker_child", name]
        self._child = Child(arguments, {**QUIET, **os.environ, "PYTHONPATH": path})
        self.start()

    def send(self, *message: Any) -> None:
        """Never waits and never fails. "finish" takes the place of the oldest message."""
        if self._failed:
            return
        try:
            self._waiting.put_nowait(message)
        except queue.Full:
            if not self._is_behind:
                self._is_behind = True
                self._say(f"{self.tracker} does not keep up, so it lacks some steps of the run.")
            if message[0] == "finish":
                with contextlib.suppress(queue.Empty):
                    self._waiting.get_nowait()
                self._waiting.put_nowait(message)

    def run(self) -> None:
        try:
            place = self._ask(START_SECONDS, "start", self._run_record)
            self._say(one_line(f"{self.tracker}: {place}", 300))
            message: tuple[Any, ...] = ("",)
            while message[0] != "finish":
                message = self._waiting.get()
                seconds = FINISH_SECONDS if message[0] == "finish" else LOG_SECONDS
                self._ask(seconds, *message)
        except ChildFailed as problem:
            self._failed = True
            why = one_line(str(problem), 300).rstrip(".")
            self._say(f"{self.tracker} failed: {why}. The run goes on without it.")
        finally:
            self._child.close()

    def _ask(self, seconds: float, do: str, *arguments: Any) -> Any:
        question = {"do": do, "arguments": arguments, "seconds": seconds}
        answer = self._child.request(question, seconds + KILL_AFTER, dict)
        if "null" in answer:
            raise ChildFailed(str(answer["null"]))
        return answer["value"]


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _messages(event: Event, every: int) -> list[tuple[Any, ...]]:
    """What trackers are told of an event. every: groups of so many steps make one table."""
    match event:
        case StepCompleted(step=step, metrics=metrics, extra=extra):
            named = {f"train/{name}": value for name, value in asdict(metrics).items()}
            return [("log", step, _finite({**named, **extra}))]
        case Evaluated(step=step, metrics=metrics, groups=groups):
            rows = _rows(groups, "heldout_groups")
            curves = ("log", step, _finite(metrics))
            return [curves, ("groups", step, rows)] if rows else [curves]
        case GroupsScored(step=step, groups=groups) if step % every == 0 or step == 1:
            return [("groups", step, _rows(groups, "groups"))]
    return []


def _finite(metrics: Mapping[str, float | None]) -> dict[str, float]:
    return {k: float(v) for k, v in metrics.items() if v is not None and math.isfinite(v)}


def _rows(groups: Sequence[Group], kind: str) -> list[dict[str, Any]]:
    return [
        {
            "kind": kind,
            "group": position,
            "verdict": group.verdict,
            "before": group.prompt.meta.get("before", ()),
            "prompt": group.prompt.text[:MAX_CHARS],
            "completion": rollout.completion.text[:MAX_CHARS],
            "reward": rollout.reward,
            "advantage": rollout.advantage,
            "tokens": rollout.completion.num_tokens,
            "scores": dict(rollout.scores),
        }
        for position, group in enumerate(groups[:GROUPS_A_TABLE])
        for rollout in group.rollouts[:ROWS_A_GROUP]
    ]
