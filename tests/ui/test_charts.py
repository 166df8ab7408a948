"""Rows -> figures: the numbers drawn are the numbers recorded."""

from __future__ import annotations

import json
import re

import pytest
from recorded import HOSTILE

from grpo_core.store import VerdictCounts
from grpo_core.types import STEP_METRICS
from ui.render import charts
from ui.render.charts import Axis, Curves, View, figure, smoothed, thinking
from ui.render.run_colours import NUM_COLOURS, run_colours

STEPS = [
    {
        **dict.fromkeys(STEP_METRICS),
        "step": s,
        "reward_mean": r,
        "reward_std": 0.5,
        "kl": 0.01 * s,
        "kl_coef": 0.02,
        "loss": -0.1 * s,
        "tokens": 100,
        "step_seconds": 2.0,
        "completion_tokens_mean": 10.0,
        "entropy": 0.5,
        "clip_low_frac": 0.1,
        "clip_high_frac": 0.2,
        "grad_norm": 1.0,
        "turns_mean": 1.5,
        "tool_calls_mean": 0.5,
        "tool_error_frac": 0.1,
        "observation_frac": 0.2,
    }
    for s, r in ((1, 1.0), (2, 2.0), (3, 3.0))
]
METRICS = {
    "score/accuracy": [(1, 0.1), (2, None), (3, 0.3)],
    "heldout/accuracy": [(0, 0.4), (3, 0.5)],
    "heldout/accuracy_low": [(0, 0.3), (3, 0.45)],
    "heldout/accuracy_high": [(0, 0.55), (3, 0.6)],
}
RUN = Curves("run-1", "first", STEPS, METRICS)
OTHER = Curves("run-2", "second", STEPS[:2], {})


def lines(drawn):
    return [t for t in drawn["traces"] if t.get("hoverinfo") != "skip" and t.get("yaxis") != "y2"]


def test_the_kl_curve_says_whether_kl_is_trained_measured_or_neither():
    def note(**changes):
        return figure("kl", [Curves("r", "n", [{**row, **changes} for row in STEPS], {})], View())[
            "note"
        ]

    assert note().startswith("KL coefficient 0.02. ")
    assert note(kl_coef=0.0).startswith("KL coefficient 0: measured, not trained on. ")
    assert note(kl_coef=0.0, kl=None).startswith("Not measured: measure_kl is off. ")


def test_captions_of_a_comparison_speak_of_each_run():
    free = Curves("r", "n", [{**row, "kl_coef": 0.0} for row in STEPS], METRICS)
    assert figure("kl", [RUN, free], View())["note"].startswith("KL coefficient 0.02 and 0. ")
    note = figure("reward", [RUN, free], View())["note"]
    assert note.startswith("Held-out accuracy 40 % → 50 %. ")  # the same for both
    once = Curves("r2", "m", STEPS, {"heldout/accuracy": [(0, 0.2)]})
    note = figure("reward", [RUN, once], View())["note"]
    assert note.startswith("Held-out accuracy 40 % → 50 % and 20 %. ")
    for name in ("criteria", "detail"):
        view = View(detail="clip")
        assert figure(name, [RUN, free], view)["note"].startswith("Only “first”. "), name


def test_a_run_has_its_own_colour_in_every_chart():
    mine = Curves("a", "a", STEPS, METRICS, colour="--run-5")
    for name in ("reward", "kl", "loss", "heldout"):
        for runs in ([mine], [RUN, mine]):
            own = [t for t in figure(name, runs, View())["traces"] if t.get("legendgroup") == "a"]
            assert {t["line"]["color"] for t in own if t.get("yaxis") != "y2"} == {"--run-5"}, name
    legend = figure("kl", [RUN, mine], View())["legend"]
    assert [(e["run"], e["value"]) for e in legend] == [("run-1", "0.0300"), ("a", "0.0300")]


def test_the_legend_of_lengths_has_the_colour_of_the_line():
    drawn = thinking.lengths([Curves("run-1", "first", STEPS, METRICS, colour="--run-2")])
    assert drawn["legend"][0]["colour"] == drawn["traces"][0]["line"]["color"] == "--run-2"


def test_runs_in_a_row_never_share_a_colour_and_keep_theirs():
    ids = [f"2026-{i}" for i in range(60)]
    colours = run_colours(ids)
    for i in range(len(ids) - NUM_COLOURS):
        assert len({colours[r] for r in ids[i : i + NUM_COLOURS]}) == NUM_COLOURS
    assert run_colours(ids[:20]) == {r: colours[r] for r in ids[:20]}


def test_every_chart_explains_its_metric():
    for name in charts.FIGURES:
        assert len(figure(name, [RUN], View())["definition"]["help"]) > 20, name
    assert figure("kl", [RUN], View())["definition"]["unit"] == "nats/token"


def test_a_chart_without_values_says_whether_a_step_was_taken():
    no_calls = Curves("run-1", "first", [{**STEPS[0], "tool_error_frac": None}], {})
    assert figure("tool_error_frac", [no_calls], View())["empty"] == "Nothing to measure so far"
    before = Curves("run-1", "first", [], {})
    assert figure("tool_error_frac", [before], View())["empty"] == "Appears after the first step"


def test_long_run_names_are_shortened_in_the_chart_and_whole_on_hover():
    drawn = figure("kl", [RUN, Curves("r", "long " * 40, STEPS, {})], View())
    assert len(lines(drawn)[1]["name"]) <= 28
    assert lines(drawn)[1]["meta"] == drawn["legend"][1]["name"] == "long " * 40


def test_verdicts_of_a_single_step_are_bars():
    drawn = charts.verdicts([VerdictCounts(1, 1, {"healthy": 3, "phantom": 1})], "r")
    assert [(t["type"], t["x"], t["y"]) for t in drawn["traces"]] == [
        ("bar", [1], [0.75]),
        ("bar", [1], [0.25]),
    ]
    assert drawn["layout"]["barmode"] == "stack"
    assert "still push" in drawn["legend"][1]["title"]  # what “phantom” means


@pytest.mark.parametrize("name", charts.FIGURES)
@pytest.mark.parametrize(
    "runs",
    [[], [Curves("r", "n", [], {})], [RUN], [RUN, OTHER]],
    ids=["nothing", "empty run", "one run", "two runs"],
)
@pytest.mark.parametrize(
    "view", [View(), View("time", 0.9, True, "clip"), View("tokens", 0.5, False, "gradient")]
)
def test_every_curve_can_be_drawn_for_zero_or_several_runs(name, runs, view):
    drawn = figure(name, runs, view)
    json.dumps(drawn, allow_nan=False)  # what a browser cannot parse never leaves the server
    assert drawn["title"]
    assert bool(drawn["traces"]) == any(r.steps or r.metrics for r in runs)


@pytest.mark.parametrize("name", charts.FIGURES)
def test_no_figure_has_a_colour_of_its_own(name):
    drawn = json.dumps(figure(name, [RUN, OTHER], View(smoothing=0.5)))
    assert not re.search(r"#[0-9a-f]{3,8}\b|rgba?\(|hsl", drawn)


def test_the_band_is_the_mean_plus_and_minus_the_spread():
    low, high = (
        t for t in figure("reward", [RUN], View())["traces"] if t.get("hoverinfo") == "skip"
    )
    assert low["y"] == [0.5, 1.5, 2.5]  # 1, 2, 3 minus 0.5
    assert high["y"] == [1.5, 2.5, 3.5]


def test_held_out_accuracy_has_its_interval_as_error_bars():
    held = next(t for t in figure("reward", [RUN], View())["traces"] if t.get("yaxis") == "y2")
    assert held["y"] == [0.4, 0.5]
    assert held["error_y"]["array"] == pytest.approx([0.15, 0.1])  # .55 - .4, .6 - .5
    assert held["error_y"]["arrayminus"] == pytest.approx([0.1, 0.05])  # .4 - .3, .5 - .45
    assert "40 % → 50 %" in figure("reward", [RUN], View())["note"]


def test_time_and_token_axes_add_up_and_start_at_zero():
    # 2 s and 100 tokens a step; the evaluation at step 0 is at 0
    assert [Axis(STEPS, "time").at(s) for s in (0, 1, 2, 3)] == [0, 2, 4, 6]
    assert [Axis(STEPS, "tokens").at(s) for s in (0, 1, 2, 3)] == [0, 100, 200, 300]


def test_a_thinned_row_stands_for_the_steps_since_the_row_before_it():
    # rows 1, 5, 9 of 2 s each: 1·2, + 4·2, + 4·2
    rows = [{"step": s, "step_seconds": 2.0} for s in (1, 5, 9)]
    assert [Axis(rows, "time").at(s) for s in (1, 5, 9)] == [2, 10, 18]


def test_smoothing_corrects_for_its_start_and_steps_over_gaps():
    # w = .5 on 1, gap, 3: s1 = .5·1/(1-.5) = 1; s3 = (.5·.5 + .5·3)/(1-.25) = 1.75/.75 = 2.3333
    assert smoothed([1.0, None, 3.0], 0.5) == [1.0, None, pytest.approx(7 / 3)]
    assert smoothed([2.0, 2.0, 2.0], 0.99) == pytest.approx([2.0, 2.0, 2.0])
    assert smoothed([1.0, 5.0], 0.0) == [1.0, 5.0]


def test_a_smoothed_line_keeps_the_raw_one_behind_it():
    raw, line = lines(figure("kl", [RUN], View(smoothing=0.5)))
    assert raw["y"] == [0.01, 0.02, 0.03]
    assert raw["opacity"] < 1
    assert line["y"] != raw["y"]


def test_a_point_knows_its_step_whatever_the_axis():
    assert lines(figure("kl", [RUN], View(x="tokens")))[0]["customdata"] == [1, 2, 3]


def test_points_of_overlaid_runs_open_no_groups():
    assert [t["customdata"] for t in lines(figure("kl", [RUN, OTHER], View()))] == [[1, 2, 3], None]


def test_overlaid_runs_differ_in_colour_and_dash_and_have_a_legend():
    drawn = figure("kl", [RUN, OTHER], View())
    first, second = lines(drawn)
    assert first["line"]["color"] != second["line"]["color"]
    assert first["line"]["dash"] != second["line"]["dash"]
    assert [entry["name"] for entry in drawn["legend"]] == ["first", "second"]


def test_a_logarithmic_axis_is_refused_for_values_not_positive():
    assert figure("kl", [RUN], View(log=True))["layout"]["yaxis"]["type"] == "log"
    loss = figure("loss", [RUN], View(log=True))  # -0.1, -0.2, -0.3
    assert "type" not in loss["layout"]["yaxis"]
    assert loss["note"].startswith("Not logarithmic")


def test_a_gap_stays_a_gap():
    drawn = figure("criteria", [RUN], View())
    assert drawn["traces"][0]["y"] == [0.1, None, 0.3]


def test_kl_without_a_coefficient_is_labelled_as_measured_only():
    free = Curves("r", "n", [{**row, "kl_coef": 0.0} for row in STEPS], {})
    assert "measured, not trained on" in figure("kl", [free], View())["note"]
    assert figure("kl", [RUN], View())["note"].startswith("KL coefficient 0.02.")


def test_zoom_belongs_to_a_run_and_an_axis_and_outlives_new_points():
    key = figure("kl", [RUN], View())["key"]
    assert figure("kl", [Curves("run-1", "first", STEPS[:1], {})], View())["key"] == key
    assert figure("kl", [RUN], View(x="time"))["key"] != key
    assert figure("kl", [OTHER], View())["key"] != key


@pytest.mark.parametrize("payload", HOSTILE)
def test_a_name_reaches_plotly_escaped(payload):
    drawn = figure("kl", [RUN, Curves("r", payload, STEPS, {})], View())
    assert "<" not in lines(drawn)[1]["name"]
    assert drawn["legend"][1]["name"] == payload


@pytest.mark.parametrize("name", ["reward", "kl", "loss", "length", "detail"])
def test_every_curve_says_how_not_to_misread_it(name):
    assert len(figure(name, [RUN], View())["note"]) > 20


def test_a_long_run_is_drawn_with_few_points_and_every_spike():
    rows = [{"step": i, "kl": 9.0 if i == 3333 else 0.01} for i in range(1, 5001)]
    line = charts.figure("kl", [charts.Curves("r", "a run", rows, {})], charts.View())["traces"][0]
    assert len(line["x"]) == len(line["y"]) <= 1000
    assert 9.0 in line["y"]
    assert (line["x"][0], line["x"][-1]) == (1, 5000)


def test_a_second_task_is_drawn_beside_held_out_accuracy():
    run = Curves(
        "r",
        "a run",
        [{"step": 1, "reward_mean": 0.1, "reward_std": 0.1}],
        {
            "heldout/accuracy": [(0, 0.4), (1, 0.6)],
            "second/accuracy": [(0, 0.9), (1, 0.5)],
            "second/accuracy_low": [(0, 0.8), (1, 0.4)],
            "second/accuracy_high": [(0, 0.95), (1, 0.6)],
        },
    )
    drawn = charts.figure("reward", [run], charts.View())
    traces = {t["name"]: t for t in drawn["traces"]}
    assert traces["second task"]["y"] == [0.9, 0.5]
    assert traces["second task"]["error_y"]["arrayminus"] == pytest.approx([0.1, 0.1])
    assert "Second task 90% → 50%." in drawn["note"].replace("\u202f", "").replace(" %", "%")
    assert "second task, 95 %" in [entry["name"] for entry in drawn["legend"]]


# ---- outliers --------------------------------------------------------------------------------


def one_metric(values, name="loss"):
    return charts.Curves("r", "run", [{"step": s, name: v} for s, v in enumerate(values, 1)], {})


def test_distant_points_are_left_out_of_the_axis_and_counted():
    # 0, .1, .2, .3 repeated: without the ends the spread is .3, so outliers are above .3 + 4 · .3
    # = 1.5 or below 0 − 4 · .3 = −1.2.
    drawn = charts.figure(
        "loss", [one_metric([*[0.1 * (i % 4) for i in range(100)], 1.4, 9.0, 50.0, -7.0])], View()
    )
    assert drawn["clipped"]["says"] == "2 points above 1.40 and 1 point below 0 are not drawn."
    assert drawn["clipped"]["range"] == pytest.approx([-0.07, 1.47])  # 0 … 1.4, and a margin of 5 %
    assert 50.0 in drawn["traces"][0]["y"]  # it is there for whoever asks
    assert "not drawn" in drawn["spoken"]


@pytest.mark.parametrize(
    "values",
    [
        [0.1 * (i % 4) for i in range(100)],  # nothing is far off
        [0.5] * 99 + [3.0],  # all others equal: the odd one is the news
        [1.1**i for i in range(100)],  # growth is no outlier
        [0.1 * (i % 4) for i in range(10)] + [9.0],  # too few to say
    ],
)
def test_a_curve_without_outliers_is_drawn_whole(values):
    assert "clipped" not in charts.figure("loss", [one_metric(values)], View())


def test_a_logarithmic_axis_hides_nothing_and_smoothing_counts_measured_points():
    run = one_metric([*[1 + 0.1 * (i % 4) for i in range(100)], 90.0])
    assert "clipped" not in charts.figure("loss", [run], View(log=True))
    assert (
        charts.figure("loss", [run], View(smoothing=0.9))["clipped"]["says"]
        == "1 point above 1.30 is not drawn."
    )


def test_smoothing_leaves_constants_constant_and_gaps_as_gaps():
    drawn = charts.figure("loss", [one_metric([0.25, 0.25, None, 0.25, 0.25])], View(smoothing=0.9))
    assert [t["y"] for t in drawn["traces"]] == [[0.25, 0.25, None, 0.25, 0.25]] * 2
