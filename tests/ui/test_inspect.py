"""The Inspect tab without a browser: search, filters, views and export."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from recorded import record_run, record_step

from grpo_core.errors import StudioError
from grpo_core.store import Page, Recorder, Wanted, search
from grpo_core.types import RunStatus
from ui.components import form
from ui.tabs.inspect import FIRST, ShowInspect, choose_steps, export_selection
from ui.tabs.inspect_group import use_in_new_run

SKIP = gr.skip()


# ---- the Inspect tab -------------------------------------------------------------------------


def inspect(
    views,
    run_id,
    search="",
    low="",
    high="",
    filters=None,
    opened="",
    seen="{}",
    tab="inspect",
    view="cards",
    options="{}",
    group_seen="{}",
):
    return ShowInspect(views)(
        run_id,
        tab,
        search,
        low,
        high,
        json.dumps({**FIRST, **(filters or {})}),
        opened,
        seen,
        view,
        "best",
        options,
        group_seen,
    )


def test_the_table_lists_the_newest_groups_and_opens_the_first(views, store):
    chips, _, _, table, newer, at, _, detail, *_ = inspect(views, record_run(store))
    assert "all <b>6</b>" in chips  # 3 steps of 2 groups
    assert "healthy <b>3</b>" in chips
    assert "1–6 of 6 groups" in table
    assert at == "3/0"
    assert "step <b>3</b> · group <b>1</b>" in detail
    assert newer == ""


@pytest.mark.parametrize(
    ("question", "groups"),
    [
        ({"filters": {"verdict": "healthy"}}, 3),
        ({"low": "0.4"}, 3),
        ({"high": "0,4"}, 6),
        ({"high": "0.4"}, 3),
        ({"search": "<answer>2</answer>"}, 1),
        ({"search": "2+9"}, 1),
        ({"search": "NO IDEA"}, 6),
        ({"search": "' OR 1=1 --"}, 0),
        ({"search": "%"}, 0),
    ],
)
def test_groups_are_found_by_verdict_reward_and_text(views, store, question, groups):
    table = inspect(views, record_run(store), **question)[3]
    assert (f"of {groups} group" in table) if groups else ("No group matches" in table)


def test_a_live_runs_table_stays_and_counts_newer_groups(views, store):
    run_id = record_run(store, status=RunStatus.RUNNING)
    first = inspect(views, run_id)
    with Recorder(store, run_id) as record:
        record_step(record, 4)
    chips, _, _, table, newer, _, _, detail, *_ = inspect(
        views, run_id, seen=first[6], group_seen=first[-1]
    )
    assert "all <b>8</b>" in chips
    assert (table, detail) == (SKIP, SKIP)
    assert "2 newer groups" in newer
    assert "1–8 of 8" in inspect(views, run_id, filters={"fresh": 8}, seen=first[6])[3]


def test_a_tab_that_is_not_in_view_reads_nothing(views, store):
    assert inspect(views, record_run(store), tab="train") == [SKIP] * 11


def test_verdicts_are_stacked_by_step_and_a_click_shows_groups(views, store):
    run_id = record_run(store)
    figure = inspect(views, run_id)[1]
    assert {t["name"]: t["y"] for t in figure["traces"]} == {
        "healthy": [0.5] * 3,
        "tied: all wrong": [0.5] * 3,
    }  # two groups a step, one of each
    assert {t["stackgroup"] for t in figure["traces"]} == {"all"}
    filters = json.loads(choose_steps(views, "{}", run_id, SimpleNamespace(_data={"step": 2})))
    assert filters["steps"] == [2, 2]
    chips, _, _, table, *_ = inspect(views, run_id, filters=filters)
    assert "1–2 of 2 groups" in table
    assert "only step 2" in chips
    assert (
        json.loads(choose_steps(views, "{}", run_id, SimpleNamespace(_data={"step": "<b>"})))[
            "steps"
        ]
        is None
    )


@pytest.mark.parametrize("mode", ["groups", "rollouts"])
def test_a_search_during_indexing_says_so_and_fills_itself(views, store, monkeypatch, mode):
    run_id = record_run(store)  # 12 completions, 9 of them "no idea"
    for name, value in (
        ("BATCH", 1),
        ("SCANNED", 2),
        ("BUDGET_SECONDS", 0.0),
        ("_go_on", lambda *_: None),
    ):
        monkeypatch.setattr(search, name, value)
    asked = {"search": "no idea", "filters": {"mode": mode}, "opened": "1/0"}
    first = inspect(views, run_id, **asked)
    assert (
        "9 completions not searched yet" in first[3]
    )  # the first from the index, the last two read
    monkeypatch.setattr(search, "BUDGET_SECONDS", 60.0)
    after = inspect(views, run_id, **asked, seen=first[6])
    assert "not searched yet" not in after[3]
    assert "6 groups" in after[3] if mode == "groups" else "9 completions" in after[3]
    assert inspect(views, run_id, **asked, seen=after[6])[3] == SKIP


@pytest.mark.parametrize(
    ("view", "options", "controls", "body"),
    [
        ("cards", {}, "", "no idea"),
        ("ends", {}, "", "<ins>"),
        ("tokens", {}, "Tokens of", "No tokens were recorded here"),
        (
            "whatif",
            {"w:accuracy": "2"},
            "Weight of accuracy",
            "would have been pushed the other way",
        ),
        ("whatif", {"run": True}, "Whole run", "over 6 groups"),
        ("whatif", {"kl_coef": "0.5"}, "KL coefficient", "No tokens of this group were recorded"),
        (
            "whatif",
            {"kl_coef": "0.5", "run": True},
            "KL coefficient",
            "mean over 3 steps <b>4.0e-04</b> → <b>0.0100</b>",
        ),  # 0.02 and 0.5 times a mean KL of 0.02
        ("whatif", {"w:accuracy": "x"}, "Weight of accuracy", "could not convert"),
        ("time", {}, "", "No prompt of this run came up twice"),
        ("runs", {}, "No other run", ""),
    ],
)
def test_a_group_has_six_views(views, store, view, options, controls, body):
    run_id = record_run(store)
    out = inspect(views, run_id, opened="3/0", view=view, options=json.dumps({view: options}))
    assert controls in out[8]
    assert body in out[9]
    assert (
        inspect(
            views,
            run_id,
            opened="3/0",
            view=view,
            options=json.dumps({view: options}),
            seen=out[6],
            group_seen=out[-1],
        )[7:]
        == [SKIP] * 4
    )


@pytest.mark.parametrize(
    ("where", "search", "found"),
    [
        ({}, "", 12),
        ({"reward_from": "0.5"}, "", 3),
        ({"advantage_to": "-0.1"}, "", 3),
        ({"tokens_from": "6"}, "", 9),
        ({"finish": "length"}, "", 9),
        ({"finish": "stop", "reward_to": "0"}, "", 0),
        ({}, "no idea", 9),
        ({}, "<answer>2</answer>", 1),
        ({}, "NO IDEA", 9),
        ({}, "o", 9),
        ({}, "%", 0),
        ({}, "' OR 1=1", 0),
        ({"reward_from": "x"}, "", 12),
    ],
)
def test_completions_are_found_by_text_reward_advantage_length_and_end(
    views, store, where, search, found
):
    # 3 steps of 2 groups of 2. Each step has one right completion of 5 tokens; the others are cut
    # at 8 tokens.
    record_run(store, "another")
    table = inspect(
        views, record_run(store), filters={"mode": "rollouts", "where": where}, search=search
    )[3]
    assert f"of {found} completions" in table if found else "No completion matches" in table


def test_completions_are_narrowed_by_verdict_and_step_sorted_and_paged(views, store):
    run_id = record_run(store, steps=20)
    table = inspect(
        views, run_id, filters={"mode": "rollouts", "verdict": "all_wrong", "steps": [2, 3]}
    )[3]
    assert "1–4 of 4 completions" in table
    page = store.find_rollouts(run_id, Wanted(), Page("reward", True, 21, 0))
    assert [r.reward for r in page.rows] == [1.0] * 20 + [0.0]
    assert (
        page.total,
        [r.step for r in store.find_rollouts(run_id, Wanted(), Page(limit=3, offset=3)).rows],
    ) == (80, [20, 19, 19])
    assert [
        r.num_tokens
        for r in store.find_rollouts(run_id, Wanted(search="answer"), Page("tokens", False, 2)).rows
    ] == [5, 5]
    with pytest.raises(StudioError, match="not sorted by that"):
        store.find_rollouts(run_id, Wanted(), Page("; DROP TABLE runs"))


def test_the_selection_is_exported_whole_with_the_prompt_of_each_line(views, store):
    run_id = record_run(store)
    path, message = export_selection(
        views, run_id, json.dumps({**FIRST, "where": {"reward_from": "0.5"}}), ""
    )
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert message == ""
    assert [(x["step"], x["text"], x["prompt"]) for x in lines] == [
        (s, f"<answer>{s}</answer>", f"Q: {s}+0=?") for s in (3, 2, 1)
    ]
    assert (
        "No completion matches" in export_selection(views, run_id, json.dumps(FIRST), "nowhere")[1]
    )


def test_two_runs_that_met_the_same_prompt_are_laid_side_by_side(views, store):
    one, two = record_run(store, "one"), record_run(store, "two", 2)
    out = inspect(views, one, opened="1/0", view="runs")
    assert f'value="{two}"' in out[8]
    assert out[9].count("<article") == 4
    assert "Q: 1+0=?" in out[9]


def test_tried_settings_are_carried_to_the_form_of_a_new_run(views, store):
    run_id = record_run(store)
    out = use_in_new_run(
        views,
        run_id,
        json.dumps(
            {"whatif": {"w:format": "1.5", "gate": True, "advantage": "rank", "kl_coef": "0.25"}}
        ),
    )
    flat = dict(zip(form.NAMES, out, strict=False))
    assert (flat["rubric.gate"], flat["algorithm.advantage"], flat["rubric.name"]) == (
        True,
        "rank",
        "custom",
    )
    assert [r["weight"] for r in flat["rubric.criteria"] if r["name"] == "format"] == ["1.5"]
    assert float(flat["algorithm.kl_coef"]) == 0.25
    assert flat["train.group_size"] == 2  # the run's own
    assert "Start training" in out[-1]
    assert (
        "cannot be used"
        in use_in_new_run(views, run_id, json.dumps({"whatif": {"w:format": "nan"}}))[-1]
    )
