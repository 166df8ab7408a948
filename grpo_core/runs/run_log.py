"""A run's own log: JSON lines in a file beside the store, a few megabytes at most. Pure ASCII, so no control character gets through."""

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
    Edited,
    Evaluated,
    Event,
    ModelLoaded,
    Paused,
    Resumed,
    StepCompleted,
)

MAX_BYTES, OLD_FILES = 1_000_000, 2
MAX_CHARS = 4000  # of one message
log = logging.getLogger("grpo_studio")


class RunLog(logging.Handler):
    """Writes what happens in a run, one JSON object a line, and what the program itself logs meanwhile. A full disk silences it."""

    def __init__(self, path: Path):
        super().__init__(logging.INFO)
        path.parent.mkdir(parents=True, exist_ok=True)
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
        try:
            trace = (
                {"traceback": logging.Formatter().formatException(record.exc_info)[-MAX_CHARS:]}
                if record.exc_info
                else {}
            )
            self.write(record.levelname.lower(), record.getMessage(), trace)
        except Exception:  # a log line is never worth a run
            self.handleError(record)

    def write(self, level: str, what: str, more: Mapping[str, Any] | None = None) -> None:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "level": level,
            "what": what[:MAX_CHARS],
            **(more or {}),
        }
        self._file.emit(logging.LogRecord("", 0, "", 0, json.dumps(line, default=str), None, None))

    def event(self, event: Event) -> None:
        match event:
            case ModelLoaded(env):
                self.write("info", "model loaded", {"env": dict(env)})
            case StepCompleted(step, m):
                self.write(
                    "info",
                    f"step {step}",
                    {
                        "reward": m.reward_mean,
                        "kl": m.kl,
                        "loss": m.loss,
                        "seconds": m.step_seconds,
                    },
                )
            case Evaluated(step, metrics):
                self.write(
                    "info",
                    f"evaluated after step {step}",
                    {"accuracy": metrics.get("heldout/accuracy")},
                )
            case Checkpointed():
                self.write(
                    "info",
                    f"checkpoint of step {event.step}",
                    {k: v for k, v in asdict(event).items() if k != "step"},
                )
            case Paused(reason):
                self.write("warning", f"paused: {reason}")
            case Resumed():
                self.write("info", "resumed")
            case Edited(step, values):
                self.write("info", f"changed by hand in step {step}", {"values": dict(values)})


def tail(path: Path, lines: int = 200) -> list[dict[str, Any]]:
    """The newest lines of a log, oldest first; none if there is no log. What is no JSON object is left out."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - lines * 600))
            raw = file.read().decode("ascii", "replace").splitlines()[-lines:]
    except OSError:
        return []
    found = []
    for line in raw:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found
