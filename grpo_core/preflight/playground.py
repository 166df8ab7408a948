"""Answers of the saved states of runs, sampled beside training."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import torch

from grpo_core.config import parse
from grpo_core.exporting.answers import heldout_prompt, play
from grpo_core.exporting.play_request import PlayRequest, PlayResult, PlayStopped, PlayWatch
from grpo_core.models.model_cache import SMALL_MODEL, ModelCache
from grpo_core.store import Store
from grpo_core.types import Prompt, RunStatus

MAX_KEPT = 16  # results


class Playground:
    """Answers one prompt by several states of a run, and keeps the last results.

    device: where a model answers now, by the device that its run names; not a GPU that is in use.
    """

    def __init__(self, store: Store, models: ModelCache, device: Callable[[str], torch.device]):
        self._store, self._models, self._device = store, models, device
        self._kept: OrderedDict[str, PlayResult] = OrderedDict()
        self._watched: dict[str, PlayWatch] = {}  # by question, while it is answered

    def look(self, question: str) -> tuple[int, PlayResult] | None:
        """(revision, what is written so far) of a question that is being answered."""
        watch = self._watched.get(question)
        return None if watch is None or watch.partial is None else (watch.revision, watch.partial)

    def stop(self, question: str) -> None:
        """End the answers of a question; play() then raises PlayStopped."""
        if question and (watch := self._watched.get(question)) is not None:
            watch.is_stopped = True

    def prompt(self, run_id: str, number: int) -> Prompt:
        """A held-out prompt of the run's task."""
        return heldout_prompt(parse(self._store.run(run_id).config), number)

    def reason_to_wait(self, run_id: str) -> str:
        """Why nothing is answered before somebody asks for it; "" if nothing is in the way."""
        run = self._store.run(run_id)
        if self._device(parse(run.config).model.device).type != "cpu":
            return ""
        for other in self._store.runs():
            if other.status in (RunStatus.LOADING, RunStatus.RUNNING):
                which = "This run" if other.id == run_id else "Another run"
                return f"{which} is training, and answers would slow it down."
        if (run.env or {}).get("parameters", 0) > SMALL_MODEL:
            return "A model of this size answers slowly on the CPU."
        return ""

    def play(self, run_id: str, request: PlayRequest, question: str = "") -> PlayResult:
        """Completions of a prompt by several saved states, scored by the rubric of this run.

        The random numbers are the run's, so an equal request gets the result that was kept.
        question: by which look() finds the answers meanwhile, and stop() stops them.
        """
        saved = {
            (run, row.step): row.sha256
            for run in {state.run_id for state in request.states}
            for row in self._store.checkpoints(run)
        }
        which = [saved.get((state.run_id, state.step)) for state in request.states]
        key = repr((run_id, request, which))
        result = self._kept.get(key)
        if result is None:
            watch = self._watched[question] = PlayWatch()
            if request.turns is not None and request.turns > 1:
                shorter = replace(request, turns=request.turns - 1)
                watch.partial = self._kept.get(repr((run_id, shorter, which)))
            try:
                result = play(self._store, self._models, run_id, request, watch)
            except PlayStopped as stopped:
                stopped.partial = watch.partial
                raise
            finally:
                self._watched.pop(question, None)
            # A result with an answer that could not be scored is not kept: a judge that could not
            # be reached may score it the next time.
            if all(None not in r.scores.values() for s in result.sides for r in s.sampled):
                self._kept[key] = result
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return result
