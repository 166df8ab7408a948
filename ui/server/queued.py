"""Limits on calls through Gradio's queue, which keeps every answer until somebody fetches it."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from typing import Any

from ui.server.guard import Refusal

MAX_CALLS = 16  # of one visitor that are not finished, or whose answers were not fetched
KEPT_SECONDS = 60.0  # for an answer that nobody fetches
PATHS = ("/queue/join", "/call/")


class QueuedCalls:
    """Which sessions of Gradio's queue belong to which visitor."""

    def __init__(self) -> None:
        self._sessions: dict[str, OrderedDict[str, float]] = {}  # session -> when its last call was

    def admit(self, visitor: str, content: dict[str, Any], queue: Any) -> None:
        """Count one more call, and name its session. Raises Refusal beyond MAX_CALLS.

        content: of the call. queue: Gradio's.
        """
        session = content.setdefault("session_hash", secrets.token_hex(16))
        for other in list(self._sessions):
            self._forget(other, queue)
        mine = self._sessions.get(visitor, {})
        if sum(len(queue.pending_event_ids_session.get(s, ())) for s in mine) >= MAX_CALLS:
            text = f"You have {MAX_CALLS} calls without a fetched answer. Fetch the answers first."
            raise Refusal(429, text, 5)
        self._sessions.setdefault(visitor, OrderedDict())[session] = time.monotonic()

    def _forget(self, visitor: str, queue: Any) -> None:
        """Drop a visitor's sessions that are over, and answers that nobody fetched."""
        sessions, oldest = self._sessions[visitor], time.monotonic() - KEPT_SECONDS
        for session, called_at in list(sessions.items()):
            calls = queue.pending_event_ids_session.get(session, set())
            is_working = any(call in queue.event_ids_to_events for call in calls)
            if is_working or (calls and called_at > oldest):
                continue
            if called_at > oldest and session in queue.pending_messages_per_session:
                continue  # the same client may call again
            del sessions[session]
            queue.pending_messages_per_session.pop(session, None)
            queue.pending_event_ids_session.pop(session, None)
        if not sessions:
            del self._sessions[visitor]
