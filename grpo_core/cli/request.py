"""Reads arguments: a configuration from file, preset and `--set`; a run by the start of its id."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from types import NoneType
from typing import Any, get_args

from grpo_core.cli.terminal import program
from grpo_core.config import RunConfig, fields_by_name, nest, parse, read_json, with_preset
from grpo_core.errors import FieldProblem, InvalidConfig, NotFound, StudioError
from grpo_core.store import RunRow, Store


def build_config(file: str | None, preset: str | None, assignments: Sequence[str]) -> RunConfig:
    """The configuration of a file, changed by a preset, changed by `--set`.

    Raises InvalidConfig, or StudioError if a file cannot be read.
    """
    flat = _config_file(file) if file else {}
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
    """`section.field=value` -> name and value. A value that is not JSON is text.

    Nothing after the = is null, where a field may be empty.
    """
    name, equals, value = text.partition("=")
    if not equals:
        hint = "Write section.field=value, e.g. train.steps=60."
        raise InvalidConfig([FieldProblem("--set", text, "there is no = in it", hint)])
    known = fields_by_name().get(name)
    if name == "rubric.path" or (known is not None and known.annotation is str):
        return name, value
    if not value and known is not None and NoneType in get_args(known.annotation):
        return name, None
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _config_file(path: str) -> dict[str, Any]:
    """Dotted name -> value. The file holds one object for each section."""
    data = read_json(path)
    if not isinstance(data, dict) or not all(isinstance(s, dict) for s in data.values()):
        raise StudioError(
            f"config file {path!r} is not an object of sections. "
            f"Export one with: {program()} export RUN --format config"
        )
    return {
        f"{section}.{name}": value
        for section, values in data.items()
        for name, value in values.items()
    }


def _rubric_file(path: str) -> dict[str, Any]:
    """A rubric as the page exports it: {"name": …, "criteria": […]}, or only the list."""
    data = read_json(path, "rubric")
    if isinstance(data, list):
        data = {"criteria": data}
    if not isinstance(data, dict):
        raise StudioError(
            f"rubric file {path!r} holds no rubric. Write "
            '{"name": …, "criteria": [{"name": …, "check": …, "weight": …}]}.'
        )
    return {f"rubric.{k}": v for k, v in {"name": "custom", **data}.items()}


def find_run(store: Store, run: str) -> RunRow:
    """The run with this id, the only run whose id starts so, or the newest run for "last".

    Raises NotFound.
    """
    rows = store.runs()
    if run == "last":
        matches = rows[:1]
    else:
        matches = [r for r in rows if r.id == run] or [r for r in rows if r.id.startswith(run)]
    if len(matches) != 1:
        problem = f"there is no run {run!r}"
        if matches:
            problem = f"{len(matches)} runs begin with {run!r}"
        raise NotFound(
            f"{problem} in {store.path}. List them with: {program()} runs --db {store.path}"
        )
    return matches[0]


def count(text: str) -> int:
    """The type of an argument that is a whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
