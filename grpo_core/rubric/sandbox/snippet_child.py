"""The process that runs snippets for a forked process (a GPU lease of ZeroGPU).

A fork shares the threads' state and the poll descriptor of pydantic-monty with its parent. If it
used the parent's interpreters or started new ones, threads of the parent would crash. So snippets
run in this process, which was not forked. Started as a module.
"""

from __future__ import annotations

import json
import os
import sys

from grpo_core.rubric.check import Notes
from grpo_core.rubric.sandbox.snippet import PythonParams, python
from grpo_core.types import Completion, Prompt


def main() -> None:
    """Answer each JSON line with one JSON line."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    print("{}", file=out, flush=True)
    for line in sys.stdin:
        question, notes = json.loads(line), Notes()
        completions = [Completion(text, "stop", tokens) for text, tokens in question["completions"]]
        prompts = [Prompt("", text, answer, "") for text, answer in question["prompts"]]
        scores = python(
            completions, prompts, PythonParams.model_validate(question["params"]), notes
        )
        print(json.dumps({"scores": scores, "notes": dict(notes)}), file=out, flush=True)


if __name__ == "__main__":
    main()
