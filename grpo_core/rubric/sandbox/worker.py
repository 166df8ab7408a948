"""The process for graders that can hang: mathematical equivalence and JSON Schema.

It protects the server from formulas and patterns that take forever or fill the memory: the process
has a memory limit and can be killed. Started as a module, without secrets in its environment.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from grpo_core.child_process import NoValue, finite_number, serve
from grpo_core.rubric.sandbox.formula_tokens import Unread
from grpo_core.rubric.sandbox.mathematics import math_equal

MAX_MEMORY = 1 << 30


def math_score(given: str, right: str) -> float:
    """1.0 if two answers are mathematically equal, else 0.0. Raises NoValue if one is unread."""
    try:
        return math_equal(given, right)
    except Unread as error:
        raise NoValue(str(error)) from None


def schema_score(texts: Sequence[str], schema: dict[str, Any]) -> float:
    """1.0 for JSON that is valid under the schema, 0.5 for other JSON, 0.0 for no JSON.

    texts: the first that is JSON counts. By RFC 8259 there is no NaN and nothing after the value;
    a name that occurs twice in an object is refused too, because readers differ in what it means.
    """
    from jsonschema import Draft202012Validator
    from referencing import Registry

    for text in texts:
        try:
            value = json.loads(
                text,
                parse_constant=finite_number,
                parse_float=finite_number,
                object_pairs_hook=_unique,
            )
        except (ValueError, RecursionError):
            continue
        # With an empty registry a $ref never fetches anything.
        return 1.0 if Draft202012Validator(schema, registry=Registry()).is_valid(value) else 0.5
    return 0.0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(value := dict(pairs)) != len(pairs):
        raise ValueError("a name occurs twice")
    return value


GRADERS: dict[str, Callable[..., float | None]] = {"math": math_score, "schema": schema_score}

if __name__ == "__main__":
    serve(GRADERS, MAX_MEMORY)
