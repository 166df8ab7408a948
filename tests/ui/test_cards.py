"""Groups, cards, tables and the status line: foreign text stays text, numbers are the recorded."""

from __future__ import annotations

import html
import re
import time

import pytest
from recorded import CONFIG, HOSTILE, group, record_run, rollout
from shown import Shown

from grpo_core.analysis.heldout import Estimate
from grpo_core.store import GroupPage, GroupSummary
from grpo_core.types import RunStatus
from ui.render import (
    arithmetic,
    cards,
    comparison,
    history,
    recorded_config,
    run_end,
    run_table,
    siblings,
    status,
    tables,
    text,
)
from ui.render.place import Place
from ui.render.run_bar import Bar, run_bar

OURS = {
    "div",
    "span",
    "b",
    "i",
    "pre",
    "code",
    "em",
    "mark",
    "article",
    "button",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "h2",
    "p",
    "br",
    "label",
    "select",
    "option",
}


def assert_harmless(source: str) -> Shown:
    shown = Shown(source)
    assert set(shown.tags) <= OURS
    assert not [a for a in shown.attributes if a.startswith("on") or a in ("href", "src")]
    return shown


# ---- foreign text ----------------------------------------------------------------------------


@pytest.mark.parametrize("payload", HOSTILE)
@pytest.mark.parametrize("table", [False, True])
def test_prompt_answer_completion_and_criterion_names_are_shown_as_that_very_text(payload, table):
    row = rollout(0, 1.0, 0.5, payload, scores={payload: 1.0}, finish_reason=payload)
    g = group([row, rollout(1, 0.0, -0.5)], prompt=payload, answer=payload)
    html = (
        cards.group_head(g, 8, "best")
        + arithmetic.why_table(g, g.rollouts, CONFIG, {1: 0.5})
        + cards.card_grid(g, g.rollouts, CONFIG)
    )
    shown = assert_harmless(html if table else cards.group_view(g, 8, CONFIG))
    assert shown.text.count(payload) >= 4


@pytest.mark.parametrize("payload", HOSTILE)
def test_names_and_error_texts_are_shown_literally(payload, store):
    run = store.run(record_run(store, payload, **{"model.name": payload}))
    shown = assert_harmless(run_table.run_table([run], [], None, tables.Sort("created", True)))
    assert payload in shown.text
    assert payload in assert_harmless(status.banner(payload, payload, payload)).text
    differing = comparison.differences({payload: {"a": 1}, "other": {"a": 2}}, ["", ""])
    assert payload in assert_harmless(differing).text
    assert payload in assert_harmless(run_bar(Bar([payload], 0, [], [], []))).text


@pytest.mark.parametrize("payload", HOSTILE)
def test_a_group_table_shows_hostile_prompts_as_text(payload):
    row = GroupSummary(
        1, 1, 0, payload, payload, 0.5, 0.5, "healthy", (1.0, None), payload, payload
    )
    shown = assert_harmless(
        tables.group_table(GroupPage([row], 1), 1.0, 0, tables.Sort("step", True), None)
    )
    assert payload in shown.text


@pytest.mark.parametrize("payload", HOSTILE)
def test_escaping_can_be_undone_by_a_browser_exactly(payload):
    assert html.unescape(text.esc(payload)) == payload


def test_controls_that_reorder_or_hide_text_are_shown_by_name():
    # U+202E reverses the text after it, ESC begins a terminal sequence, U+200B has no width.
    assert text.esc("a\u202eb\x1b[31m\u200b\x00\x7f\x9b") == "a⟦U+202E⟧b␛[31m⟦U+200B⟧␀␡⟦U+009B⟧"
    assert text.esc("line\n\ttab") == "line\n\ttab"  # these a <pre> shows


def test_a_lone_surrogate_can_be_sent_to_the_browser():
    assert text.esc("\ud800").encode("utf-8") == "\ufffd".encode()


def test_the_first_line_break_of_a_completion_survives_the_html_parser():
    # A parser drops one newline after <pre>; the completion's own must not be that one.
    assert "<pre>\n\nanswer</pre>" in cards.completion_card(
        rollout(0, 1.0, 0.0, "\nanswer"), CONFIG, 2.0
    )


# ---- numbers ---------------------------------------------------------------------------------


def test_the_arithmetic_line_has_the_groups_own_numbers_in_it():
    # rewards 1 and 0: mean 0.5, sample std 0.7071; A = (1 - 0.5)/(0.7071 + 1e-4) = 0.7070
    view = Shown(
        cards.group_view(
            group([rollout(0, 1.0, 0.7070), rollout(1, 0.0, -0.7070)], 0.5, 0.70711), 8, CONFIG
        )
    ).text
    assert "rewards 1.00 0.00" in view
    assert "mean 0.500" in view
    assert "std 0.707" in view
    assert "A = (r − mean)/(std + 1e-4) = (1.00 − 0.500)/(0.707 + 1e-4) = +0.71" in view
    assert "step 37 · group 2 of 8" in view


@pytest.mark.parametrize(
    ("advantage", "formula"),
    [
        ("group_mean", "A = r − mean = 1.00 − 0.333 = +0.67"),  # 1 - 1/3
        (
            "leave_one_out",
            "A = r − mean of the siblings = 1.00 − 0.000 = +1.00",
        ),  # the two siblings have 0 each
    ],
)
def test_the_formula_is_the_one_of_the_estimator_that_the_run_used(advantage, formula):
    a = {"group_mean": 2 / 3, "leave_one_out": 1.0}[advantage]
    g = group([rollout(0, 1.0, a), rollout(1, 0.0, -a / 2), rollout(2, 0.0, -a / 2)], 1 / 3, 0.577)
    assert (
        formula
        in Shown(cards.group_view(g, 1, {**CONFIG, "algorithm": {"advantage": advantage}})).text
    )


def test_a_critics_formula_has_the_runs_own_numbers_in_it():
    g = group([rollout(0, 1.0, 0.2), rollout(1, 0.0, -0.4)])
    algorithm = {"advantage": "value", "gae_gamma": 1.0, "gae_lambda": 0.95}
    assert (
        "GAE(γ = 1.0, λ = 0.95)"
        in Shown(cards.group_view(g, 1, {**CONFIG, "algorithm": algorithm})).text
    )


def test_rewards_that_differ_never_look_equal():
    # .500 and .501 need three digits; with two both would be 0.50
    g = group([rollout(0, 0.501, 0.707), rollout(1, 0.5, -0.707)], 0.5005, 0.000707)
    assert "rewards 0.501 0.500" in Shown(cards.group_view(g, 1, CONFIG)).text


def test_cards_stand_best_advantage_first_or_as_sampled():
    rows = [rollout(0, 0.0, -0.7), rollout(1, 1.0, 0.7), rollout(2, None, 0.0)]
    assert [r.position for r in cards.in_order(rows, "best")] == [1, 2, 0]
    assert [r.position for r in cards.in_order(rows, "sampled")] == [0, 1, 2]


@pytest.mark.parametrize(
    ("advantage", "side", "shown"),
    [(1.2, "up", "+1.20"), (-0.5, "down", "−0.50"), (0.0, "zero", "0.00"), (-0.0, "zero", "0.00")],
)
def test_an_advantage_has_sign_number_and_bar_besides_its_colour(advantage, side, shown):
    card = cards.completion_card(rollout(0, 1.0, advantage), CONFIG, 2.0)
    assert f'class="card {side}"' in card
    assert f">{shown}</b>" in card
    assert f"--part:{abs(advantage) / 2:.3f}" in card


def test_the_bar_is_full_at_the_largest_advantage_a_group_can_have():
    # one winner among 8: (7/8)/(std = sqrt(1/8)) = 2.4749 = 7/sqrt(8)
    assert recorded_config.advantage_scale(CONFIG, 8) == pytest.approx(2.4749, abs=1e-4)
    assert recorded_config.advantage_scale(CONFIG, 1024) == 3.0
    # a critic's advantages have a standard deviation of 1 over the step's tokens
    assert (
        recorded_config.advantage_scale(
            {**CONFIG, "algorithm": {**CONFIG["algorithm"], "advantage": "value"}}, 2
        )
        == 3.0
    )


def test_an_unscored_criterion_says_so_and_is_not_zero():
    view = Shown(
        cards.completion_card(rollout(0, None, 0.0, scores={"accuracy": None}), CONFIG, 2.0)
    ).text
    assert "reward could not be scored" in view
    assert "accuracy could not be scored" in view
    assert "0.00" in view  # the advantage, which is 0


def test_a_criterion_shows_its_score_times_its_weight():
    view = Shown(
        cards.completion_card(
            rollout(0, 1.1, 0.5, scores={"format": 0.5, "accuracy": 1.0}), CONFIG, 2.0
        )
    ).text
    assert "accuracy 1×1" in view
    assert "format 0.5×0.2" in view
    assert view.index("accuracy") < view.index("format")  # the rubric's order, not the record's


def test_each_card_holds_its_own_arithmetic_and_marks_what_earned_or_cost_it_most():
    # rewards 1.1 and 0.2, mean 0.65, std 0.6364; the second: (0.2 − 0.65)/0.6364 = −0.707
    rows = [
        rollout(0, 1.1, 0.707, "a 1", scores={"accuracy": 1.0, "format": 0.5}),
        rollout(1, 0.2, -0.707, "a 2", scores={"accuracy": 0.0, "format": 1.0}),
    ]
    first, second = (
        card.split("</article>")[0]
        for card in cards.group_view(group(rows, 0.65, 0.6364), 8, CONFIG).split("<article ")[1:]
    )
    assert 'aria-current="true"' in first
    assert "aria-current" not in second
    shown = Shown(second).text
    assert "#2 A = (r − mean)/(std + 1e-4) = (0.20 − 0.650)/(0.636 + 1e-4) = −0.71" in shown
    assert "accuracy cost most: (0 − 0.5) × 1 = −0.500" in shown
    assert 'class="score cost">accuracy' in second
    # accuracy +0.5, format 0.2 · (0.5 − 0.75) = −0.05
    assert "accuracy earned most: (1 − 0.5) × 1 = +0.500" in Shown(first).text
    assert 'class="score earned">accuracy' in first


def test_a_tied_completion_has_no_cause():
    tied = group([rollout(0, 1.0, 0.0), rollout(1, 1.0, 0.0, "other")], 1.0, 0.0, "all_right")
    assert "most:" not in cards.group_view(tied, 8, CONFIG)


def test_only_a_group_that_may_fill_two_rows_keeps_room_for_them():
    rows = [rollout(i, float(i), i - 2.0, f"text {i}") for i in range(5)]
    for n, few in ((4, True), (5, False)):
        html = cards.card_grid(group(rows[:n]), rows[:n], CONFIG)
        assert ('<div class="cards few">' in html) == few


def test_equal_completions_share_a_card_with_their_number():
    rows = [rollout(i, 1.0, 0.2) for i in range(27)] + [rollout(27, 0.0, -5.0, "no")]
    view = cards.group_view(group(rows), 8, CONFIG)
    assert view.count("<article") == 2
    assert ">×27</b>" in view
    assert "27 equal completions: #1–#27" in view


def test_a_large_group_begins_with_a_histogram_of_its_rewards():
    rows = [rollout(i, [0.0, 0.2, 1.2][i % 3], 0.1, f"text {i % 5}") for i in range(64)]
    view = cards.group_view(group(rows), 8, CONFIG)
    label = "Rewards of 64 completions: 22 with reward 0.00, 21 with reward 0.20, 21 with"
    assert label in view  # 64 = 22 + 21 + 21
    assert view.count("<article") == 15  # 3 rewards times 5 texts
    assert "64 rewards, 3 different" in Shown(view).text
    assert "histogram" not in cards.group_view(group(rows[:8]), 8, CONFIG)
    ranges = siblings.histogram(group([rollout(i, i / 10, 0.1) for i in range(40)]))
    assert ranges.count("<b>4</b>") == 10  # 40 different rewards in 10 ranges


def test_words_that_the_best_sibling_lacks_are_marked():
    rows = [
        rollout(0, 1.0, 0.7, "7+8=15 <answer>15</answer>"),
        rollout(1, 0.0, -0.7, "7+8=16 <answer>16</answer>"),
    ]
    view = cards.group_view(group(rows), 8, CONFIG)
    assert "<pre>\n7+8=15 &lt;answer&gt;15&lt;/answer&gt;</pre>" in view
    assert "<pre>\n7+8=<mark>16</mark> &lt;answer&gt;<mark>16</mark>&lt;/answer&gt;</pre>" in view


def test_a_group_of_64_long_texts_is_drawn_in_time():
    words = [f"w{i * i % 97}" for i in range(4000)]
    rows = [rollout(i, i / 64, 0.1, " ".join(words[i:])) for i in range(64)]
    began = time.process_time()
    cards.group_view(group(rows), 8, CONFIG)
    assert time.process_time() - began < 2.0


def test_equal_completions_share_a_row_of_the_why_table():
    rows = [
        rollout(i, 1.0 if i in (0, 3, 4, 5) else 0.0, 0.9 if i in (0, 3, 4, 5) else -0.9)
        for i in range(7)
    ]
    view = Shown(arithmetic.why_table(group(rows), group(rows).rollouts, CONFIG)).text
    assert "#1, #4–#6" in view
    assert "#2, #3, #7" in view
    assert "sum of A +0.90" in view  # 4 · 0.9 - 3 · 0.9


def test_the_verdict_is_a_label_and_a_sentence_with_the_groups_numbers():
    tied = group([rollout(i, 1.0, 0.0) for i in range(8)], 1.0, 0.0, "all_right")
    view = Shown(cards.group_view(tied, 8, CONFIG)).text
    assert "tied: all right" in view
    assert (
        "All 8 are right and equal: every advantage is 0; with neither KL nor an entropy bonus "
        "in the loss, there is no gradient." in view
    )


@pytest.mark.parametrize(
    ("algorithm", "says"),
    [
        (
            {"advantage": "value"},
            "they are compared with a critic's predictions, so their advantages may still differ "
            "from 0.",
        ),
        (
            {"grouping": "batch"},
            "they are compared with the step's completions, so their advantages may still differ "
            "from 0.",
        ),
        (
            {"kl_coef": 0.02},
            "every advantage is 0, so only the KL term gives a gradient.",
        ),
        (
            {"kl_coef": 0.02, "entropy_coef": 0.01},
            "every advantage is 0, so only the KL term and entropy bonus give a gradient.",
        ),
        (
            {"kl_coef": 0.0, "entropy_target": 0.2},
            "every advantage is 0, so only the entropy bonus gives a gradient.",
        ),
        (
            {"kl_coef": 0.0, "entropy_coef": 0.0},
            "every advantage is 0; with neither KL nor an entropy bonus in the loss, there is no "
            "gradient.",
        ),
    ],
)
@pytest.mark.parametrize("table", [False, True])
def test_a_tied_group_may_have_a_gradient_from_other_loss_terms(algorithm, says, table):
    tied = group([rollout(i, 1.0, 0.3) for i in range(8)], 1.0, 0.0, "all_right")
    config = {**CONFIG, "algorithm": {**CONFIG["algorithm"], **algorithm}}
    if table:
        html = arithmetic.why_table(tied, tied.rollouts, config)
    else:
        html = cards.group_view(tied, 8, config)
    assert f"All 8 are right and equal: {says}" in Shown(html).text


def test_only_a_long_text_is_a_tab_stop_for_scrolling():
    assert 'tabindex="0"' in cards.completion_card(rollout(0, 1.0, 0.0, "x" * 2000), CONFIG, 2.0)
    assert "tabindex" not in cards.completion_card(rollout(0, 1.0, 0.0, "short"), CONFIG, 2.0)


def test_an_unknown_verdict_of_a_newer_version_is_shown_by_its_code():
    assert ">brand_new<" in cards.group_view(
        group([rollout(0, 1.0, 0.0)], verdict="brand_new"), 1, CONFIG
    )


# ---- tables and the status line --------------------------------------------------------------


def test_a_reward_strip_is_full_at_the_highest_reward_and_labelled():
    strip = tables.reward_strip((0.6, 1.2, None), 1.2)
    assert re.findall(r"--part:([\d.]+)", strip) == ["1.000", "0.500"]  # best first
    assert 'aria-label="1.20, 0.60, 1 could not be scored"' in strip


def test_only_the_settings_in_which_runs_differ_are_listed():
    shown = Shown(
        comparison.differences(
            {"a": {"train.steps": 10, "train.seed": 0}, "b": {"train.steps": 20, "train.seed": 0}},
            ["--run-1", "--run-2"],
        )
    ).text
    assert "train.steps" in shown
    assert "train.seed" not in shown


def test_a_compared_run_has_the_colour_and_dash_of_its_curve():
    shown = comparison.differences({"a": {"x": 1}, "b": {"x": 2}}, ["--run-3", "--run-5"])
    assert re.findall(r'mark (\w+)" style="--mark:var\((--run-\d)\)', shown) == [
        ("solid", "--run-3"),
        ("dash", "--run-5"),
    ]


def test_a_prompt_answered_once_a_visit_has_an_answer_and_no_worst_one():
    def visit(step: int, *rewards: float):
        return group(
            [rollout(i, r, 0.0, f"said {i}") for i, r in enumerate(rewards)], id=step, step=step
        )

    once = Shown(
        history.through_time([visit(0, 0.0), visit(9, 1.0)], visit(9, 1.0), "accuracy")
    ).text
    assert "Answer, step 0 and step 9" in once
    assert "Worst" not in once
    mixed = Shown(
        history.through_time([visit(0, 1.0), visit(9, 1.0, 0.0)], visit(0, 1.0), None)
    ).text
    assert "Worst" in mixed
    assert "answered once" in mixed  # step 0
    assert "said 1" in mixed  # the worst of step 9


def test_the_status_line_tells_phase_step_time_left_and_speed(store):
    run = store.run(record_run(store, steps=10, status=RunStatus.RUNNING))
    recent = [{"step_seconds": 2.0, "tokens": 100}] * 3
    # 10 of 40 steps are done: 30 steps of 2 s = 1:00; 100 tokens in 2 s = 50 tokens/s
    run = type(run)(
        **{f: getattr(run, f) for f in run.__slots__}
        | {"num_steps": 40, "started_at": 1000.0, "step": 11}
    )
    line = Shown(status.status_line(run, recent, 1, None, 1065.0)).text
    for part in ("step 11 of 40", "1:05 elapsed", "1:00 left", "50.0 tokens/s", "1 run queued"):
        assert part in line


def test_a_run_that_waits_for_scores_shows_why(store):
    run_id = record_run(store)
    reason = "First reason of mine (8 times): line 2: ZeroDivisionError: division by <b>zero</b>."
    message = f"8 of 8 completions could not be scored (null: mine 8 times). {reason} Press Resume."
    store.set_status(run_id, RunStatus.PAUSED, message)
    banner = run_end.run_banner(store.run(run_id))
    assert reason in Shown(banner).text
    assert "<b>zero" not in banner


def test_a_failed_run_states_the_error_what_is_kept_and_a_hint(store):
    run_id = record_run(store)
    store.set_status(
        run_id,
        RunStatus.FAILED,
        "RuntimeError: CUDA out of memory\n\nTraceback (most recent call last):\n  File …",
    )
    shown = Shown(run_end.run_banner(store.run(run_id))).text
    assert (
        shown.index("CUDA out of memory")
        < shown.index("Kept: 3 steps")
        < shown.index("press Start training")
    )
    assert "Traceback" in shown


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ((0.36, 0.30, 0.42), (0.95, 0.91, 0.97), "Clearly better"),
        ((0.95, 0.91, 0.97), (0.36, 0.30, 0.42), "Clearly worse"),
        ((0.36, 0.30, 0.42), (0.40, 0.34, 0.46), "No clear change"),
    ],
)
def test_a_finished_run_compares_held_out_accuracy_with_its_intervals(store, before, after, says):
    run = store.run(record_run(store))
    heldout = [Estimate(*before), Estimate(*after)]
    telling = run_end.Telling(Place(3, 0), "cards", "it differs most")
    shown = Shown(run_end.run_banner(run, heldout, can_try=True, telling=telling)).text
    assert f"{100 * before[0]:.0f} % ({100 * before[1]:.0f}–{100 * before[2]:.0f}) → " in shown
    assert says in shown
    for button in ("Try it", "See why", "Export"):
        assert button in shown
    assert "Try it" not in run_end.run_banner(run, heldout)  # there is no trained state of it


def test_only_the_first_and_the_last_evaluation_are_compared():
    metrics = {
        "heldout/accuracy": [(0, 0.4), (5, 0.9), (9, 0.5)],
        "heldout/accuracy_low": [(0, 0.3), (5, 0.8), (9, 0.45)],
    }
    before, after = run_end.accuracies(metrics)
    assert (before.value, before.low, before.high) == (0.4, 0.3, None)
    assert (after.value, after.low) == (0.5, 0.45)
    assert len(run_end.accuracies({"heldout/accuracy": [(0, 0.4)]})) == 1


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (RunStatus.PAUSED, "Paused. Press Resume to go on, or Step for one step."),
        (RunStatus.STOPPED, "Stopped after 3 of 3 steps. Kept: 3 steps with every group and curve"),
        (RunStatus.INTERRUPTED, "The server stopped while this run was going. Kept: 3 steps"),
    ],
)
def test_a_run_that_ended_early_says_what_is_kept_and_what_to_do(store, state, says):
    shown = Shown(run_end.run_banner(store.run(record_run(store, status=state)))).text
    assert says in shown
    assert "Resume" in shown
    assert "See why" not in shown  # no group is named that shows it


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0"),
        (1.2345, "1.23"),
        (0.04213, "0.0421"),
        (5210.4, "5,210"),
        (1.2e-6, "1.2e-06"),
        (-0.00312, "−0.00312"),
    ],
)
def test_short_numbers_have_three_digits_and_a_true_minus_sign(value, expected):
    assert text.short(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(6, "0:06"), (760.9, "12:40"), (11100, "3:05:00"), (None, "–"), (-3, "0:00")],
)
def test_durations_read_like_a_clock(seconds, expected):
    assert text.duration(seconds) == expected
