"""The objective under the form."""

from __future__ import annotations

import pytest

from grpo_core.config import PRESETS, AlgorithmConfig, options
from ui.render.formula import objective_lines

DEFAULTS = AlgorithmConfig().model_dump()


def lines(**changed: object) -> list[str]:
    return objective_lines(DEFAULTS | changed, 48)


def test_the_default_reads_as_grpo_with_its_numbers():
    assert lines() == [
        "A = (r − mean)/(std + 1e-4)",
        "L = −min(w·A, clip(w, 0.8, 1.2)·A) + 0.02·KL",
        "mean over the step's tokens",
        "KL = e^d − d − 1, d = log ref/p",
    ]


@pytest.mark.parametrize(
    ("objective", "number"),
    [
        ("cispo", "min(w, 5)"),
        ("sapo", "τ = 1 if A > 0 else 1.05"),
        ("vespo", "(k, λ) = (2, 3)"),
        ("gmpo", "±0.4"),
        ("reinforce", "−A·log p"),
    ],
)
def test_the_chosen_objective_is_shown_with_its_numbers(objective, number):
    assert number in "\n".join(lines(objective=objective))


def test_active_terms_have_a_line_and_nonsense_a_question_mark():
    text = "\n".join(
        lines(
            entropy_target="0.2",
            kl_control="hard",
            updates_per_batch=3,
            grouping="task",
            clip_delta="4",
            clip_eps_low="x",
            kl_coef="",
        )
    )
    for part in (
        "β·H",
        "β grows while H ≤ 0.2",
        "KL > 0.05: a step back instead of an update",
        "3 updates",
        "over the task's completions",
        "min(w, 4)·A",
        "clip(w, ?, 1.2)",
        "?·KL",
    ):
        assert part in text, part
    for table, field in (
        (options.OBJECTIVES, "objective"),
        (options.ADVANTAGES, "advantage"),
        (options.AGGREGATIONS, "aggregation"),
    ):
        assert "?" in "\n".join(lines(**{field: ["no", table]}))


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_has_a_formula_without_a_gap(preset):
    assert "?" not in "\n".join(lines(**PRESETS[preset]))
