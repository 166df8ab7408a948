"""What TRL made in one call of `_generate_and_score_completions`, as groups of plain records."""

from __future__ import annotations

import ast
import json
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from grpo_core.records.record import SourceGroup, SourceRollout
from grpo_core.types import GroupKind, Turn, TurnRole

# Columns of a data set that hold the right answer, the first one counts.
ANSWERS = ("answer", "solution", "ground_truth", "target", "label", "reference")
LOGPROBS = {  # our name -> TRL's
    "sampling_logprobs": "sampling_per_token_logps",
    "logprobs": "old_per_token_logps",
    "ref_logprobs": "ref_per_token_logps",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """How TRL makes one reward of those of its functions: their names and weights."""

    names: Sequence[str]
    weights: Sequence[float]

    def total(self, scores: Iterable[float | None]) -> float | None:
        """The weighted sum of what could be scored; None if nothing could."""
        pairs = zip(self.weights, scores, strict=True)
        known = [weight * score for weight, score in pairs if score is not None]
        return sum(known) if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """What the texts of tokens are made with.

    piece: the bytes of a token. end_ids end a completion. special_ids are no text.
    """

    piece: Callable[[int], bytes]
    pad_id: int | None
    end_ids: frozenset[int]
    special_ids: frozenset[int]
    max_tokens: int | None

    def text(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.piece, ids)).decode("utf-8", "replace")

    def finish_reason(self, ids: Sequence[int]) -> str | None:
        if ids and ids[-1] in self.end_ids:
            return "stop"
        return "length" if self.max_tokens and len(ids) >= self.max_tokens else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The rows of one generation, siblings beside each other; those of other processes too.

    answers and tensors: only of this process's rows, which are the first. tensors: copies on the
    CPU, under TRL's names, (rows, tokens).
    """

    step: int
    kind: str
    group_size: int
    prompts: Sequence[Any]
    completions: Sequence[Any]
    answers: Sequence[str | None]
    scores: Sequence[Sequence[float]]  # (rows, reward functions), nan: could not be scored
    advantages: Sequence[float]
    tensors: Mapping[str, Any]

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


def groups(made: Generation, rewards: Rewards, reader: Reader) -> Iterator[SourceGroup]:
    """The groups of a generation, in TRL's order."""
    tokens = _tokens(made.tensors, reader)
    for first in range(0, len(made.prompts), made.group_size):
        rows = range(first, min(first + made.group_size, len(made.prompts)))
        prompt, before = conversation(made.prompts[first])
        yield SourceGroup(
            prompt=prompt,
            before=before,
            answer=made.answers[first] if first < len(made.answers) else None,
            kind="evaluation" if made.kind == GroupKind.EVALUATION else "training",
            rollouts=tuple(
                _rollout(made, i, rewards, reader, tokens[i] if i < len(tokens) else {})
                for i in rows
            ),
        )


def _rollout(
    made: Generation, row: int, rewards: Rewards, reader: Reader, tokens: Mapping[str, Any]
) -> SourceRollout:
    scores, completion = list(map(finite, made.scores[row])), made.completions[row]
    ids, mask = tokens.get("token_ids"), tokens.get("mask")
    turns = _turns(completion, ids, mask, reader) if ids is not None and mask is not None else ()
    return SourceRollout(
        text=_text(completion, ids, turns, reader),
        finish_reason=None if ids is None else reader.finish_reason(ids),
        scores=dict(zip(rewards.names, scores, strict=True)),
        reward=rewards.total(scores),
        advantage=None if made.kind == GroupKind.EVALUATION else finite(made.advantages[row]),
        num_tokens=None if ids is None else len(ids) if mask is None else sum(mask),
        token_ids=ids,
        action_mask=mask,
        sampling_logprobs=tokens.get("sampling_logprobs"),
        logprobs=tokens.get("logprobs"),
        ref_logprobs=tokens.get("ref_logprobs"),
        turns=turns,
    )


def finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


# ---- tokens ----------------------------------------------------------------------------------


def _tokens(tensors: Mapping[str, Any], reader: Reader) -> list[dict[str, Any]]:
    """Of each row what is known of its tokens, without the padding."""
    if "completion_ids" not in tensors:
        return []
    ids = tensors["completion_ids"].numpy()
    lengths = _lengths(ids, tensors["completion_mask"].numpy(), reader.pad_id)
    values = {
        name: _aligned(tensors[theirs].float().numpy(), tensors, reader.pad_id)
        for name, theirs in LOGPROBS.items()
        if theirs in tensors
    }
    mask = tensors["tool_mask"].numpy() != 0 if "tool_mask" in tensors else None
    rows = []
    for i, n in enumerate(lengths):
        row: dict[str, Any] = {"token_ids": array("i", ids[i, :n].astype("i").tobytes())}
        for name, rows_of in values.items():
            if rows_of is not None and np.isfinite(rows_of[i, :n]).all():
                row[name] = array("f", rows_of[i, :n].astype("f").tobytes())
        if mask is not None:
            row["mask"] = mask[i, :n].tolist()
        rows.append(row)
    return rows


def _lengths(ids: np.ndarray, mask: np.ndarray, pad_id: int | None) -> list[int]:
    """The number of tokens of each row.

    With mask_truncated_completions the mask of a completion that was cut is all 0; it has no end
    token, so the padding is what ends it.
    """
    lengths = mask.sum(1)
    for i in np.flatnonzero(lengths == 0):
        kept = np.flatnonzero(ids[i] != pad_id)
        lengths[i] = kept[-1] + 1 if kept.size else 0
    return lengths.tolist()


def _aligned(
    values: np.ndarray, tensors: Mapping[str, Any], pad_id: int | None
) -> np.ndarray | None:
    """Log-probabilities, one column a completion token; None if it is not known which is which.

    Unsloth moves the padding of a prompt behind its completion. It returns as many more columns as
    the shortest prompt has padding, and a row's completion begins earlier by its own padding.
    """
    width = tensors["completion_ids"].shape[1]
    if values.shape[1] == width:
        return values
    pads = (tensors["prompt_ids"].numpy() == pad_id).sum(1)
    if values.shape[1] != width + pads.max(initial=0):
        return None
    starts = pads.max() - pads
    return np.take_along_axis(values, starts[:, None] + np.arange(width)[None], axis=1)


# ---- texts -----------------------------------------------------------------------------------


def conversation(prompt: Any) -> tuple[str, tuple[Mapping[str, str], ...]]:
    """The last message that a person wrote, and the messages before it. A text is one message."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str) or not prompt:
        return str(prompt), ()
    messages = [
        {"role": str(m.get("role", "")), "content": content(m.get("content"))} for m in prompt
    ]
    return messages[-1]["content"], tuple(messages[:-1])


def content(value: Any) -> str:
    """The text of a message's content, which may be a list of parts; pictures by their kind."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join(
            str(part.get("text", f"[{part.get('type')}]"))
            if isinstance(part, Mapping)
            else str(part)
            for part in value
        )
    return str(value)


def _text(completion: Any, ids: Any, turns: Sequence[Turn], reader: Reader) -> str:
    """As TRL decoded it; with thoughts, calls or tools, which it parsed out, from the tokens."""
    if isinstance(completion, str):
        return completion
    messages = completion if isinstance(completion, list) else []
    is_plain = len(messages) == 1 and not turns and not _says_more(messages[0])
    if ids is not None and not is_plain:
        return reader.text(ids[:-1] if ids and ids[-1] in reader.end_ids else ids)
    return "\n\n".join(content(_mapping(m).get("content")) for m in messages)


def _says_more(message: Any) -> bool:
    """Whether a message has more than its content: thoughts or calls, which TRL parsed out."""
    return any(_mapping(message).get(k) for k in ("tool_calls", "reasoning_content", "thinking"))


def _mapping(message: Any) -> Mapping[str, Any]:
    return message if isinstance(message, Mapping) else {"content": message}


def _turns(completion: Any, ids: Sequence[int], mask: Sequence[bool], reader: Reader) -> tuple:
    """What the policy wrote and what tools answered, in order, with their places among the tokens.

    As in our own runs, the first of several answers has the tokens of all.
    """
    if all(mask):
        return ()
    places = _segments(mask)
    messages = completion if isinstance(completion, list) else []
    if not any(_mapping(m).get("role") == "tool" for m in messages):
        return tuple(_written(acts, first, n, ids, reader) for acts, first, n in places)
    turns, pending, answering = list[Turn](), list[Mapping[str, Any]](), False
    for message in map(_mapping, messages):
        is_answer = message.get("role") == "tool"
        shares = is_answer and answering
        _, first, n = (False, len(ids), 0) if shares or not places else places.pop(0)
        answering = is_answer
        if not is_answer:
            calls = map(_mapping, message.get("tool_calls") or [])
            pending = [_mapping(call.get("function")) for call in calls]
            turns.append(_written(True, first, n, ids, reader))
            continue
        if shares:
            first = turns[-1].first_token + turns[-1].num_tokens
        turns.append(_answered(message, pending, first, n))
    return tuple(turns)


def _segments(mask: Sequence[bool]) -> list[tuple[bool, int, int]]:
    """Runs of equal values: (value, first, number)."""
    found, first = [], 0
    for value, run in groupby(mask):
        n = sum(1 for _ in run)
        found.append((bool(value), first, n))
        first += n
    return found


def _written(acts: bool, first: int, n: int, ids: Sequence[int], reader: Reader) -> Turn:
    said = [t for t in ids[first : first + n] if t not in reader.special_ids]
    role = TurnRole.ACTION if acts else TurnRole.OBSERVATION
    return Turn(role, reader.text(said), first, n)


def _answered(
    message: Mapping[str, Any], pending: list[Mapping[str, Any]], first: int, n: int
) -> Turn:
    """A tool's answer, with the call of the same name that is not answered yet."""
    tool, text = str(message.get("name") or ""), content(message.get("content"))
    call = next((c for c in pending if c.get("name") == tool), {})
    if call:
        pending.remove(call)
    arguments = call.get("arguments", "")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False, default=str)
    return Turn(TurnRole.OBSERVATION, text, first, n, tool, arguments, _error(text))


def _error(text: str) -> str:
    """TRL answers a failed call with the text of {"error": reason}."""
    if not text.startswith("{'error': "):
        return ""
    try:
        return str(ast.literal_eval(text)["error"])
    except (ValueError, SyntaxError, KeyError, TypeError):
        return ""
