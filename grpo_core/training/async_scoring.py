"""Score a group with slow criteria as soon as it is sampled, while other groups still are."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from grpo_core.rubric import Notes, Rubric
from grpo_core.types import Prompt, Rollout


class AsyncScorer:
    """One thread that scores groups while sampling lasts: `submit` each group, then `results`.

    Only criteria that set `Check.is_async` take part, such as judges. All waiting groups are scored
    in one call; the score of a completion does not depend on which others are scored with it.
    """

    def __init__(self, rubric: Rubric, prompts: Sequence[Prompt]) -> None:
        self._rubric = rubric.only(lambda check: check.is_async)
        self._prompts = prompts
        self.is_wanted = bool(self._rubric.rows)
        # None ends the thread.
        self._inbox: queue.SimpleQueue[tuple[int, Sequence[Rollout]] | None] = queue.SimpleQueue()
        self._scores: dict[int, list[dict[str, float | None]]] = {}  # by prompt
        self._notes: dict[str, Notes] = {}
        self._error: BaseException | None = None
        self._is_abandoned = False
        self._thread = threading.Thread(target=self._work, name="async scoring", daemon=True)

    def __enter__(self) -> Self:
        if self.is_wanted:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # After a stop nothing new is scored, and a request under way is not waited for.
        self._is_abandoned = kind is not None
        self._finish()

    def submit(self, p: int, siblings: Sequence[Rollout]) -> None:
        """Score all completions of prompt p."""
        self._inbox.put((p, siblings))

    def results(self) -> tuple[list[dict[str, float | None]], dict[str, Notes]] | None:
        """Wait for the scores of every completion, prompt by prompt, and why some are null.

        None where no criterion takes part. Raises what a criterion raised.
        """
        if not self.is_wanted:
            return None
        self._finish()
        if self._error is not None:
            raise self._error
        return [s for p in range(len(self._prompts)) for s in self._scores[p]], self._notes

    def _finish(self) -> None:
        if self._thread.is_alive():
            self._inbox.put(None)
            if not self._is_abandoned:
                self._thread.join()

    def _work(self) -> None:
        going = True
        while going:
            waiting = [self._inbox.get()]
            while not self._inbox.empty():
                waiting.append(self._inbox.get())
            going = None not in waiting
            groups = [group for group in waiting if group is not None]
            if groups and self._error is None and not self._is_abandoned:
                try:
                    self._score(groups)
                except BaseException as error:  # results() raises it in the trainer's thread
                    self._error = error

    def _score(self, groups: Sequence[tuple[int, Sequence[Rollout]]]) -> None:
        scored = self._rubric.score_all(
            [r.completion for _, siblings in groups for r in siblings],
            [self._prompts[p] for p, siblings in groups for _ in siblings],
        )
        scores = iter(scored.scores)
        for p, siblings in groups:
            self._scores[p] = [next(scores) for _ in siblings]
        for name, notes in scored.notes.items():
            self._notes.setdefault(name, Notes()).add(notes)
