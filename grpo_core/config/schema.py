"""RunConfig: everything that decides a run. One dotted name per field, the same in form, `--set`, JSON and help."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator
from pydantic_core import PydanticCustomError

from grpo_core.config.conflicts import conflicts
from grpo_core.config.sections import Sections
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError


class RunConfig(Sections):
    """A whole run. Validation here is about values; names of models, tasks and rubrics are checked where they live."""

    @model_validator(mode="after")
    def _makes_sense(self) -> RunConfig:
        if problems := conflicts(self):
            raise PydanticCustomError(
                "studio", "{text}", {"text": "; ".join(map(str, problems)), "problems": problems}
            )
        return self


def parse(data: Mapping[str, Any]) -> RunConfig:
    """Nested plain data -> RunConfig. Raises InvalidConfig with every problem found, each with its dotted field."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise InvalidConfig(
            [
                p
                for e in found
                for p in (e["ctx"]["problems"] if e["type"] == "studio" else [_explain(e)])
            ]
        ) from None


def _explain(error: Mapping[str, Any]) -> FieldProblem:
    dotted = ".".join(map(str, error["loc"])) or "config"
    hint = ""
    known = fields_by_name()
    if error["type"] == "extra_forbidden":
        section = dotted.rpartition(".")[0]
        siblings = [n for n in known if n.rpartition(".")[0] == section] or sorted(
            {n.split(".")[0] for n in known}
        )
        return FieldProblem(
            dotted, error["input"], "there is no such field", f"Known: {', '.join(siblings)}."
        )
    if dotted in known:
        hint = (known[dotted].json_schema_extra or {}).get("hint", "")
    message = error["msg"].removeprefix("Input ").removeprefix("Value error, ")
    message = message.replace("should be greater than or equal to", "must be at least").replace(
        "should be less than or equal to", "must be at most"
    )
    return FieldProblem(
        dotted, error["input"], message.replace("should be", "must be").rstrip("."), hint
    )


def fields_by_name() -> dict[str, Any]:
    """Dotted name -> pydantic FieldInfo, in the order of the form."""
    return {
        f"{s}.{n}": info
        for s, sec in RunConfig.model_fields.items()
        for n, info in sec.annotation.model_fields.items()
    }


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
            raise InvalidConfig(
                [
                    FieldProblem(
                        dotted, value, "this is no field", "Use section.field, e.g. train.steps."
                    )
                ]
            )
        data.setdefault(section, {})[name] = value
    return data


def with_changes(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The configuration with these dotted fields changed. Raises InvalidConfig."""
    return parse(nest(flatten(config) | changes)) if changes else config


def read_json(path: str | Path, what: str = "config") -> Any:
    """The JSON in a file, or one line saying why not."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise StudioError(f"{what} file {str(path)!r} does not exist. Check the path.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise StudioError(
            f"{what} file {str(path)!r} cannot be read as JSON: {error}. Mend it or export a new one."
        ) from None
