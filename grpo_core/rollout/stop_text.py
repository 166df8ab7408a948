"""Ends a row where its text ends a tool call, for models that have no token for that."""

from __future__ import annotations

from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from grpo_core.models import Policy
from grpo_core.rollout.draw import Rows


class StopText:
    """Looks now and then at what the rows of a decode batch have written since the last look.

    What a row wrote after the text, until somebody looked, is dropped.
    """

    def __init__(self, policy: Policy, text: str, rows: Rows) -> None:
        self._policy, self._text, self._rows = policy, text, rows
        self._closing = _with_character(policy.tokenizer, text[-1])
        self._span = len(text.encode())  # a token holds at least a byte of it
        self._seen = 0  # tokens of each row

    def look(self, written: int) -> None:
        """End the rows whose text holds the stop text. written: tokens of each row so far."""
        rows, start = self._rows, max(0, self._seen - self._span)
        alive = rows.alive.tolist()
        recent = rows.tokens[rows.alive, start:written].tolist()
        lengths = rows.lengths[rows.alive].tolist()
        for row, tokens, length in zip(alive, recent, lengths, strict=True):
            for column in range(self._seen, min(written, length)):
                at = column - start
                if tokens[at] not in self._closing:
                    continue
                tail = tokens[max(0, at + 1 - self._span) : at + 1]
                if self._text in self._policy.decode(tail):
                    rows.lengths[row] = column + 1
                    rows.ended[row] = True
                    break
        self._seen = written


@lru_cache(maxsize=4)
def _with_character(tokenizer: PreTrainedTokenizerBase, character: str) -> frozenset[int]:
    """The ids of the tokens that hold an ASCII character."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return frozenset(i for i, token in enumerate(tokens) if token and character in token)
