"""Commands to a trainer in a subprocess: its RunControl gets them through a pipe."""

from __future__ import annotations

import contextlib
import select
import threading
from multiprocessing.connection import Connection
from typing import Any

from grpo_core.errors import StudioError
from grpo_core.training.control import Command

SEND_SECONDS = 1.0  # for a command; a process that reads takes microseconds
ANSWER_SECONDS = 5.0  # for the one command that is answered, edit_reward
# Errors of a pipe to a run that has ended. TypeError, ValueError: another thread closed it.
HAS_ENDED = (EOFError, OSError, TypeError, ValueError)


class CommandPipe:
    """Sends commands to the RunControl of the subprocess. Safe to use from any thread.

    A call raises StudioError if the subprocess refuses the command.
    """

    def __init__(self, pipe: Connection):
        self._pipe = pipe
        self._sending = threading.Lock()
        self._waiting_for_answer = threading.Lock()
        self._num_questions = 0

    def __call__(self, command: Command) -> None:
        with contextlib.suppress(*HAS_ENDED):
            if command[0] == "edit_reward":
                self._send_and_wait(command)
            else:
                self._send(command)

    def deliver(self, command: Command) -> None:
        """Send what the subprocess must get, however long it takes to read it."""
        with contextlib.suppress(*HAS_ENDED), self._sending:
            self._pipe.send(command)

    def _send(self, message: tuple[Any, ...]) -> None:
        """Raises StudioError if the subprocess has not read earlier commands for long."""
        if self._sending.acquire(timeout=SEND_SECONDS):
            try:
                _, writable, _ = select.select([], [self._pipe], [], SEND_SECONDS)
                if writable:
                    self._pipe.send(message)
                    return
            finally:
                self._sending.release()
        raise StudioError("The run's process takes no commands. Press Stop to end it.")

    def _send_and_wait(self, command: Command) -> None:
        with self._waiting_for_answer:
            self._num_questions += 1
            self._send((*command, self._num_questions))
            while self._pipe.poll(ANSWER_SECONDS):
                question, refusal = self._pipe.recv()
                if question == self._num_questions:  # else a late answer to an earlier question
                    if refusal:
                        raise StudioError(refusal)
                    return
        raise StudioError(
            f"The run's process did not answer within {ANSWER_SECONDS:.0f} s. "
            "Check whether the reward was edited. Then try again, or press Stop."
        )
