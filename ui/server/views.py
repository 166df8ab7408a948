"""What the tabs show of the store, drawn once for all tabs: results are kept by what they depend on."""

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
from grpo_core.store import Cursor, RunRow, Store, VerdictCounts
from grpo_core.types import Notice, RunStatus
from ui.render import advice, cards, charts, status

POINTS = 5_000  # steps that curves are made from; charts.DRAWN of them are drawn
CURVES = ("reward", "kl", "loss", "length", "criteria", "detail")


class Runs(Protocol):
    """What the page needs of RunManager."""

    device: str

    def start(self, config: RunConfig, name: str | None = None, conditions: str = "") -> str: ...

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
    """make(what, version), remembered for the newest version of up to `size` things.

    A live run's curves are another version at every step, all its steps again, and the one before is of no use to anybody.
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
    """Reads with a memory. Every key holds what the result depends on, so nothing is ever out of date and N tabs cost about one."""

    def __init__(self, store: Store):
        self.store = store
        self._runs = lru_cache(maxsize=2)(lambda token: store.runs())
        self._curves = Newest(16, self._read_curves)
        self._figure = Newest(128, self._draw)
        self._advised = Newest(16, self._draw_advice)
        self._advice = Newest(16, lambda run_id, key: advise(store, run_id))
        self._verdicts = Newest(8, lambda run_id, groups: store.verdict_series(run_id))
        self._group = lru_cache(maxsize=64)(self._draw_group)

    # ---- runs ----------------------------------------------------------------------------------------------------------

    def runs(self) -> list[RunRow]:
        return self._runs(self.store.runs_token())

    def cursor(self, run_id: Any) -> Cursor | None:
        """None for what is no run: ids come from addresses and from browsers."""
        try:
            return self.store.cursor(run_id) if isinstance(run_id, str) and run_id else None
        except NotFound:
            return None

    def run(self, run_id: Any) -> RunRow | None:
        return next((r for r in self.runs() if r.id == run_id), None)

    def default_run(self) -> str | None:
        """The run to look at when none was named: the one that is going, else the newest."""
        runs = self.runs()
        going = [r for r in runs if r.status.is_live and r.status is not RunStatus.QUEUED]
        return (going or runs)[0].id if runs else None

    def label(self, run: RunRow) -> str:
        """Its name; with the last part of its id where another run is called the same, because two equal labels tell nothing."""
        return (
            run.name
            if [r.name for r in self.runs()].count(run.name) < 2
            else f"{run.name} · {run.id.rpartition('-')[2]}"
        )

    def choices(self) -> list[tuple[str, str]]:
        """The run picker's."""
        return [(self.label(run), run.id) for run in self.runs()]

    def picked(self, run_id: str | None) -> dict[str, Any]:
        """The run picker with this run in it. Always with the choices: another tab, or a server before a restart, made its last ones."""
        return gr.update(choices=self.choices(), value=run_id)

    # ---- the run in view -----------------------------------------------------------------------------------------------

    def status_line(self, run: RunRow | None) -> str:
        runs = self.runs()
        queued = [
            r for r in runs if r.status is RunStatus.QUEUED and (run is None or r.id != run.id)
        ]
        going = next(
            (r for r in runs if r.status.is_live and r.status is not RunStatus.QUEUED), None
        )
        recent = (
            self.curves(run).steps[-status.RECENT_STEPS :] if run and run.status.is_live else []
        )
        return status.status_line(run, recent, len(queued), going, time.time())

    def curves_key(self, run: RunRow | None) -> tuple[Any, ...]:
        """Changes when a curve of the run does: not at every phase, as the revision does."""
        return (
            (
                run.id,
                self.label(run),
                run.steps_done,
                run.heldout_before,
                run.heldout_after,
                run.reward_last,
                run.status,
            )
            if run
            else ()
        )

    def curves(self, run: RunRow) -> charts.Curves:
        return self._curves(run.id, self.curves_key(run))

    def _read_curves(self, run_id: str, key: tuple[Any, ...]) -> charts.Curves:
        return charts.Curves(
            run_id,
            key[1],
            self.store.steps_with_spikes(run_id, charts.SPIKED, POINTS),
            self.store.metrics_with_spikes(run_id, POINTS),
        )

    def figure(self, name: str, run_ids: Sequence[str], view: charts.View) -> dict[str, Any]:
        """One curve of one run, or of several over one another."""
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
        """What the advisor says of a run and nobody dismissed: as it was written down while the run goes on, worked out from the rows after it."""
        if run.status.is_live:
            return self.store.alerts(run.id)
        gone = self.store.dismissed(run.id)
        return [n for n in self._advice(run.id, self.curves_key(run)) if n.code not in gone]

    def advice(self, run: RunRow | None) -> str:
        return self._advised(run.id, run.revision) if run else ""

    def _draw_advice(self, run_id: str, revision: int) -> str:
        run = self.run(run_id)
        notices = self.notices(run) if run else []
        places = {
            n.group_id: at
            for n in notices
            if n.group_id is not None and (at := self.store.group_ref_of(n.group_id))
        }
        return advice.advice(notices, places)

    # ---- groups --------------------------------------------------------------------------------------------------------

    def group(self, run: RunRow, step: int, position: int, order: str) -> str | None:
        """The group as HTML; None if the run has no such group."""
        ids = self.store.group_ids(run.id, step)
        if not 0 <= position < len(ids):
            return None
        return self._group(ids[position], len(ids), run.id, order, self.store.edited(run.id, step))

    def _draw_group(
        self, group_id: int, num_groups: int, run_id: str, order: str, edited: tuple[Any, ...]
    ) -> str:
        run = self.run(run_id)
        return cards.group_view(
            self.store.group(group_id), num_groups, run.config if run else {}, order
        )
