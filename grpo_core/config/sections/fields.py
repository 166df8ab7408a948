"""What every section of the configuration is built from: the base class and two kinds of field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from grpo_core.config.options import Option


class Section(BaseModel):
    """Base of all sections: frozen, and without unknown fields."""

    # allow_inf_nan: a learning rate of nan passes every bound check otherwise.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def setting(
    default: Any, title: str, help: str, *, unit: str = "", hint: str = "", **bounds: Any
) -> Any:
    """A field with its label, help, unit, hint for error messages, and bounds."""
    return Field(
        default,
        title=title,
        description=help,
        json_schema_extra={"unit": unit, "hint": hint},
        **bounds,
    )


def choice(default: str, title: str, help: str, table: Mapping[str, Option]) -> Any:
    """A field whose value is a key of `table`, which has a sentence and a formula for each key."""
    field = setting(default, title, help)
    field.json_schema_extra["options"] = {name: option.help for name, option in table.items()}
    field.json_schema_extra["formulas"] = {name: option.formula for name, option in table.items()}
    return field
