"""“Through time” and “Two runs”: a prompt that one run, or two runs, answered several times.

A view starts with the open group's prompt. If that was answered only once, it starts with another
one, held-out if possible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpo_core.store import GroupRow, PromptVisits, RunRow
from ui.render import history
from ui.render.recorded_config import criteria_of
from ui.server.views import Views

VIEWS = ("time", "runs")


@dataclass(frozen=True, slots=True)
class PromptView:
    """One of the two views of an open group. options: what its menus say, unchecked."""

    views: Views
    run: RunRow
    group: GroupRow
    view: str
    options: Any

    def controls(self) -> str:
        """The menus of prompts and of runs."""
        menus = history.choose_prompt(self.group, self._others(), self._prompt(), self._has_own())
        if self.view == "runs":
            menus += history.choose_run(*self._runs())
        return f'<form class="whatif" onsubmit="return false">{menus}</form>' if menus else ""

    def body(self) -> str:
        return self._two_runs() if self.view == "runs" else self._through_time()

    def _others(self) -> Sequence[PromptVisits]:
        return prompts_of(self.views, self.run, self.view)

    def _has_own(self) -> bool:
        """Whether the open group's prompt has something to show."""
        store, prompt_id = self.views.store, self.group.prompt_id
        if self.view == "runs":
            return set(store.runs_with_prompt(prompt_id)) > {self.run.id}
        return len(store.visits(self.run.id, prompt_id, limit=2)) > 1

    def _prompt(self) -> str:
        """The id of the prompt that is shown."""
        others, has_own = self._others(), self._has_own()
        known = {p.prompt_id for p in others} | ({self.group.prompt_id} if has_own else set())
        given = self._option("prompt")
        if given in known:
            return given
        return self.group.prompt_id if has_own or not others else others[0].prompt_id

    def _option(self, name: str) -> str:
        value = self.options.get(name) if isinstance(self.options, Mapping) else None
        return value if isinstance(value, str) else ""

    def _through_time(self) -> str:
        outcomes = (c["name"] for c in criteria_of(self.run.config) if c.get("outcome"))
        visits = self.views.store.visits(self.run.id, self._prompt())
        return history.through_time(visits, self.group, next(outcomes, None))

    def _runs(self) -> tuple[list[tuple[str, str]], str | None]:
        """The other runs that met the prompt, as (label, id), and the chosen one's id."""
        met = set(self.views.store.runs_with_prompt(self._prompt())) - {self.run.id}
        others = [(label, run_id) for label, run_id in self.views.choices() if run_id in met]
        if not others:
            return [], None
        chosen = self._option("other")
        return others, chosen if chosen in met else others[0][1]

    def _two_runs(self) -> str:
        store, prompt_id, group = self.views.store, self._prompt(), self.group
        other = self.views.run(self._runs()[1])
        if other is None:
            return ""
        if group.prompt_id != prompt_id:  # the last visit shows what the run has learned
            group = store.visits(self.run.id, prompt_id, limit=1)[-1]
        visits = store.visits(other.id, prompt_id)
        name, visit = self.views.label(self.run), history.nearest(visits, group.step)
        return history.two_runs(name, group, other, visit)


def prompts_of(views: Views, run: RunRow | None, view: str) -> Sequence[PromptVisits]:
    """The prompts that a view has something to show of; none for any other view."""
    if run is None or view not in VIEWS:
        return ()
    return views.repeated(run) if view == "time" else views.shared(run)
