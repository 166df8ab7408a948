"""Which settings of a run differ from those that its preset gives. Rows -> escaped HTML; pure."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from grpo_core.config import PRESETS, RunConfig, default_learning_rate, fields_by_name
from grpo_core.store import RunRow
from ui.render.text import NONE, esc, is_number, plain

SHOWN = 2  # chips in a row of the table; the others are in a tooltip
FIELDS = fields_by_name()
# Sections of RunConfig, the most telling first: only the first few changes are shown as chips.
SECTIONS = ("algorithm", "train", "task", "model", "rubric")
# They have columns of their own.
IN_COLUMNS = {
    "model.name",
    "task.name",
    "task.path",
    "rubric.name",
    "rubric.criteria",
    "algorithm.preset",
    "train.steps",
}


@dataclass(frozen=True, slots=True)
class Change:
    """A setting of a run, and the value that its preset or the default gives."""

    field: str
    value: Any
    usual: Any

    @property
    def short(self) -> str:
        """kl 0, group size 16, seed 3."""
        name = self.field.rpartition(".")[2].removesuffix("_coef").replace("_", " ")
        return f"{name} {setting(self.value)}"

    @property
    def whole(self) -> str:
        title = FIELDS[self.field].title if self.field in FIELDS else self.field
        return f"{title}: {setting(self.value)}, usually {setting(self.usual)}"


def changed(run: RunRow) -> list[Change]:
    """The changed settings of a run, whose configuration may be of another version."""
    preset = (run.config.get("algorithm") or {}).get("preset")
    usual = {**_usual(preset if isinstance(preset, str) else ""), **_chosen_by_size(run)}
    found = []
    for section in SECTIONS:
        values = run.config.get(section)
        for name, value in values.items() if isinstance(values, Mapping) else ():
            field = f"{section}.{name}"
            if field not in IN_COLUMNS and field in usual and value not in (usual[field], None):
                found.append(Change(field, value, usual[field]))
    return sorted(found, key=lambda change: change.field == "train.seed")  # the seed last


def _chosen_by_size(run: RunRow) -> dict[str, Any]:
    """The learning rate that an empty field stands for; it is recorded once the model is loaded."""
    size = (run.env or {}).get("parameters")
    if not is_number(size):
        return {}
    lora = bool((run.config.get("model") or {}).get("lora_rank"))
    return {"train.learning_rate": default_learning_rate(int(size), lora)}


@lru_cache(maxsize=16)
def _usual(preset: str) -> dict[str, Any]:
    """Dotted field -> its value with this preset and nothing else chosen."""
    sections = json.loads(RunConfig().model_dump_json())
    sections["algorithm"] |= PRESETS.get(preset, {})
    return {f"{section}.{name}": v for section in SECTIONS for name, v in sections[section].items()}


def chips(run: RunRow, named: Container[str] | None = None) -> str:
    """The first few changed settings as chips, and how many more there are.

    named: fields that another trainer's settings name; the rest is not known.
    """
    changes = [c for c in changed(run) if named is None or c.field in named]
    out = "".join(_chip(c.short, c.whole) for c in changes[:SHOWN])
    if rest := changes[SHOWN:]:
        out += _chip(f"+{len(rest)}", "\n".join(c.whole for c in rest))
    return f'<span class="differs">{out}</span>' if out else NONE


def _chip(short: str, whole: str) -> str:
    return f'<span class="tag" title="{esc(whole)}">{esc(short)}</span>'


def setting(value: Any) -> str:
    """A setting's value; criteria as name × weight."""
    if isinstance(value, list) and all(isinstance(v, Mapping) and "name" in v for v in value):
        return ", ".join(f"{v['name']} ×{setting(v.get('weight'))}" for v in value)
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return plain(value)
    return NONE if value is None or value == "" else str(value)
