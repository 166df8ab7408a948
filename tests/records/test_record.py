"""Records as JSON, and what is said about wrong ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_core.errors import InvalidConfig
from grpo_core.records import record
from grpo_core.records.record import SourceGroup, SourceRollout, SourceStep, from_plain, to_plain
from grpo_core.types import Turn, TurnRole

STEP = SourceStep(
    step=3,
    part=1,
    groups=[
        SourceGroup(
            prompt="2+2=",
            before=[{"role": "system", "content": "Be brief."}],
            rollouts=[
                SourceRollout(
                    text="4",
                    scores={"correct": 1.0, "format": None},
                    token_ids=[7, 8],
                    action_mask=[True, False],
                    turns=(Turn(TurnRole.ACTION, "4", 0, 1),),
                )
            ],
        )
    ],
    metrics={"loss": 0.5},
    pieces={7: "4", 8: b"\xe2\x82"},
)


def test_a_step_survives_the_way_through_json():
    assert from_plain("step", json.loads(json.dumps(to_plain(STEP)))) == STEP


def test_the_schema_beside_the_code_is_the_one_in_force():
    file = Path(record.__file__).with_name("schema.json")
    stored, in_force = json.loads(file.read_text("utf-8")), record.schema()
    for kind, schema in in_force.items():
        parts = {"": schema, **schema.get("$defs", {})}
        kept = {"": stored[kind], **stored[kind].get("$defs", {})}
        assert {name: {*part.get("properties", {})} for name, part in parts.items()} == {
            name: {*part.get("properties", {})} for name, part in kept.items()
        }


@pytest.mark.parametrize(
    ("kind", "data", "place"),
    [
        ("step", {"step": "one"}, "step.step"),
        ("step", {}, "step.step"),
        (
            "step",
            {"step": 1, "groups": [{"prompt": "p", "rollouts": [{"text": "t", "reward": "good"}]}]},
            "step.groups.0.rollouts.0.reward",
        ),
        ("step", {"step": 1, "surprise": 2}, "step.surprise"),
        ("run", {"trainer": "TRL", "format": "trl", "key": 5, "name": "n"}, "run.key"),
        ("run", "text", "run"),
        ("game", {}, "kind"),
    ],
)
def test_a_wrong_place_is_named(kind, data, place):
    with pytest.raises(InvalidConfig) as error:
        from_plain(kind, data)
    assert error.value.problems[0].field == place
