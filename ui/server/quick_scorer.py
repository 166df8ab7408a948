"""Scores of the newest reward model, while a person waits for the next pair."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from grpo_core.store import reward_models
from grpo_core.types import Prompt, RunStatus
from ui.server.service import RewardScorer, Service
from ui.server.views import Views

WAIT_SECONDS = 0.2
CHUNK = 16  # texts that are scored at once
MAX_KEPT = 20_000  # scores

Key = tuple[str, str]  # the whole prompt, and the completion
log = logging.getLogger(__name__)


class QuickScorer:
    """Gives what is scored within WAIT_SECONDS, and None for the other texts.

    The scoring goes on in a thread of its own and its scores are kept, so that later pairs find
    them. While anything trains nothing is scored: training needs the device.
    """

    def __init__(self, views: Views, service: Service):
        self._views, self._service = views, service
        self._lock, self._thread = threading.Lock(), ThreadPoolExecutor(1, "reward-scores")
        self._scores: dict[Key, float | None] = {}
        self._model = ""  # that the scores are of
        self._work: Future[None] | None = None

    def now(self) -> RewardScorer | None:
        """None without a reward model, and while anything trains."""
        newest = None if self._is_training() else reward_models.newest_usable(self._views.store)
        if newest is None:
            return None
        with self._lock:
            if newest.id != self._model or len(self._scores) > MAX_KEPT:
                self._model, self._scores = newest.id, {}
        return self._score

    def _score(self, texts: Sequence[tuple[Prompt, str]]) -> list[float | None]:
        keys = [(prompt.conversation, text) for prompt, text in texts]
        with self._lock:
            scores = self._scores
            missing = {k: t for k, t in zip(keys, texts, strict=True) if k not in scores}
            if missing and (self._work is None or self._work.done()):
                self._work = self._thread.submit(self._fill, scores, missing)
            work = self._work
        if work is not None and missing:
            wait([work], WAIT_SECONDS)
        return [scores.get(key) for key in keys]

    def _fill(
        self, scores: dict[Key, float | None], missing: Mapping[Key, tuple[Prompt, str]]
    ) -> None:
        try:
            scorer, keys = self._service.reward_scorer(), list(missing)
            for start in range(0, len(keys), CHUNK):
                if scorer is None or self._is_training():
                    return
                some = keys[start : start + CHUNK]
                scores.update(zip(some, scorer([missing[key] for key in some]), strict=True))
        except Exception as error:  # a pair comes without scores
            log.info("pairs are not scored: %s", error)

    def _is_training(self) -> bool:
        store = self._views.store
        return any(
            row.trains_here and row.status is not RunStatus.QUEUED for row in self._views.runs()
        ) or any(row.status is RunStatus.RUNNING for row in reward_models.read(store))
