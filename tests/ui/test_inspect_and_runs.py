"""The Inspect and Runs tabs without a browser: search, comparison, export and deletion."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from recorded import FakeService, record_run, record_step

from grpo_core.config import parse
from grpo_core.errors import StudioError
from grpo_core.store import Page, Recorder, Wanted, search
from grpo_core.types import Checkpointed, RunStatus
from ui.components import form
from ui.tabs import exports, run_actions
from ui.tabs.inspect import FIRST, ShowInspect, choose_steps, export_selection
from ui.tabs.inspect_group import use_in_new_run
from ui.tabs.run_actions import ask_branch, branch_run, read_changes, resume_run
from ui.tabs.run_list import ShowRuns

COMPARE = 6 + len(exports.EXPORTS)  # in the outputs of ShowRuns: after the table and its buttons

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
        ("time", {}, "", "This prompt came up once"),
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
    assert "This prompt came up once" not in out[9]


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


# ---- the Runs tab ----------------------------------------------------------------------------


def listing(views, selected=(), search="", sort=None, seen="{}"):
    return ShowRuns(views)(
        None,
        "runs",
        search,
        json.dumps(list(selected)),
        json.dumps(sort or {"key": "created", "descending": True}),
        seen,
    )


def test_two_selected_runs_are_overlaid_and_only_their_differences_listed(views, store):
    a, b = record_run(store, "a"), record_run(store, "b", **{"train.seed": 5})
    out = listing(views, [a, b])
    compare, figures, differ = out[COMPARE], out[COMPARE + 1 : COMPARE + 4], out[COMPARE + 4]
    assert compare["visible"] is True
    assert [entry["name"] for entry in figures[0]["legend"]] == ["a", "b"]
    assert "train.seed" in differ
    assert "train.steps" not in differ


def test_buttons_work_on_the_selected_runs(views, store):
    a, b, live = record_run(store), record_run(store), record_run(store, status=RunStatus.RUNNING)
    enabled = [
        [u["interactive"] for u in listing(views, chosen)[1:COMPARE]]
        for chosen in ([], [a], [a, b], [live])
    ]
    # Open, Resume, Branch, Rename, Delete, then the exports. The runs have no checkpoint.
    num = len(exports.EXPORTS)
    one = [True, False, False, True, True, *[True] * num]
    assert enabled == [
        [False] * (5 + num),
        one,
        [False] * 4 + [True] + [False] * num,
        [True, False, False, True, False, *[True] * num],
    ]


def test_runs_are_searched_and_sorted_with_unknown_values_last(views, store):
    low, none, high = (
        record_run(store, "low", 1),
        record_run(store, "none", 1),
        record_run(store, "high", 3),
    )
    with store.writing() as writer, writer.transaction() as db:
        db.execute("UPDATE runs SET reward_last = NULL WHERE id = ?", (none,))
    for descending, order in ((True, [high, low, none]), (False, [low, high, none])):
        table = listing(views, sort={"key": "reward", "descending": descending})[0]
        assert sorted(order, key=lambda i: table.index(f'data-run="{i}"')) == order
    assert "No run matches" in listing(views, search="nosuch")[0]


def test_deleting_asks_first_refuses_live_runs_and_says_how_much_was_freed(views, store):
    gone, live = record_run(store, "<b>gone</b>", 50), record_run(store, status=RunStatus.RUNNING)
    question, confirm, message = run_actions.ask_delete(views, json.dumps([gone]))
    assert "Delete “&lt;b&gt;gone&lt;/b&gt;”?" in question
    assert "50 steps" in question
    assert confirm["visible"] is True
    assert store.run(gone)
    assert "still running" in run_actions.ask_delete(views, json.dumps([live]))[2]
    message, confirm, selected = run_actions.delete_runs(views, json.dumps([gone, live]))
    assert "Deleted 1 run" in message
    assert "freed" in message
    assert "Stop it first" in message  # the store refuses the live run too
    assert (confirm["visible"], selected) == (False, json.dumps([live]))


@pytest.mark.parametrize(("name", "ending"), [(n, e) for n, (e, _) in exports.EXPORTS.items()])
def test_a_run_is_exported_to_a_file_with_a_safe_name(views, store, name, ending, tmp_path):
    run_id = record_run(store, "../../etc/<passwd> ${x} 名")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    path, message = exports.export_run(
        views, FakeService(tmp_path / "model"), name, json.dumps([run_id])
    )
    assert message == ""
    assert Path(path).name == f"etc-passwd-x-{run_id}-{ending}"
    assert Path(path).stat().st_size > 0


def test_renaming_needs_one_run_and_a_name(views, store):
    run_id = record_run(store)
    assert run_actions.rename_run(views, json.dumps([run_id]), " new ") == ["", ""]
    assert store.run(run_id).name == "new"
    assert "needs a name" in run_actions.rename_run(views, json.dumps([run_id]), "  ")[0]
    assert "Select one run" in run_actions.rename_run(views, "[]", "x")[0]


def test_runs_of_one_name_are_distinguished_in_every_list(views, store):
    a, b = record_run(store, "same"), record_run(store, "same", 2)
    labels = [f"same · {run_id.rpartition('-')[2]}" for run_id in (a, b)]
    assert sorted(label for label, _ in views.choices()) == sorted(labels)
    out = listing(views, [a, b])
    assert [entry["name"] for entry in out[COMPARE + 1]["legend"]] == labels
    assert all(label in out[COMPARE + 4] for label in labels)


def test_a_branch_starts_from_a_checkpoint_and_is_listed_below_its_parent(views, store, runs):
    parent = record_run(store, "the <parent>")
    assert "nothing to branch from" in ask_branch(views, json.dumps([parent]))[2]
    with Recorder(store, parent) as record:
        for step in (2, 3):
            record(
                Checkpointed(
                    step,
                    str(store.checkpoint_folder(parent) / f"step-0000000{step}"),
                    1_500_000,
                    "0" * 64,
                )
            )
    which, box, _ = ask_branch(views, json.dumps([parent]))
    assert (which["choices"], which["value"], box["visible"]) == (
        [("step 3 · 1.5 MB", 3), ("step 2 · 1.5 MB", 2)],
        3,
        True,
    )
    assert (
        "No branch was started"
        in branch_run(runs, views, json.dumps([parent]), 3, "no equals sign")[-1]
    )
    runs.refuse = StudioError("train.steps = 2: the branch <b>starts</b> after step 3.")
    assert (
        "&lt;b&gt;starts" in branch_run(runs, views, json.dumps([parent]), 3, "train.steps=2")[-1]
    )
    assert read_changes("train.learning_rate=1e-5 task.name=sort rubric.gate=true") == {
        "train.learning_rate": 1e-5,
        "task.name": "sort",
        "rubric.gate": True,
    }
    child = store.create_run(parse(store.run(parent).config), "child", parent=(parent, 3))
    table = listing(views)[0]
    assert "↳ from “the &lt;parent&gt;”, step 3" in table
    grandchild = store.create_run(parse(store.run(parent).config), "grandchild", parent=(child, 4))
    newest = record_run(store, "newest, by itself")
    rows = re.findall(
        r'<td class="name"(?: style="--depth:(\d)")?><button [^>]*data-run="([^"]+)"',
        listing(views)[0],
    )
    assert rows == [
        ("", newest),
        ("", parent),
        ("1", child),
        ("2", grandchild),
    ]  # without the tree the newest run would be first
    assert re.findall(
        r'<td class="name"(?: style="--depth:(\d)")?><button', listing(views, search="child")[0]
    ) == ["", "1"]  # the parent is filtered away
    runs.refuse = None
    assert resume_run(runs, views, json.dumps([child])) == ""
    assert runs.commands == [("resume", child)]
