from __future__ import annotations

import json
from pathlib import Path

import pytest

from grpo_core.config import PRESETS, fields_by_name, flatten, nest, parse, with_preset
from grpo_core.errors import InvalidConfig


def problems(settings: dict[str, object]) -> dict[str, str]:
    with pytest.raises(InvalidConfig) as caught:
        parse(nest(settings))
    return {p.field: str(p) for p in caught.value.problems}


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("train.group_size", 1, "at least 2"),
        ("train.steps", 0, "at least 1"),
        ("train.learning_rate", float("nan"), "finite"),
        ("train.temperature", 0, "more than 0"),
        ("algorithm.kl_coef", -0.1, "at least 0"),
        ("train.seed", 1.5, "whole number"),
        ("model.dtype", "int3", "'auto', 'float32' or 'bfloat16'"),
    ],
)
def test_a_wrong_value_is_reported_with_field_value_and_bound(field, value, says):
    message = problems({field: value})[field]
    assert field in message
    assert repr(value) in message
    assert says in message


def test_every_wrong_field_is_reported_at_once():
    assert set(problems({"train.steps": 0, "train.group_size": 1})) == {
        "train.steps",
        "train.group_size",
    }


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ("train.stepz", "Did you mean train.steps?"),
        ("algorithm.temperature", "Did you mean train.temperature?"),
        ("train.xyzzy", "Known: train.steps, "),
    ],
)
def test_an_unknown_field_is_refused_and_the_likely_ones_are_named(field, says):
    assert says in problems({field: 3})[field]


@pytest.mark.parametrize(
    ("weights", "says"), [((0, 0), "all weights are 0"), ((1, -1), "at least 0")]
)
def test_weights_that_cannot_make_a_reward_are_refused(weights, says):
    criteria = [{"name": f"c{i}", "check": "language", "weight": w} for i, w in enumerate(weights)]
    assert any(says in m for m in problems({"rubric.criteria": criteria}).values())


def test_two_criteria_of_one_name_are_refused():
    criteria = [{"name": "a", "check": "language", "weight": 1}] * 2
    assert "share a name" in problems({"rubric.criteria": criteria})["rubric.criteria"]


def test_a_configuration_survives_flattening_and_nesting():
    config = parse(
        {
            "train": {"steps": 7},
            "rubric": {
                "criteria": [
                    {"name": "a", "check": "length", "weight": 1, "params": {"max_tokens": 3}}
                ]
            },
        }
    )
    assert parse(nest(flatten(config))) == config


def test_presets_set_existing_fields_and_a_persons_values_win():
    for name, values in PRESETS.items():
        assert {f"algorithm.{k}" for k in values} <= set(fields_by_name())
        assert parse(nest(with_preset({}, name))).algorithm.preset == name
    assert parse(nest(with_preset({"algorithm.kl_coef": 0.5}, "Dr. GRPO"))).algorithm.kl_coef == 0.5


def test_every_field_has_a_title_and_one_line_of_help():
    for name, info in fields_by_name().items():
        assert info.title, name
        assert info.description, name
        assert "\n" not in info.description, name


@pytest.mark.parametrize(
    ("settings", "field", "says"),
    [
        (
            {"algorithm.ratio_level": "sequence", "algorithm.objective": "vespo"},
            "algorithm.ratio_level",
            "its own ratio over the sequence",
        ),
        ({"algorithm.clip_delta": 1.1}, "algorithm.clip_delta", "inside the clip range"),
        (
            {"algorithm.clip_delta": 3, "algorithm.objective": "cispo"},
            "algorithm.clip_delta",
            "only the objective clip",
        ),
        (
            {"algorithm.kl_control": "adaptive", "algorithm.kl_coef": 0},
            "algorithm.kl_control",
            "stays 0",
        ),
        (
            {"algorithm.kl_ratio_corrected": True, "algorithm.kl_estimator": "k1"},
            "algorithm.kl_ratio_corrected",
            "k3 only",
        ),
        (
            {"algorithm.kl_ratio_corrected": True, "algorithm.kl_coef": 0},
            "algorithm.kl_ratio_corrected",
            "no KL term",
        ),
        (
            {"algorithm.measure_kl": False},
            "algorithm.measure_kl",
            "a KL coefficient above 0",
        ),  # .02 by default
        (
            {"algorithm.measure_kl": False, "algorithm.kl_coef": 0, "algorithm.kl_control": "hard"},
            "algorithm.measure_kl",
            "depends on the measured KL",
        ),
        (
            {"algorithm.measure_kl": False, "algorithm.kl_coef": 0, "algorithm.ref_every": 2},
            "algorithm.measure_kl",
            "no reference to move",
        ),
        (
            {"algorithm.off_policy_threshold": 0.1},
            "algorithm.off_policy_threshold",
            "none is ever dropped",
        ),
        (
            {"algorithm.dynamic_sampling": 1, "algorithm.grouping": "batch"},
            "algorithm.dynamic_sampling",
            "can still have advantages other than 0",
        ),
        (
            {"algorithm.entropy_target": 0.2, "algorithm.entropy_coef": 2},
            "algorithm.entropy_coef",
            "above its largest value",
        ),
        (
            {"rubric.clip_low": 1, "rubric.clip_high": 1},
            "rubric.clip_low",
            "all rewards would be equal",
        ),
        (
            {"rubric.scale": True, "algorithm.advantage": "rank"},
            "rubric.scale",
            "does not depend on the scale",
        ),
        (
            {"rubric.clip_high": 1, "algorithm.advantage": "per_criterion"},
            "rubric.clip_high",
            "per_criterion does not use",
        ),
    ],
)
def test_senseless_combinations_are_refused_with_field_value_reason_and_hint(settings, field, says):
    message = problems(settings)[field]
    assert says in message
    assert message.startswith(f"{field} = ")
    assert message.endswith(".")


def test_several_combinations_that_make_no_sense_are_reported_at_once():
    assert {"algorithm.clip_delta", "algorithm.off_policy_threshold"} <= set(
        problems({"algorithm.clip_delta": 1.1, "algorithm.off_policy_threshold": 0.1})
    )


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("DAPO", {"clip_eps_high": 0.28, "kl_coef": 0.0, "dynamic_sampling": 2}),
        ("GSPO", {"ratio_level": "sequence", "aggregation": "sequence_mean"}),
        ("CISPO", {"objective": "cispo", "cispo_cap": 5.0}),
        ("RLOO", {"advantage": "leave_one_out", "objective": "reinforce"}),
        ("Dr. GRPO", {"advantage": "group_mean", "aggregation": "constant"}),
        ("GRPO", {}),
    ],
)
def test_a_preset_changes_what_its_paper_changes(name, values):
    algorithm = parse(nest(with_preset({}, name))).algorithm
    assert {k: getattr(algorithm, k) for k in values} == values


def test_the_defaults_are_the_grpo_preset():
    assert parse(nest(with_preset({}, "GRPO"))) == parse({})


def test_a_configuration_exported_by_version_0_1_loads():
    exported = json.loads((Path(__file__).parent / "exported-0.1.0.json").read_text("utf-8"))
    loaded = parse(exported).model_dump(mode="json")
    for section, values in exported.items():
        assert {name: loaded[section][name] for name in values} == values
