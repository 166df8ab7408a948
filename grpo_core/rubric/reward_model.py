"""A reward model as a check: any sequence-classification model, run in batches on the device.

The only check that imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pydantic import Field

from grpo_core.config.places import Name
from grpo_core.errors import StudioError
from grpo_core.rubric.check import UNBOUNDED, Check, Notes, Params, batched
from grpo_core.types import Completion, Prompt


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
    import torch

    model, tokenizer = _load(params.model, params.revision)
    texts = [_text(tokenizer, c, p) for c, p in zip(completions, prompts, strict=True)]
    # Texts of similar length share a batch, so that there is less padding.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    scores: list[float | None] = [None] * len(texts)
    for start in range(0, len(order), params.batch):
        rows = order[start : start + params.batch]
        ids = tokenizer(
            [texts[i] for i in rows],
            return_tensors="pt",
            add_special_tokens=not tokenizer.chat_template,  # a template writes its own
            padding=True,
            truncation=True,
            max_length=min(params.max_tokens, tokenizer.model_max_length),
        ).to(model.device)
        with torch.inference_mode():
            logits = model(**ids).logits.float()  # (b, labels)
        if logits.shape[1] == 1:
            values = logits[:, 0].sigmoid() if params.sigmoid else logits[:, 0]
        else:
            if params.label >= logits.shape[1]:
                raise StudioError(
                    f"label = {params.label}: the reward model {params.model!r} has "
                    f"{logits.shape[1]} labels. Use 0 to {logits.shape[1] - 1}, or -1 for the last."
                )
            values = logits.softmax(-1)[:, params.label]
        for i, value in zip(rows, values.tolist(), strict=True):
            scores[i] = value
    return scores


def _text(tokenizer: Any, completion: Completion, prompt: Prompt) -> str:
    messages = [
        *prompt.meta.get("before", ()),
        {"role": "user", "content": prompt.text},
        {"role": "assistant", "content": completion.text},
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
