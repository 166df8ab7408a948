"""Trains reward models for the page: one at a time, by the command line in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grpo_core.child_process import one_line
from grpo_core.errors import StudioError
from grpo_core.preferences.judged_pairs import judged_pairs, split_by_prompt
from grpo_core.preferences.reward_folder import NUMBERS
from grpo_core.preferences.reward_settings import RewardSettings, reward_settings
from grpo_core.store import Store, preferences, reward_models
from grpo_core.store.reward_models import RewardModelRow
from grpo_core.types import RunStatus

NOTE_SECONDS = 0.5  # between two writes of the progress
CLOSE_SECONDS = 5.0
NUM_POINTS = 200  # of a stored curve
Check = Callable[[RewardSettings], None]


class RewardModels:
    """Starts and stops trainings. What it knows of them is in the store.

    check: raises StudioError for settings that this server does not allow.
    minutes: after so many a training is stopped; None: it may take any time.
    """

    def __init__(
        self,
        store: Store,
        check: Check = lambda settings: None,
        minutes: int | None = None,
    ):
        self.store, self._check, self._minutes = store, check, minutes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._stopped = self._closed = False
        reward_models.recover(store)

    def start(self, values: Mapping[str, Any], name: str = "") -> str:
        """Start a training on all preferences; return its id. Raises StudioError."""
        settings = reward_settings(values)
        self._check(settings)
        pairs = judged_pairs(preferences.read(self.store))
        split_by_prompt(pairs, settings.heldout_share, settings.seed)  # refuses what cannot work
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                raise StudioError("A reward model is being trained. Stop it, or wait for its end.")
            row = reward_models.create(self.store, name, len(pairs), settings.model_dump())
            self._stopped = False
            self._thread = threading.Thread(
                target=self._train, args=(row, settings), name="reward model", daemon=True
            )
            self._thread.start()
        return row.id

    def stop(self) -> None:
        """End the training early; its model is kept as it is then."""
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        """Until the training ends, at most so long."""
        if self._thread is not None:
            self._thread.join(seconds)

    def close(self) -> None:
        """For the end of the server. The training is then an interrupted one."""
        self._closed = True
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self.wait(CLOSE_SECONDS)

    def _train(self, row: RewardModelRow, settings: RewardSettings) -> None:
        timer = threading.Timer(60 * (self._minutes or 0), self.stop)
        timer.daemon = True
        if self._minutes is not None:
            timer.start()
        # Held until the end: another process cannot take this training for one that died.
        with self.store.writing():
            try:
                status, result, error = self._follow(row, settings)
            except Exception as problem:  # it must not stay "running"
                status, result, error = (
                    RunStatus.FAILED,
                    None,
                    f"{type(problem).__name__}: {problem}",
                )
            reward_models.end(self.store, row.id, status, result, error)
        timer.cancel()

    def _follow(
        self, row: RewardModelRow, settings: RewardSettings
    ) -> tuple[RunStatus, dict[str, Any] | None, str | None]:
        """Run the command and note its progress. Returns how it ended, its numbers, its error."""
        row.folder.parent.mkdir(exist_ok=True)
        with self._lock:
            self._process = subprocess.Popen(
                _command(self.store.path, row.folder, settings),
                cwd=Path(__file__).parents[2],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # Ctrl-C is for the server, which decides what it means
            )
        process, points, error, noted = self._process, [], "", 0.0
        said, errors = process.stdout, process.stderr
        assert said is not None
        assert errors is not None
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(errors), daemon=True)
        reader.start()
        for line in said:
            answer = json.loads(line)
            if "step" in answer:
                points.append(answer)
                if time.monotonic() - noted > NOTE_SECONDS:
                    reward_models.note(self.store, row.id, _thinned(points))
                    noted = time.monotonic()
            error = "; ".join(answer.get("error", ()))
        code = process.wait()
        reader.join()
        reward_models.note(self.store, row.id, _thinned(points))
        if code == 0:
            numbers = json.loads((row.folder / NUMBERS).read_text("utf-8"))
            stopped = numbers["was_stopped"]
            return RunStatus.STOPPED if stopped else RunStatus.FINISHED, numbers, None
        if self._closed:
            return RunStatus.INTERRUPTED, None, None
        if self._stopped:
            return RunStatus.STOPPED, None, "It was stopped before its first step."
        reason = error or one_line(lines[-1] if lines else "", 300)
        return RunStatus.FAILED, None, reason or f"its process ended with code {code}"


def _command(database: Path, folder: Path, settings: RewardSettings) -> list[str]:
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in settings.model_dump().items()
        if value is not None
    ]
    paths = ["--from", str(database.resolve()), "--out", str(folder.resolve())]
    return [sys.executable, "-m", "grpo_core", "reward-model", "--json", *paths, *options]


def _thinned(points: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At most about NUM_POINTS of them; the measured ones and the last all stay."""
    every = max(1, len(points) // NUM_POINTS)
    return [
        point
        for i, point in enumerate(points)
        if i % every == 0 or point["heldout_accuracy"] is not None or i == len(points) - 1
    ]
