"""Named endpoints for gradio_client, plain HTTP and, with --mcp, tools.

They do what the page's buttons do, and the same guard protects them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from typing import Any

import gradio as gr
from gradio.events import api

from grpo_core.config import nest, parse, with_preset
from grpo_core.errors import InvalidConfig, NotFound, StudioError
from grpo_core.store import RunRow
from grpo_core.types import STEP_METRICS
from ui.server.calls import slow
from ui.server.views import Runs, Views
from ui.server.visitor import request_state

MAX_POINTS = 10_000
# These read prompts, or write out a whole step or run.
SLOW = ("start", "branch", "groups", "metrics")


class Api:
    """Each public method is an endpoint, described by its docstring.

    Gradio reads one line for each parameter, so a description under Args must not be wrapped.
    `run` is the id of a run, or "last": the active run if there is one, else the newest.
    """

    def __init__(self, views: Views, runs: Runs):
        self._views, self._runs = views, runs

    def _run(self, run: str) -> RunRow:
        run_id = self._views.default_run() if run in ("", "last") else run
        row = self._views.run(run_id)
        if row is None:
            raise NotFound(
                f"run = {str(run)!r:.80}: there is no such run. The endpoint /runs lists them."
            )
        return row

    def start(
        self, settings: dict[str, Any], name: str = "", wait_when: str = ""
    ) -> dict[str, Any]:
        """Start a training run, or queue it behind the active one.

        Example of settings: {"train.steps": 60, "task.name": "sort", "algorithm.preset": "GRPO"}.

        Args:
            settings: dotted names and values; the other settings have their defaults
            name: a name for the run; if empty, one is made from the settings
            wait_when: breakpoints, e.g. "kl > 0.2, verdict = phantom, step = 40"
        """
        preset = settings.get("algorithm.preset")
        config = parse(nest(with_preset(settings, preset) if isinstance(preset, str) else settings))
        return self.status(self._runs.start(config, str(name)[:200] or None, str(wait_when)))

    def branch(
        self,
        run: str = "last",
        step: int = 0,
        settings: dict[str, Any] | None = None,
        name: str = "",
    ) -> dict[str, Any]:
        """Start a new run from a checkpoint of another, with some settings changed.

        Args:
            run: id of the parent, or "last"
            step: the step of the checkpoint; 0 is the newest
            settings: dotted names and values of the settings to change
            name: a name for the new run
        """
        return self.status(
            self._runs.branch(
                self._run(run).id, int(step) or None, settings or {}, str(name)[:200] or None
            )
        )

    def status(self, run: str = "last") -> dict[str, Any]:
        """The state of a run: status, phase, step, reward, held-out accuracy and checkpoints.

        `error` says why it failed or why it is paused.

        Args:
            run: id of a run, or "last"
        """
        row = self._run(run)
        shown = (
            "id",
            "name",
            "status",
            "example",
            "phase",
            "step",
            "num_steps",
            "steps_done",
            "reward_first",
            "reward_last",
            "heldout_before",
            "heldout_after",
            "model",
            "task",
            "rubric",
            "error",
            "parent_run_id",
            "parent_step",
            "created_at",
            "duration_seconds",
        )
        saved = [{"step": c.step, "bytes": c.bytes} for c in self._views.store.checkpoints(row.id)]
        source = asdict(row.source) if row.source else None
        return {
            **{field: getattr(row, field) for field in shown},
            "source": source,
            "checkpoints": saved,
        }

    def runs(self) -> list[dict[str, Any]]:
        """All runs, newest first, with their status and results."""
        return [self.status(row.id) for row in self._views.runs()[:1000]]

    def stop(self, run: str = "last") -> dict[str, Any]:
        """Stop a run, or remove it from the queue. Its records stay, and it can be resumed.

        Args:
            run: id of a run, or "last"
        """
        return self._command(run, self._runs.stop)

    def pause(self, run: str = "last") -> dict[str, Any]:
        """Pause a run at its next interruption point.

        Args:
            run: id of a run, or "last"
        """
        return self._command(run, self._runs.pause)

    def step(self, run: str = "last", stride: str = "step") -> dict[str, Any]:
        """Let a run continue for one step or one phase, then pause it again.

        Args:
            run: id of a run, or "last"
            stride: step or phase
        """
        return self._command(run, lambda run_id: self._runs.step(run_id, stride))

    def resume(self, run: str = "last") -> dict[str, Any]:
        """Resume a run: a paused run continues at once.

        A run that was stopped, failed or was interrupted continues from its newest checkpoint.

        Args:
            run: id of a run, or "last"
        """
        return self._command(run, self._runs.resume)

    def checkpoint(self, run: str = "last") -> dict[str, Any]:
        """Save a checkpoint of the last complete step now.

        Args:
            run: id of a run, or "last"
        """
        return self._command(run, self._runs.checkpoint)

    def change(self, setting: str, value: float, run: str = "last") -> dict[str, Any]:
        """Change a setting of a running run. It takes effect from the next step.

        These settings can be changed: train.learning_rate, algorithm.kl_coef, train.temperature,
        algorithm.clip_eps_low, algorithm.clip_eps_high.

        Args:
            setting: the name of the setting
            value: the new value
            run: id of a run, or "last"
        """
        return self._command(run, lambda run_id: self._runs.set_knob(run_id, setting, value))

    def wait_when(self, conditions: str, run: str = "last") -> dict[str, Any]:
        """Set breakpoints: the run pauses before the update of each step that meets one.

        Args:
            conditions: e.g. "kl > 0.2, verdict = phantom, step = 40"; empty clears them
            run: id of a run, or "last"
        """
        return self._command(run, lambda run_id: self._runs.set_breakpoints(run_id, conditions))

    def edit_reward(
        self, step: int, group: int, completion: int, reward: float, run: str = "last"
    ) -> dict[str, Any]:
        """Change the reward of a completion while its step waits before the update.

        The advantages of its group are computed again.

        Args:
            step: the waiting step
            group: number of the group in the step, from 1
            completion: number of the completion in the group, from 1
            reward: its new reward
            run: id of a run, or "last"
        """
        return self._command(
            run,
            lambda run_id: self._runs.edit_reward(
                run_id, int(step), int(group) - 1, int(completion) - 1, float(reward)
            ),
        )

    def groups(self, run: str = "last", step: int = 0) -> list[dict[str, Any]]:
        """The groups of a step: prompt, completions, scores, rewards, advantages and verdict.

        A completion in an environment has turns: role, text, tool, arguments, error and seconds.

        Args:
            run: id of a run, or "last"
            step: the step; 0 is the newest
        """
        row, store = self._run(run), self._views.store
        at = int(step) or store.last_step_with_groups(row.id)
        if at is None:
            return []
        return [asdict(store.group(group_id)) for group_id in store.group_ids(row.id, at)]

    def metrics(self, run: str = "last", max_points: int = 1000) -> dict[str, Any]:
        """Every number of every step, and the named metrics as lists of [step, value].

        Named metrics are scores by criterion, held-out results and others.

        Args:
            run: id of a run, or "last"
            max_points: the largest number of steps; longer runs are thinned
        """
        row, points = self._run(run), max(2, min(MAX_POINTS, int(max_points)))
        store = self._views.store
        return {
            "columns": ["step", *STEP_METRICS],
            "steps": [list(s.values()) for s in store.steps(row.id, points)],
            "metrics": store.metrics(row.id, max_points=points),
        }

    def _command(self, run: str, send: Callable[[str], Any]) -> dict[str, Any]:
        run_id = self._run(run).id
        send(run_id)
        return self.status(run_id)


ENDPOINTS = tuple(name for name in vars(Api) if not name.startswith("_"))


def build_api(views: Views, runs: Runs) -> None:
    """Make every public method of Api an endpoint of the page. Call it inside gr.Blocks."""
    endpoints = Api(views, runs)
    for name in ENDPOINTS:
        endpoint = _with_short_errors(getattr(endpoints, name))
        api(slow(endpoint) if name in SLOW else endpoint, api_name=name, queue=False)


def _with_short_errors(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, with the caller's mistakes reported in one line instead of a traceback."""

    @wraps(method)
    def call(*values: Any, **named: Any) -> Any:
        try:
            return method(*values, **named)
        except StudioError as error:
            _answer_with(status_of(error))
            raise gr.Error(str(error), print_exception=False) from None
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            _answer_with(400)
            raise gr.Error(
                f"{method.__name__}: {error}. See the endpoint's documentation for its parameters.",
                print_exception=False,
            ) from None

    return call


def status_of(error: StudioError) -> int:
    """The HTTP status of a caller's mistake: 404 no such run, 409 not now or not here, else 400."""
    if isinstance(error, NotFound):
        return 404
    return 400 if isinstance(error, InvalidConfig) else 409


def _answer_with(status: int) -> None:
    """Gradio answers every error with status 500; this one replaces it."""
    if (current := request_state.get()) is not None:
        current.status = status
