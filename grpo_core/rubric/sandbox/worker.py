"""The child in which graders run that could hang: mathematical equivalence and JSON schemas. Started as a module; knows no secrets, needs no network."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

MAX_MEMORY = 3 << 30


class TooLate(BaseException):
    """The time of one question is over. No Exception: libraries catch those, and would make a wrong answer of it."""


def main() -> None:
    """Answer one JSON line with one JSON line, for ever."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no answer
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, _late)
    warm_up()
    print("{}", file=out, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(_answer(question)), file=out, flush=True)


# One of each shape of answer: the parser learns its grammar's decisions from what it meets (ANTLR's tables are filled lazily), a tenth of a second each.
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
    """Imports, parser tables and first garbage, before the first question: seconds that no question shall pay for."""
    for given, right in SHAPES:
        with contextlib.suppress(Exception):
            math_equal(given, right)
    gc.collect()
    gc.freeze()  # what is there now stays: a full collection over sympy's tables costs a question a tenth of a second


def _late(*_: Any) -> None:
    raise TooLate


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    # The alarm ends what Python itself can interrupt; the parent kills the rest, such as one huge power, a second later.
    signal.setitimer(signal.ITIMER_REAL, question["seconds"])
    try:
        return {"score": DOES[question["do"]](*question["arguments"])}
    except TooLate:
        return {"null": f"it took longer than {question['seconds']:g} s"}
    except MemoryError:
        return {"null": "it needed too much memory"}
    except Exception as error:  # whatever a parser makes of hostile text: no score, and the reason
        return {"null": f"{type(error).__name__}: {str(error)[:200]}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def math_equal(given: str, right: str) -> float | None:
    """1.0 if two answers are the same mathematics, by math-verify; None when the right one cannot be read at all."""
    from math_verify import (
        ExprExtractionConfig,
        LatexExtractionConfig,
        StringExtractionConfig,
        parse,
        verify,
    )

    def read(text: str) -> list[Any]:
        text = text.strip()
        dressed = (
            text
            if "$" in text or r"\boxed" in text or r"\(" in text or r"\[" in text
            else f"${text}$"
        )
        ways = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
        found = parse(dressed, ways, parsing_timeout=None) or parse(
            text, ways, parsing_timeout=None
        )
        return found or parse(text, [StringExtractionConfig()], parsing_timeout=None)

    gold = read(right)
    if not gold:
        return None
    found = read(given)
    return float(bool(found) and verify(gold, found, timeout_seconds=None))


def schema_score(text: str, schema: dict[str, Any]) -> float:
    """1.0 for JSON that keeps the schema, 0.5 for JSON that breaks it, 0.0 for no JSON."""
    from jsonschema import Draft202012Validator
    from referencing import Registry

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return 0.0
    # An empty registry: a schema's $ref never fetches anything.
    return 1.0 if Draft202012Validator(schema, registry=Registry()).is_valid(value) else 0.5


DOES: dict[str, Callable[..., float | None]] = {"math": math_equal, "schema": schema_score}

if __name__ == "__main__":
    main()
