"""A reward model as a check: any sequence-classification model, run in batches on the device.

The only check that imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic import Field

from grpo_core.config.places import Name
from grpo_core.errors import StudioError
from grpo_core.rubric.check import UNBOUNDED, Check, Notes, Params, batched
from grpo_core.types import Completion, Prompt

if TYPE_CHECKING:
    from torch import Tensor


class RewardModelParams(Params):
    """`model`: folder or Hub id.

    A model with one label scores by its logit, through a sigmoid if `sigmoid`. With several labels
    the score is the probability of `label` (-1 = the last).
    """

    model: Name = Field("", max_length=512)
    revision: Name = Field("main", min_length=1, max_length=200)
    label: int = Field(-1, ge=-1, le=10_000)
    sigmoid: bool = True
    max_tokens: int = Field(1024, ge=1, le=1_000_000)
    batch: int = Field(16, ge=1, le=4096)


def reward_model(
    completions: Sequence[Completion],
    prompts: Sequence[Prompt],
    params: RewardModelParams,
    notes: Notes,
) -> list[float | None]:
    """The model's score of prompt and completion, in its chat template if it has one.

    Texts with more than `max_tokens` tokens, or more than its context, lose their beginning.
    """
    model, tokenizer = _load(params.model, params.revision)
    texts = [text_read(tokenizer, p, c.text) for c, p in zip(completions, prompts, strict=True)]
    rows = logits_of(model, tokenizer, texts, params.max_tokens, params.batch)
    return [_score(row, params) for row in rows]


def _score(logits: Tensor, params: RewardModelParams) -> float:
    """logits (labels,) -> a number. Raises StudioError for a label that is not there."""
    if len(logits) == 1:
        return (logits[0].sigmoid() if params.sigmoid else logits[0]).item()
    if params.label >= len(logits):
        raise StudioError(
            f"label = {params.label}: the reward model {params.model!r} has "
            f"{len(logits)} labels. Use 0 to {len(logits) - 1}, or -1 for the last."
        )
    return logits.softmax(-1)[params.label].item()


def logits_of(
    model: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int, batch: int
) -> list[Tensor]:
    """The model's float32 logits (labels,) of each text, on the CPU."""
    import torch

    # Texts of similar length share a batch, so that there is less padding.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    logits: dict[int, Tensor] = {}
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            ids = encode(tokenizer, [texts[i] for i in rows], max_tokens).to(model.device)
            logits |= zip(rows, model(**ids).logits.float().cpu(), strict=True)  # (b, labels)
    return [logits[i] for i in range(len(texts))]


def encode(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> Any:
    """Ids and mask (b, T) of texts. Those that are too long lose their beginning."""
    return tokenizer(
        list(texts),
        return_tensors="pt",
        add_special_tokens=not tokenizer.chat_template,  # a template writes its own
        padding=True,
        truncation=True,
        max_length=min(max_tokens, tokenizer.model_max_length),
    )


def text_read(tokenizer: Any, prompt: Prompt, completion: str) -> str:
    """What a reward model reads, in training too: the chat in its template, else lines."""
    messages = [
        *prompt.meta.get("before", ()),
        {"role": "user", "content": prompt.text},
        {"role": "assistant", "content": completion},
    ]
    if tokenizer.chat_template:
        from grpo_core.models.chat_template import accepted, render

        return render(tokenizer, accepted(tokenizer, messages), False)
    return "\n".join(m["content"] for m in messages)


@lru_cache(maxsize=2)
def _load(name: str, revision: str) -> tuple[Any, Any]:
    from grpo_core.models import load_classifier

    return load_classifier(name, revision)


MODEL_CHECKS: dict[str, Check] = {
    "reward_model": batched(
        reward_model,
        RewardModelParams,
        "A reward model grades: any sequence-classification model, from a folder or the Hub.",
        UNBOUNDED,
    ),
}
