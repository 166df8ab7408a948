"""What docs/records.md says is what the program does."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from grpo_core.cli import _parser
from grpo_core.records.formats import FORMATS
from grpo_core.records.formats.table import NAMES as ROLES
from grpo_core.records.record import from_plain, schema
from grpo_core.records.settings import NAMES, WORDS

PAGE = (Path(__file__).parents[2] / "docs" / "records.md").read_text("utf-8")
COMMANDS = re.findall(r"^python -m grpo_core (.+)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(command):
    arguments, rest = _parser().parse_known_args(shlex.split(command))
    assert rest == []
    assert getattr(arguments, "format", "") in ("", *FORMATS)


def test_every_format_has_its_row():
    rows = re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE)
    assert set(FORMATS) <= set(rows)
    assert len(COMMANDS) >= 10


def test_every_name_of_a_column_stands_in_the_page():
    for role, usual in ROLES.items():
        [row] = re.findall(rf"^\| `{role}` \| (.+) \|$", PAGE, re.MULTILINE)
        assert re.split(r", |: ", row)[: len(usual)] == list(usual), role


def test_every_mapped_setting_stands_in_the_page():
    named = PAGE[PAGE.index("## Settings") : PAGE.index("## Send")]
    mapped = {*NAMES, *(ours for words in WORDS.values() for w in words.values() for ours in w)}
    assert [name for name in sorted(mapped) if f"`{name}`" not in named] == []
    assert [name for name in WORDS if f"`{name}`" not in named] == []


def test_the_fields_of_the_schema_stand_in_the_page():
    sent = PAGE[PAGE.index("## Send") :]
    for record in schema().values():
        parts = [record, *record.get("$defs", {}).values()]
        fields = {name for part in parts for name in part.get("properties", {})}
        assert [name for name in sorted(fields) if f"`{name}`" not in sent] == []


def test_the_example_of_a_parcel_is_valid():
    [text] = re.findall(r"```json\n(.+?)```", PAGE, re.DOTALL)
    parcel = json.loads(text)
    assert from_plain("run", parcel["run"]).key == "mine-2026-11-28"
    step = from_plain("step", parcel["events"][0]["step"])
    assert [r.advantage for r in step.groups[0].rollouts] == [0.707, -0.707]
