"""A judge is asked about a group as soon as it is sampled, while the others still are."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from grpo_core.models import Policy
from grpo_core.rollout import Sampled
from grpo_core.rubric import Notes, Rubric
from grpo_core.types import Completion, Prompt


def completion(policy: Policy, sampled: Sampled) -> Completion:
    """As text, which is what rubrics look at."""
    return Completion(
        policy.decode(sampled.token_ids), sampled.finish_reason, len(sampled.token_ids)
    )


class AsyncScorer:
    """One thread that asks, for as long as sampling lasts: `tell` it of each group that is whole, and when all are, ask it what it `found`.

    It asks in one go for all groups that it was told of meanwhile. What a completion gets does not depend on that: only checks take
    part that say so of themselves (`Check.ahead`).
    """

    def __init__(self, rubric: Rubric, policy: Policy, prompts: Sequence[Prompt]):
        self._rubric, self._policy, self._prompts = (
            rubric.only(lambda check: check.ahead),
            policy,
            prompts,
        )
        self.is_wanted = bool(self._rubric.rows)
        self._told: queue.SimpleQueue[tuple[int, Sequence[Sampled]] | None] = queue.SimpleQueue()
        self._scores: dict[int, list[dict[str, float | None]]] = {}
        self._notes: dict[str, Notes] = {}
        self._problem: BaseException | None = None
        self._is_given_up = False
        self._thread = threading.Thread(target=self._work, name="scores ahead", daemon=True)

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
        self._is_given_up = (
            kind is not None
        )  # a stop: nothing new is asked, and what was asked already is not waited for
        self._end()

    def tell(self, p: int, siblings: Sequence[Sampled]) -> None:
        """All completions of prompt p."""
        self._told.put((p, siblings))

    def found(self) -> tuple[list[dict[str, float | None]], dict[str, Notes]] | None:
        """Waits. Scores by criterion of every completion, prompt by prompt, and why some are null; None when no criterion is asked ahead."""
        if not self.is_wanted:
            return None
        self._end()
        if self._problem is not None:
            raise self._problem
        return [
            scores for p in range(len(self._prompts)) for scores in self._scores[p]
        ], self._notes

    def _end(self) -> None:
        """Nothing more will be told."""
        if self._thread.is_alive():
            self._told.put(None)
            if not self._is_given_up:
                self._thread.join()

    def _work(self) -> None:
        going = True
        while going:
            told = [self._told.get()]
            while not self._told.empty():
                told.append(self._told.get())
            going = None not in told
            groups = [group for group in told if group is not None]
            if groups and self._problem is None and not self._is_given_up:
                try:
                    self._score(groups)
                except (
                    BaseException
                ) as problem:  # whatever it is, it is the trainer's: found() raises it there
                    self._problem = problem

    def _score(self, groups: Sequence[tuple[int, Sequence[Sampled]]]) -> None:
        scored = self._rubric.score_all(
            [completion(self._policy, s) for _, siblings in groups for s in siblings],
            [self._prompts[p] for p, siblings in groups for _ in siblings],
        )
        scores = iter(scored.scores)
        for p, siblings in groups:
            self._scores[p] = [next(scores) for _ in siblings]
        for name, why in scored.notes.items():
            self._notes.setdefault(name, Notes()).add(why)
