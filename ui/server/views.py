"""Cached views of the store: each is drawn once for all browser tabs.

The cache key of a result holds everything that the result depends on.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any, Protocol

import gradio as gr

from grpo_core.analysis.advisor import advise
from grpo_core.config import RunConfig
from grpo_core.errors import NotFound
from grpo_core.store import Cursor, PromptVisits, RunRow, Store, VerdictCounts
from grpo_core.types import LOST, RESTART, Notice, RunStatus
from ui.render import advice, cards, charts, provenance, run_end, status
from ui.render.recorded_config import shown_config
from ui.render.run_colours import run_colours
from ui.server.telling import opening_group, telling_group

POINTS = 5_000  # steps read for a curve; charts.DRAWN of them are drawn
# In the order of the page.
CURVES = ("reward", "kl", "criteria", "loss", "length", "detail", *charts.OF_TURNS)


class Runs(Protocol):
    """What the page needs of RunManager."""

    devices: tuple[str, ...]  # the names that model.device takes here

    @property
    def device(self) -> str: ...

    @property
    def device_details(self) -> str: ...

    @property
    def has_many_devices(self) -> bool: ...

    def start(self, config: RunConfig, name: str | None = None, conditions: str = "") -> str: ...

    def refusal(self, configs: Sequence[RunConfig]) -> str: ...

    def resume(self, run_id: str) -> None: ...

    def branch(
        self,
        run_id: str,
        step: int | None = None,
        changes: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> str: ...

    def stop(self, run_id: str) -> None: ...

    def pause(self, run_id: str) -> None: ...

    def step(self, run_id: str, stride: str = "step") -> None: ...

    def checkpoint(self, run_id: str) -> None: ...

    def set_knob(self, run_id: str, name: str, value: float) -> None: ...

    def set_breakpoints(self, run_id: str, conditions: str) -> None: ...

    def edit_reward(
        self, run_id: str, step: int, group: int, completion: int, reward: float
    ) -> None: ...


class Newest:
    """A cache of make(what, version) that keeps the newest version of up to `size` things.

    A live run's curves change at every step and hold all its steps. Older versions are useless.
    """

    def __init__(self, size: int, make: Callable[[Any, Any], Any]):
        self._size, self._make, self._lock = size, make, Lock()
        self._kept: OrderedDict[Hashable, tuple[Hashable, Any]] = OrderedDict()

    def __call__(self, what: Hashable, version: Hashable) -> Any:
        with self._lock:
            if what in self._kept and self._kept[what][0] == version:
                self._kept.move_to_end(what)
                return self._kept[what][1]
        made = self._make(what, version)
        with self._lock:
            self._kept[what] = version, made
            self._kept.move_to_end(what)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return made


class Views:
    """Reads the store through caches, so that N browser tabs cost about as much as one."""

    def __init__(self, store: Store):
        self.store = store
        self._runs = lru_cache(maxsize=2)(lambda token: store.runs())
        self._colours = lru_cache(maxsize=2)(self._read_colours)
        self._curves = Newest(16, self._read_curves)
        self._figure = Newest(128, self._draw)
        self._advised = Newest(16, self._draw_advice)
        self._advice = Newest(16, lambda run_id, key: advise(store, run_id))
        self._verdicts = Newest(8, lambda run_id, groups: store.verdict_series(run_id))
        self._acts = Newest(64, self._read_acts)
        self._tools = Newest(16, lambda run_id, key: store.tools(run_id))
        self._telling = Newest(16, self._read_telling)
        self._opening = Newest(64, lambda run_id, step: opening_group(store, run_id, step))
        self._repeated = Newest(8, lambda run_id, key: store.repeated_prompts(run_id))
        self._shared = Newest(8, lambda run_id, key: store.shared_prompts(run_id))
        self._group = lru_cache(maxsize=64)(self._draw_group)

    # ---- runs ----------------------------------------------------------------------------

    def runs(self) -> list[RunRow]:
        return self._runs(self.store.runs_token())

    def cursor(self, run_id: Any) -> Cursor | None:
        """The run's change token; None if there is no such run. Ids come from browsers."""
        try:
            return self.store.cursor(run_id) if isinstance(run_id, str) and run_id else None
        except NotFound:
            return None

    def run(self, run_id: Any) -> RunRow | None:
        return next((r for r in self.runs() if r.id == run_id), None)

    def default_run(self) -> str | None:
        """The run to show when none was chosen: the active one, else the newest.

        The example is shown while there is no other.
        """
        active = self._active()
        return active.id if active else next((r.id for r in self.runs()), None)

    def nothing_of_own(self) -> str:
        """“empty” without any run, “example” with the example only, else ""."""
        runs = self.runs()
        if not runs:
            return "empty"
        return "example" if all(run.example for run in runs) else ""

    def _active(self) -> RunRow | None:
        """The newest run that has a device: live and not queued."""
        return next(iter(self._on_devices()), None)

    def _blocking(self) -> RunRow | None:
        """The run that queued runs wait for; None if several go on, on different devices."""
        active = self._on_devices()
        return active[0] if len(active) == 1 else None

    def _on_devices(self) -> list[RunRow]:
        return [r for r in self.runs() if r.trains_here and r.status is not RunStatus.QUEUED]

    def label(self, run: RunRow) -> str:
        """The run's name, and its trainer if that is another one.

        Runs of equal names also show the last part of their ids.
        """
        if run.example:
            return f"{run.name} (example)"
        trainer = f" · {provenance.trainer_of(run)}" if run.source else ""
        if [r.name for r in self.runs()].count(run.name) < 2:
            return run.name + trainer
        return f"{run.name}{trainer} · {run.id.rpartition('-')[2]}"

    def run_colour(self, run_id: str) -> str:
        """The run's colour everywhere on the page, as the name of a CSS variable."""
        return self._colours(self.store.runs_token()).get(run_id, "--accent")

    def _read_colours(self, token: Any) -> dict[str, str]:
        oldest_first = sorted(self.runs(), key=lambda run: (run.created_at, run.id))
        return run_colours([run.id for run in oldest_first])

    def choices(self) -> list[tuple[str, str]]:
        """The choices of the run picker: (label, id)."""
        return [(self.label(run), run.id) for run in self.runs()]

    def picked(self, run_id: str | None) -> dict[str, Any]:
        """An update of the run picker that selects this run.

        It always sends the choices: another tab, or the server before a restart, set the last ones.
        """
        return gr.update(choices=self.choices(), value=run_id)

    # ---- the run in view -----------------------------------------------------------------

    def status_line(self, run: RunRow | None) -> str:
        runs = self.runs()
        queued = [
            r for r in runs if r.status is RunStatus.QUEUED and (run is None or r.id != run.id)
        ]
        recent: Sequence[Mapping[str, Any]] = []
        if run and run.status.is_live:
            recent = self.curves(run).steps[-status.RECENT_STEPS :]
        return status.status_line(run, recent, len(queued), self._blocking(), time.time())

    def run_banner(self, run: RunRow | None) -> str:
        """What the run came to; empty while it goes on."""
        if run is None or (run.status.is_live and run.status is not RunStatus.PAUSED):
            return ""
        heldout = run_end.accuracies(self.curves(run).metrics)
        can_try = bool(self.store.checkpoints(run.id))
        telling = self._telling(run.id, self.curves_key(run))
        restarts = sum(i.kind == RESTART for i in self.curves(run).interventions)
        return run_end.run_banner(run, heldout, can_try, telling, restarts)

    def newest_group(self, run: RunRow) -> tuple[int, int] | None:
        """(step, position) of the group that stands there while none is chosen."""
        step = self.store.last_step_with_groups(run.id)
        if step is None:
            return None
        return step, 0 if run.status.is_live else self._opening(run.id, step)

    def _read_telling(self, run_id: str, key: tuple[Any, ...]) -> run_end.Telling | None:
        run = self.run(run_id)
        return telling_group(self.store, run, self.repeated(run)) if run else None

    def curves_key(self, run: RunRow | None) -> tuple[Any, ...]:
        """A key that changes when a curve of the run changes.

        The run's revision also changes at every phase.
        """
        if run is None:
            return ()
        return (
            run.id,
            self.label(run),
            run.steps_done,
            run.heldout_before,
            run.heldout_after,
            run.reward_last,
            run.status,
            self.run_colour(run.id),
        )

    def curves(self, run: RunRow) -> charts.Curves:
        return self._curves(run.id, self.curves_key(run))

    def _read_curves(self, run_id: str, key: tuple[Any, ...]) -> charts.Curves:
        return charts.Curves(
            run_id,
            key[1],
            self.store.steps_with_spikes(run_id, charts.SPIKED, POINTS),
            self.store.metrics_with_spikes(run_id, POINTS),
            self.store.interventions(run_id),
            key[-1],
            provenance.trainer_of(run) if (run := self.run(run_id)) else "",
        )

    def acts(self, run: RunRow) -> bool:
        """Whether any step of the run was taken in an environment."""
        return self._acts(run.id, self.curves_key(run))

    def _read_acts(self, run_id: str, key: tuple[Any, ...]) -> bool:
        return any(row.get("turns_mean") is not None for row in self._curves(run_id, key).steps)

    def tools(self, run: RunRow | None) -> list[str]:
        """The tools that the run's completions called."""
        return self._tools(run.id, self.curves_key(run)) if run and self.acts(run) else []

    def figure(self, name: str, run_ids: Sequence[str], view: charts.View) -> dict[str, Any]:
        """One curve of one run, or of several runs overlaid."""
        keys = tuple(
            self.curves_key(run) for run_id in dict.fromkeys(run_ids) if (run := self.run(run_id))
        )
        return self._figure((name, tuple(key[0] for key in keys), view), keys)

    def _draw(
        self, what: tuple[str, tuple[str, ...], charts.View], keys: tuple[tuple[Any, ...], ...]
    ) -> dict[str, Any]:
        return charts.figure(what[0], [self._curves(key[0], key) for key in keys], what[2])

    def verdict_series(self, run_id: str) -> list[VerdictCounts]:
        return self._verdicts(run_id, tuple(self.store.verdict_counts(run_id).items()))

    def notices(self, run: RunRow) -> list[Notice]:
        """The advisor's diagnoses of a run, without the dismissed ones.

        A live run's are stored; those of an ended run are computed from its rows, but for what
        happened to its workers.
        """
        stored = self.store.alerts(run.id)
        if run.status.is_live:
            return stored
        dismissed = self.store.dismissed(run.id)
        computed = [
            n for n in self._advice(run.id, self.curves_key(run)) if n.code not in dismissed
        ]
        return [*(n for n in stored if n.code == LOST), *computed]

    def advice(self, run: RunRow | None) -> str:
        return self._advised(run.id, run.revision) if run else ""

    def _draw_advice(self, run_id: str, revision: int) -> str:
        run = self.run(run_id)
        notices = self.notices(run) if run else []
        refs = {
            n.group_id: ref
            for n in notices
            if n.group_id is not None and (ref := self.store.group_ref_of(n.group_id))
        }
        return advice.advice(notices, refs)

    def repeated(self, run: RunRow) -> list[PromptVisits]:
        """The prompts that came up more than once in the run."""
        return self._repeated(run.id, self.curves_key(run))

    def shared(self, run: RunRow) -> list[PromptVisits]:
        """The prompts of the run that another run met too."""
        return self._shared(run.id, self.store.runs_token())

    # ---- groups --------------------------------------------------------------------------

    def group(self, run: RunRow, step: int, position: int, order: str) -> str | None:
        """The group as HTML; None if the run has no such group. order: "best" or "sampled"."""
        ids = self.store.group_ids(run.id, step)
        if not 0 <= position < len(ids):
            return None
        return self._group(ids[position], len(ids), run.id, order, self.store.edited(run.id, step))

    def _draw_group(
        self, group_id: int, num_groups: int, run_id: str, order: str, edited: tuple[Any, ...]
    ) -> str:
        run = self.run(run_id)
        return cards.group_view(self.store.group(group_id), num_groups, shown_config(run), order)
