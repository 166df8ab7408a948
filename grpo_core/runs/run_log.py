"""The log of one run: JSON lines in a file beside the store, a few megabytes at most.

The text is ASCII, so that a terminal never runs a control character from a completion.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from grpo_core.types import (
    Checkpointed,
    Evaluated,
    Event,
    Intervened,
    ModelLoaded,
    Noticed,
    Paused,
    Restarted,
    Resumed,
    StepCompleted,
)

MAX_BYTES = 1_000_000  # of one file
OLD_FILES = 2
MAX_CHARS = 4000  # of one message
THREADS = ("trainer", "heartbeat")  # names of a run's threads; the run's id follows after a space
log = logging.getLogger("grpo_studio")


class RunLog(logging.Handler):
    """Writes a run's events and the program's own log messages, one JSON object per line.

    Leaves out messages from the threads of another run: that run's own file has them. Write errors,
    such as a full disk, are ignored.
    """

    def __init__(self, path: Path, run_id: str):
        super().__init__(logging.INFO)
        self._run_id = run_id
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            log.warning("no log of this run: %s: %s", path.parent, error.strerror)
        self._file = RotatingFileHandler(
            path, maxBytes=MAX_BYTES, backupCount=OLD_FILES, encoding="ascii", delay=True
        )
        self._file.handleError = lambda record: None
        self._file.setFormatter(logging.Formatter("%(message)s"))

    def __enter__(self) -> RunLog:
        log.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        log.removeHandler(self)
        self._file.close()

    def emit(self, record: logging.LogRecord) -> None:
        kind, _, run_id = (record.threadName or "").partition(" ")
        if kind in THREADS and run_id not in ("", self._run_id):
            return
        try:
            more = {}
            if record.exc_info:
                trace = logging.Formatter().formatException(record.exc_info)
                more["traceback"] = trace[-MAX_CHARS:]
            self.write(record.levelname.lower(), record.getMessage(), more)
        except Exception:  # a failing log must not end the run
            self.handleError(record)

    def write(self, level: str, what: str, more: Mapping[str, Any] | None = None) -> None:
        """Append one line; `more` adds further keys to its object."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "level": level,
            "what": what[:MAX_CHARS],
            **(more or {}),
        }
        self._file.emit(logging.LogRecord("", 0, "", 0, json.dumps(line, default=str), None, None))

    def event(self, event: Event) -> None:
        """Append one line for an event of the run."""
        match event:
            case ModelLoaded(env):
                self.write("info", "model loaded", {"env": dict(env)})
            case StepCompleted(step, m):
                numbers = {"reward": m.reward_mean, "kl": m.kl, "loss": m.loss}
                self.write("info", f"step {step}", numbers | {"seconds": m.step_seconds})
            case Evaluated(step, metrics):
                accuracy = {"accuracy": metrics.get("heldout/accuracy")}
                self.write("info", f"evaluated after step {step}", accuracy)
            case Checkpointed():
                saved = asdict(event)
                self.write("info", f"checkpoint of step {saved.pop('step')}", saved)
            case Noticed(message=message, severity=severity) if message:
                self.write(severity, message)
            case Paused(reason):
                self.write("warning", f"paused: {reason}")
            case Resumed():
                self.write("info", "resumed")
            case Restarted(step, reason):
                self.write("warning", f"workers restarted after step {step}: {reason}")
            case Intervened(interventions):
                for i in interventions:
                    known = {name: v for name, v in asdict(i).items() if v is not None}
                    self.write("info", f"a person changed a {i.kind} in step {i.step}", known)


def tail(path: Path, lines: int = 200) -> list[dict[str, Any]]:
    """The newest entries of a log, oldest first; empty without a log. Invalid lines are skipped."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - lines * 600))
            raw = file.read().decode("ascii", "replace").splitlines()[-lines:]
    except OSError:
        return []
    entries = []
    for line in raw:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries
