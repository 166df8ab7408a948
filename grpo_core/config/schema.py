"""RunConfig: all settings of a run.

Each field has one dotted name, the same in the form, `--set`, JSON and help.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator
from pydantic_core import PydanticCustomError

from grpo_core.config.conflicts import conflicts
from grpo_core.config.sections import Section, Sections
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError


class RunConfig(Sections):
    """All settings of a run.

    Validation here covers values and their combinations. Models, tasks and rubrics check names.
    """

    @model_validator(mode="after")
    def _no_conflicts(self) -> RunConfig:
        if problems := conflicts(self):
            raise PydanticCustomError(
                "studio", "{text}", {"text": "; ".join(map(str, problems)), "problems": problems}
            )
        return self


def parse(data: Mapping[str, Any]) -> RunConfig:
    """Nested plain data -> RunConfig. Raises InvalidConfig with every problem and its field."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        problems: list[FieldProblem] = []
        for found in error.errors(include_url=False):
            if found["type"] == "studio":
                problems += found.get("ctx", {})["problems"]
            else:
                problems.append(_problem(found))
        raise InvalidConfig(problems) from None


def _problem(error: Mapping[str, Any]) -> FieldProblem:
    """An error of pydantic in our words, with the hint of its field."""
    dotted = ".".join(map(str, error["loc"])) or "config"
    known = fields_by_name()
    if error["type"] == "extra_forbidden":
        return FieldProblem(
            dotted, error["input"], "there is no such field", _fields_like(dotted, [*known])
        )
    message = _PLAIN.get(error["type"]) or _plain(error["msg"])
    extra = known[dotted].json_schema_extra if dotted in known else None
    return FieldProblem(dotted, error["input"], message, (extra or {}).get("hint", ""))


def _fields_like(dotted: str, known: list[str]) -> str:
    """Which fields may have been meant: the same name in another section, or a similar one."""
    section, _, name = dotted.rpartition(".")
    like = [n for n in known if n.rpartition(".")[2] == name]
    if like or (like := get_close_matches(dotted, known, n=3, cutoff=0.8)):
        return f"Did you mean {' or '.join(like)}?"
    names = [n for n in known if n.rpartition(".")[0] == section]
    return f"Known: {', '.join(names or sorted({n.split('.')[0] for n in known}))}."


# Messages of pydantic that are not plain English, by their type.
_PLAIN = {
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "has too many digits",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_pattern_mismatch": "may contain only letters, digits, _ . and -",
    "missing": "is missing",
    "model_type": "must be an object with the fields of this section",
}


def _plain(message: str) -> str:
    """A message of pydantic, as the end of a sentence that begins with the field's name."""
    message = message.removeprefix("Input ").removeprefix("Value error, ")
    message = message.removeprefix("String ").removeprefix("Tuple ")
    for theirs, ours in (
        ("should be greater than or equal to", "must be at least"),
        ("should be greater than", "must be more than"),
        ("should be less than or equal to", "must be at most"),
        ("should be less than", "must be less than"),
        ("should be", "must be"),
        ("should have", "must have"),
        (" after validation", ""),
    ):
        message = message.replace(theirs, ours)
    return message.rstrip(".")


def fields_by_name() -> dict[str, Any]:
    """Dotted name -> pydantic FieldInfo, in the order of the form."""
    fields = {}
    for section_name, section in RunConfig.model_fields.items():
        kind = section.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, Section)
        fields |= {f"{section_name}.{name}": info for name, info in kind.model_fields.items()}
    return fields


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted name -> value, JSON types only."""
    return dict(_leaves(config.model_dump(mode="json")))


def _leaves(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, values in data.items():
        for name, value in values.items():
            yield f"{section}.{name}", value


def nest(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Dotted names -> nested plain data, the inverse of `flatten`."""
    data: dict[str, dict[str, Any]] = {}
    for dotted, value in flat.items():
        section, dot, name = dotted.partition(".")
        if not dot or not name:
            hint = "Use section.field, e.g. train.steps."
            raise InvalidConfig([FieldProblem(dotted, value, "there is no such field", hint)])
        data.setdefault(section, {})[name] = value
    return data


def with_changes(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The configuration with these dotted fields changed. Raises InvalidConfig."""
    return parse(nest({**flatten(config), **changes})) if changes else config


def read_json(path: str | Path, what: str = "config") -> Any:
    """The JSON in a file. Raises StudioError with one line that says why it cannot be read.

    what: the kind of file, for that line.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise StudioError(f"{what} file {str(path)!r} does not exist. Check the path.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise StudioError(
            f"{what} file {str(path)!r} cannot be read as JSON: {error}. "
            "Correct it or export a new one."
        ) from None
