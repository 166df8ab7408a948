"""Python typed into the page, scored in a helper process; see snippet_child.py.

What a snippet computes stays in the helper. Only None and numbers come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from grpo_core.child_process import KILL_AFTER, ChildFailed, free_one, module_child
from grpo_core.rubric.check import (
    MAX_CHARS,
    UNBOUNDED,
    Check,
    Notes,
    Params,
    batched,
    read_scores,
)
from grpo_core.time_limit import seconds_left
from grpo_core.types import Completion, Prompt

MAX_HUNG = 4  # calls that may exceed their time before the rest of the step is skipped
HELPER_SECONDS = 10.0  # for the helper's own work
EXAMPLE = (
    "def score(completion, prompt, answer, tokens):\n"
    "    return 1.0 if answer in completion else 0.0"
)

# One for a run, the others for visitors: each of them may have two requests at once.
_helpers = [module_child("grpo_core.rubric.sandbox.snippet_child") for _ in range(4)]


class PythonParams(Params):
    """`code`: defines score(completion, prompt, answer, tokens) -> number, True, False or None.

    `seconds`: time limit for one completion.
    """

    code: str = Field(EXAMPLE, min_length=1, max_length=20_000)
    seconds: float = Field(1.0, gt=0, le=10)


def python(
    completions: Sequence[Completion], prompts: Sequence[Prompt], params: PythonParams, notes: Notes
) -> list[float | None]:
    """What the snippet returns for each completion.

    None, with the reason in the notes, if it raises, takes too long or returns no finite number.
    """
    seconds = min(seconds_left(), HELPER_SECONDS + params.seconds * max(MAX_HUNG, len(completions)))
    arguments = [
        [[c.text[:MAX_CHARS], c.num_tokens] for c in completions],
        [[p.text, p.answer] for p in prompts],
        {"code": params.code, "each": params.seconds, "all": seconds, "hung": MAX_HUNG},
    ]

    def read(answer: Any) -> tuple[list[float | None], dict[str, int]]:
        if "null" in answer:
            return [None] * len(completions), {f"the snippet: {answer['null']}": len(completions)}
        scores, why = answer["value"]
        return read_scores(scores, len(completions)), {str(k): int(n) for k, n in why.items()}

    question = {"do": "score", "arguments": arguments, "seconds": seconds + KILL_AFTER}
    try:
        scores, why = free_one(_helpers).request(question, seconds + 2 * KILL_AFTER, read)
    except ChildFailed as error:
        notes[f"the snippet's process: {error}"] += len(completions)
        return [None] * len(completions)
    notes.update(why)
    return scores


SNIPPET_CHECKS: dict[str, Check] = {
    "python": batched(
        python,
        PythonParams,
        "Your own Python function score(completion, prompt, answer, tokens), "
        "in a sandbox without files and network.",
        UNBOUNDED,
    ),
}
