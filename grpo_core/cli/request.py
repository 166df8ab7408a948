"""What was asked on the command line, read and refused: a configuration from file, preset and --set; a run by the beginning of its id."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from grpo_core.config import RunConfig, fields_by_name, nest, parse, read_json, with_preset
from grpo_core.errors import FieldProblem, InvalidConfig, NotFound, StudioError
from grpo_core.store import RunRow, Store


def build_config(file: str | None, preset: str | None, assignments: Sequence[str]) -> RunConfig:
    """File, then preset, then `--set`: what is said later and more precisely wins. Raises InvalidConfig."""
    flat: dict[str, Any] = {}
    if file:
        data = read_json(file)
        if not isinstance(data, dict) or not all(
            isinstance(section, dict) for section in data.values()
        ):
            raise StudioError(
                f"config file {file!r} is not an object of sections. Export one with: python -m grpo_core export RUN --format config"
            )
        flat = {
            f"{section}.{name}": value
            for section, values in data.items()
            for name, value in values.items()
        }
    if preset:
        flat |= with_preset({}, preset)
    given = dict(map(assignment, assignments))
    if "algorithm.preset" in given:
        flat |= with_preset({}, given["algorithm.preset"])
    flat |= given
    if "rubric.path" in flat:
        flat |= _rubric_file(flat.pop("rubric.path"))
    return parse(nest(flat))


def assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidConfig(
            [
                FieldProblem(
                    "--set",
                    text,
                    "there is no = in it",
                    "Write section.field=value, e.g. train.steps=60.",
                )
            ]
        )
    known = fields_by_name().get(name)
    if name == "rubric.path" or (known is not None and known.annotation is str):
        return name, value
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _rubric_file(path: str) -> dict[str, Any]:
    """A rubric as exported by the page: {"name": …, "criteria": […]}, or the bare list of criteria."""
    data = read_json(path, "rubric")
    if isinstance(data, list):
        data = {"criteria": data}
    if not isinstance(data, dict):
        raise StudioError(
            f'rubric file {path!r} holds no rubric. Write {{"name": …, "criteria": [{{"name": …, "check": …, "weight": …}}]}}.'
        )
    return {f"rubric.{k}": v for k, v in {"name": "custom", **data}.items()}


def find_run(store: Store, run: str) -> RunRow:
    """The run of that id, of the only id that begins so, or the latest for "last"."""
    rows = store.runs()
    found = (
        rows[:1]
        if run == "last"
        else [r for r in rows if r.id == run] or [r for r in rows if r.id.startswith(run)]
    )
    if len(found) != 1:
        problem = f"{len(found)} runs begin with {run!r}" if found else f"there is no run {run!r}"
        raise NotFound(
            f"{problem} in {store.path}. List them with: python -m grpo_core runs --db {store.path}"
        )
    return found[0]


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)
