"""Groupings: which completions are siblings.

Each function gives every prompt of a step a number; prompts with equal numbers form one group.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from grpo_core.types import Prompt

WORD = re.compile(r"\w+")


def by_prompt(prompts: Sequence[Prompt], threshold: float) -> list[int]:
    """The completions of one prompt."""
    return list(range(len(prompts)))


def by_task(prompts: Sequence[Prompt], threshold: float) -> list[int]:
    """Prompts with the same `group_key`, a column of an uploaded data set, or else same task."""
    return _numbered([str(p.meta.get("group_key", p.task)) for p in prompts])


def by_similarity(prompts: Sequence[Prompt], threshold: float) -> list[int]:
    """Prompts whose TF-IDF cosine is at least the threshold, directly or through other prompts.

        weight of word v in a prompt = count · (ln((1 + n)/(1 + n_v)) + 1), rows scaled to length 1

    Links through other prompts make the result independent of the order of prompts.
    """
    counts = [Counter(WORD.findall(p.text.lower())) for p in prompts]
    num_prompts_with = Counter(word for c in counts for word in c)
    vectors = []
    for c in counts:
        v = {
            word: k * (math.log((1 + len(prompts)) / (1 + num_prompts_with[word])) + 1)
            for word, k in c.items()
        }
        length = math.sqrt(sum(x * x for x in v.values())) or 1.0
        vectors.append({word: x / length for word, x in v.items()})
    label = list(range(len(prompts)))
    for i, u in enumerate(vectors):
        for j in range(i):
            cosine = sum(x * vectors[j].get(word, 0.0) for word, x in u.items())
            if cosine >= threshold - 1e-9 or prompts[i].text == prompts[j].text:
                label = [label[j] if k == label[i] else k for k in label]
    return _numbered(label)


def by_batch(prompts: Sequence[Prompt], threshold: float) -> list[int]:
    """All completions of the step."""
    return [0] * len(prompts)


GROUPINGS: dict[str, Callable[[Sequence[Prompt], float], list[int]]] = {
    "prompt": by_prompt,
    "task": by_task,
    "similarity": by_similarity,
    "batch": by_batch,
}


def _numbered(labels: Sequence[object]) -> list[int]:
    """Labels -> 0, 1, … in order of first appearance."""
    first = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return [first[label] for label in labels]
