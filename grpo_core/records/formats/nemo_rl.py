"""NeMo-RL: `train_data_step{N}.jsonl` and `val_data_step{N}.jsonl` of its log folder.

A row is a slice of a batch, so every value is a list of one: content (the texts of the messages,
without roles), rewards, token_ids, token_loss_mask, advantages, generation_logprobs,
prev_logprobs, input_lengths, idx. Sequences are padded at their end. In an evaluation content has
the messages with their roles, and there are no tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from grpo_core.records.formats.chats import Answered, answer_starts, answered, asked, messages
from grpo_core.records.formats.rows import (
    Row,
    by_key,
    first_row,
    found,
    group_of,
    in_parts,
    number,
    numbers,
    one_value,
    runs_of,
    text,
    token_ids,
    whole,
)
from grpo_core.records.record import SourceGroup, SourceRollout, SourceRun, SourceStep

NAME = re.compile(r"(train|val)_data_step(\d{1,12})\.jsonl")


def files(path: Path) -> list[Path]:
    return [f for f in found(path, "*_data_step*.jsonl") if NAME.fullmatch(f.name)]


def finds(path: Path) -> bool:
    return first_row(files(path)).keys() >= {"rewards", "idx"}


def read(path: Path) -> Iterator[SourceRun | SourceStep]:
    """The run and its steps. Raises StudioError."""
    place = path.resolve()
    yield SourceRun(trainer="NeMo-RL", format="nemo-rl", key=f"nemo-rl:{place}", name=place.stem)
    yield from in_parts(_groups(path))


def _groups(path: Path) -> Iterator[tuple[int, SourceGroup]]:
    in_order = sorted(files(path), key=lambda f: (_step(f), f.name))
    for file in in_order:
        is_evaluation = file.name.startswith("val")
        for rows in by_key(file, _key):
            samples = [_Sample(row) for row in rows]
            yield _step(file), _group(samples, is_evaluation)


def _step(file: Path) -> int:
    name = NAME.fullmatch(file.name)
    assert name is not None
    return int(name[2])


def _group(samples: Sequence[_Sample], is_evaluation: bool) -> SourceGroup:
    chats = [s.chat for s in samples if s.chat]
    if len(chats) == len(samples):
        first = answer_starts(chats)
        answers = [answered(chat[first:]) for chat in chats]
        return group_of(
            asked(chats[0][:first]),
            [s.rollout(a) for s, a in zip(samples, answers, strict=True)],
            evaluation=is_evaluation,
        )
    prompts = [s.parted() for s in samples]
    return group_of(
        asked("\n".join(prompts[0][0])),
        [s.rollout(s.turns(texts)) for s, (_, texts) in zip(samples, prompts, strict=True)],
        evaluation=is_evaluation,
    )


def _key(row: Row) -> Any:
    """What the siblings share: the tokens of the prompt, else its first text."""
    if "rewards" not in row or not row.keys() & {"content", "token_ids"}:
        return None
    sample = _Sample(row)
    if sample.actions:
        return sample.ids[: sample.actions[0].start]
    if sample.chat:
        return sample.chat[: answer_starts([sample.chat])]
    return sample.parted()[0]


class _Sample:
    """A row without the lists of one around its values."""

    def __init__(self, row: Row):
        self._row = {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in row.items()}
        self.chat = messages(self._row.get("content"))
        ids = token_ids(self._row.get("token_ids")) or []
        self._padded = len(ids)
        mask = numbers(self._row.get("token_loss_mask"), len(ids)) or []
        length = whole(self._row.get("input_lengths"))
        self.ids = ids[:length] if mask else []
        self.mask = [m > 0 for m in mask[:length]]
        # The tokens of each message of the policy.
        runs = runs_of(self.mask, len(self.mask))
        self.actions = [tokens for tokens in runs if self.mask[tokens.start]]

    @property
    def _texts(self) -> list[str]:
        content = self._row.get("content")
        return [text(c) for c in content] if isinstance(content, list) else [text(content)]

    def parted(self) -> tuple[list[str], list[str]]:
        """The texts of the prompt and of the completion.

        After the prompt, messages of the policy and of its environment take turns.
        """
        texts = self._texts
        if len(texts) == 1:
            return [], texts
        ends_observed = bool(self.actions) and self.actions[-1].stop < len(self.ids)
        last = 2 * len(self.actions) - (not ends_observed) if self.actions else len(texts) - 1
        first = max(1, len(texts) - last)
        return texts[:first], texts[first:]

    def turns(self, texts: Sequence[str]) -> Answered:
        """The texts of a completion as turns, with the place of each in its tokens."""
        roles = ("assistant", "tool")
        chat = [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]
        if not self.actions:
            return answered(chat)
        mask = self.mask[self.actions[0].start :]
        spans = [(tokens.start, len(tokens)) for tokens in runs_of(mask, len(mask))]
        return answered(chat, spans if len(spans) == len(chat) else ())

    def rollout(self, answer: Answered) -> SourceRollout:
        start = self.actions[0].start if self.actions else 0
        mask, row = self.mask[start:], self._row
        credit = self._of_tokens("advantages", start)
        return SourceRollout(
            text=answer.text,
            turns=answer.turns,
            reward=number(row.get("filtered_rewards", row.get("rewards"))),
            advantage=one_value(credit) if credit else number(row.get("advantages")),
            num_tokens=sum(mask) if mask else None,
            token_ids=self.ids[start:] or None,
            action_mask=mask if mask and not all(mask) else None,
            sampling_logprobs=self._of_tokens("generation_logprobs", start),
            logprobs=self._of_tokens("prev_logprobs", start),
        )

    def _of_tokens(self, name: str, start: int) -> list[float] | None:
        """The values of the tokens from `start` on, nan for those that the policy did not write."""
        values = numbers(self._row.get(name), self._padded) if self.ids else None
        if values is None:
            return None
        kept = zip(values[start : len(self.ids)], self.mask[start:], strict=True)
        return [v if is_action else math.nan for v, is_action in kept]
