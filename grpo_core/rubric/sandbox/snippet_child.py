"""Snippets of a forked process (a GPU lease of ZeroGPU): its parent's interpreters cannot be used there, nor new ones started, for their library's threads
and its poll descriptor are shared with the parent, whose own threads then crash. So they run in a helper that was not forked. Started as a module."""

from __future__ import annotations

import json
import os
import sys

from grpo_core.rubric.check import Notes
from grpo_core.rubric.sandbox.snippet import PythonParams, python
from grpo_core.types import Completion, Prompt


def main() -> None:
    """Answer one JSON line with one JSON line, for ever."""
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
