"""Does the Hub answer? One small request, before its libraries retry for 23 s and more."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

PATIENCE_SECONDS = 4.0
# For what is in the cache too: without an answer the cached files are used.
CACHED_PATIENCE_SECONDS = 1.0
ANSWER_KEPT_SECONDS = 60.0
SILENCE_KEPT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Probe:
    ended: float  # time.monotonic()
    patience: float
    answered: bool

    def still_tells(self, patience: float) -> bool:
        """Whether this result holds for a probe of `patience` seconds that would begin now."""
        age = time.monotonic() - self.ended
        if self.answered:
            return age < ANSWER_KEPT_SECONDS
        return age < SILENCE_KEPT_SECONDS and self.patience >= patience


_latest: _Probe | None = None


def hub_unreachable(patience: float = PATIENCE_SECONDS) -> bool:
    """Whether nothing answers at the Hub's address within `patience` seconds.

    HF_ENDPOINT and proxies are honoured. Any response counts as an answer, errors included: the
    libraries explain those. With HF_HUB_OFFLINE no request is made, and the result is False: the
    libraries then use their caches, or raise, without waiting.
    """
    global _latest
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    latest = _latest
    if latest is None or not latest.still_tells(patience):
        answered = _answers_within(patience)
        latest = _latest = _Probe(time.monotonic(), patience, answered)
    return not latest.answered


def model_unreachable(name: str, revision: str) -> bool:
    """`hub_unreachable`, with little patience for a model that is in the cache."""
    cached = cached_snapshot(name, revision) is not None
    return hub_unreachable(CACHED_PATIENCE_SECONDS if cached else PATIENCE_SECONDS)


def cached_snapshot(name: str, revision: str) -> Path | None:
    """The folder in the Hub's cache with a model's files; None without its configuration."""
    from huggingface_hub import try_to_load_from_cache

    try:
        file = try_to_load_from_cache(name, "config.json", revision=revision)
    except ValueError:  # not a valid repository id
        return None
    return Path(file).parent if isinstance(file, str) else None


def _answers_within(seconds: float) -> bool:
    answered, ended = threading.Event(), threading.Event()

    def ask() -> None:
        if _answers(seconds):
            answered.set()
        ended.set()

    # A thread, because no timeout of the request bounds a name lookup, nor the sum of its parts.
    threading.Thread(target=ask, name="hub-probe", daemon=True).start()
    ended.wait(seconds)
    return answered.is_set()


def _answers(seconds: float) -> bool:
    from huggingface_hub import constants, get_session

    try:
        import httpx2 as web  # the HTTP client of huggingface_hub since 2.x
    except ImportError:
        import httpx as web
    try:
        get_session().head(f"{constants.ENDPOINT}/robots.txt", timeout=seconds)
    except (web.NetworkError, web.ProxyError, web.TimeoutException):
        return False
    except Exception:  # something else is wrong, and the libraries say what
        return True
    return True
