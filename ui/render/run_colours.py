"""One colour for each run, the same on every chart and table of the page. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

NUM_COLOURS = 8  # --run-1 … --run-8 in theme.css


def run_colours(run_ids: Sequence[str]) -> dict[str, str]:
    """Run id -> its colour, as the name of a CSS variable.

    The id chooses the colour, and takes the next free one if a run started shortly before has it.
    So NUM_COLOURS runs in a row never share a colour, and a new run changes none of the others.
    run_ids: oldest first.
    """
    numbers: dict[str, int] = {}
    for run_id in run_ids:
        taken = set(list(numbers.values())[-NUM_COLOURS + 1 :])
        number = blake2b(run_id.encode("utf-8", "replace"), digest_size=4).digest()[0] % NUM_COLOURS
        while number in taken:
            number = (number + 1) % NUM_COLOURS
        numbers[run_id] = number
    return {run_id: f"--run-{number + 1}" for run_id, number in numbers.items()}
