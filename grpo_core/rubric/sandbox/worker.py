"""The process for graders that can hang: mathematical equivalence and JSON Schema.

It protects the server from formulas and patterns that take forever or fill the memory: the process
has a memory limit and can be killed. Started as a module, without secrets in its environment.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from grpo_core.child_process import serve

MAX_MEMORY = 3 << 30

# Pairs of answers of every form. ANTLR fills its parser tables at first use, which takes a tenth of
# a second for each form.
SHAPES = (
    (r"\frac{3}{7}", "u+8"),
    (r"(\frac{5}{8}, 9)", "(0.625,9)"),
    ("[4,6]", "(4,6)"),
    (r"[4,6)\cup(7,\infty)", r"(-\infty,4]"),
    (r"\{4,6\}", r"\{6,4\}"),
    (r"\sqrt{18}", r"3\sqrt{2}"),
    ("u^2+4u+4", "(u+2)^2"),
    (r"e^{2i\pi}", "6"),
    (r"u^{1/3}", r"\sqrt[3]{u}"),
    (r"\log_{2} 32", r"\ln 7"),
    (r"\sin u", r"\tan u"),
    (r"\binom{7}{3}", "7!"),
    ("v=3u+5", "3u+5"),
    (r"3\pi", r"\pi \cdot 3"),
    (r"2.5 \times 10^{4}", "25000"),
    ("30^\\circ", r"45\%"),
    (r"\text{north}", "south"),
    (r"\pm 3", "u \\leq 3"),
    ("m(m+2)/4", r"\frac{m(m+2)}{4}"),
    ("|u|", r"\begin{pmatrix}1\\2\end{pmatrix}"),
)


def warm_up() -> None:
    """Import the libraries and fill the parser tables, so that no request has to wait for that."""
    for given, right in SHAPES:
        with contextlib.suppress(Exception):
            math_equal(given, right)
    gc.collect()
    # sympy's tables stay. Without this, a full collection over them takes a tenth of a second.
    gc.freeze()


def math_equal(given: str, right: str) -> float | None:
    """1.0 if two answers are mathematically equal, by math-verify; None if `right` has no value."""
    from math_verify import (
        ExprExtractionConfig,
        LatexExtractionConfig,
        StringExtractionConfig,
        parse,
        verify,
    )

    def read(text: str) -> list[Any]:
        text = text.strip()
        is_latex = any(sign in text for sign in ("$", r"\boxed", r"\(", r"\["))
        formula = text if is_latex else f"${text}$"
        formats = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
        # No timeout of math-verify (it accepts None): main() sets the alarm that it would use.
        options: Any = {"parsing_timeout": None}
        parsed = parse(formula, formats, **options) or parse(text, formats, **options)
        return parsed or parse(text, [StringExtractionConfig()], **options)

    gold = read(right)
    if not gold:
        return None
    answer = read(given)
    return float(bool(answer) and verify(gold, answer, timeout_seconds=None))


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
                text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique
            )
        except (ValueError, RecursionError):
            continue
        # With an empty registry a $ref never fetches anything.
        return 1.0 if Draft202012Validator(schema, registry=Registry()).is_valid(value) else 0.5
    return 0.0


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{number} is too large")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(value := dict(pairs)) != len(pairs):
        raise ValueError("a name occurs twice")
    return value


GRADERS: dict[str, Callable[..., float | None]] = {"math": math_equal, "schema": schema_score}

if __name__ == "__main__":
    serve(GRADERS, MAX_MEMORY, warm_up)
