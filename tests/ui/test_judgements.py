"""Judging pairs without a browser: what a request stores, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from acting_runs import REASON, record_acting_run, two_trajectories
from recorded import record_run
from stored import group, recorded

from grpo_core.errors import StoreBusy
from grpo_core.preferences.agreement import Agreement, Summary
from grpo_core.preferences.pairs import pair_of
from grpo_core.store import preferences
from grpo_core.types import GroupsScored
from ui.render import pairs as render
from ui.server import pair_ref
from ui.tabs.frame import SKIP
from ui.tabs.pair_files import load_preferences, read_columns, save_preferences
from ui.tabs.pairs import ShowPairs


@pytest.fixture
def run_id(store):
    return record_run(store, steps=4)


def given(run_id, shown="{}", made="[]", seen="{}", **more):
    values = {
        "tab": "inspect", "run": run_id, "mode": "compare", "who": " Ada ", "everywhere": False,
        "seed": "7", "shown": shown, "made": made, "seen": seen,
    }  # fmt: skip
    return list({**values, **more}.values())


def press(show, values, **data):
    return show.judge(SimpleNamespace(_data=data), *values)


def test_nothing_is_sent_while_groups_are_explored_or_nothing_changed(views, run_id):
    show = ShowPairs(views)
    assert show(*given(run_id, mode="explore")) == [SKIP] * 5
    assert show(*given(run_id, tab="train")) == [SKIP] * 5
    html, _, shown, made, seen = show(*given(run_id))
    assert 'aria-label="Left answer"' in html
    assert show(*given(run_id, shown, made, seen)) == [SKIP] * 5


def test_another_persons_judgement_changes_the_counts_but_not_the_pair(views, run_id):
    show = ShowPairs(views)
    _, _, shown, made, seen = show(*given(run_id))
    press(show, given(run_id, shown, who="Bob"), verdict="left")
    html, counts, still, _, _ = show(*given(run_id, shown, made, seen))
    assert (html, still) == (SKIP, SKIP)
    assert "judged" in counts


def test_a_verdict_is_about_what_was_shown(views, store, run_id):
    show = ShowPairs(views)
    html, _, shown, _, _ = show(*given(run_id))
    _, _, _, made, _, notice = press(show, given(run_id, shown), verdict="right", seconds="2.5")
    [row] = preferences.read(store)
    assert f"<pre>\n{row.prompt}" in html.replace(
        ' class="asked" aria-label="Prompt" role="group"', ""
    )
    assert (row.verdict, row.who, row.seconds, row.source) == ("right", "Ada", 2.5, "page")
    assert (row.run_id, json.loads(made), notice) == (run_id, [[row.id]], "")


def test_the_same_press_twice_is_stored_once(views, store, run_id):
    show = ShowPairs(views)
    _, _, shown, _, _ = show(*given(run_id))
    press(show, given(run_id, shown), verdict="left")
    html, *_ = press(show, given(run_id, shown), verdict="left")
    assert "It was judged already under this name." in html
    assert len(preferences.read(store)) == 1


def test_a_pair_whose_run_was_deleted_is_not_judged(views, store, run_id):
    show = ShowPairs(views)
    _, _, shown, _, _ = show(*given(run_id))
    store.delete(run_id)
    recorded(store, GroupsScored(1, [group()]))  # it may get the deleted group's id
    html, *_ = press(show, given(None, shown, everywhere=True), verdict="left")
    assert "its run was deleted" in html
    assert preferences.read(store) == []


@pytest.mark.parametrize("shown", [
    "", "[]", "{}", '{"group": 1}', '{"group": true, "left": 0, "right": 1}',
    '{"group": 1, "left": 0, "right": 0}', '{"group": 1, "left": 0, "right": 99}',
    '{"group": 1, "left": "0", "right": 1}', '{"row": 5}', '{"row": [1]}', '{"group": 1e999}',
    '{"group": 99999999999999999999999, "left": 0, "right": 1}', '{"order": [0, 1]}',
    '{"group": 1, "order": [0, 0]}', '{"group": 1, "order": [[], 1]}',
])  # fmt: skip
def test_whatever_a_browser_sends_instead_of_a_pair_is_refused(views, store, run_id, shown):
    press(ShowPairs(views), given(run_id, shown), verdict="left", order="0,1")
    assert preferences.read(store) == []


@pytest.mark.parametrize("data", [{}, {"verdict": "best"}, {"verdict": ["left"]}, {"order": "0,1"}])
def test_an_unknown_verdict_is_refused(views, store, run_id, data):
    show = ShowPairs(views)
    _, _, shown, _, _ = show(*given(run_id))
    press(show, given(run_id, shown), **data)
    assert preferences.read(store) == []


@pytest.mark.parametrize("order", ["1,0", "0,0", "0", "0,1,2", "", "x", None])
def test_a_ranking_names_each_place_once(views, store, run_id, order):
    show = ShowPairs(views)
    _, _, shown, _, _ = show(*given(run_id, mode="rank"))
    press(show, given(run_id, shown, mode="rank"), order=order)
    assert len(preferences.read(store)) == (order == "1,0")


@pytest.mark.parametrize("seconds", ["nan", "inf", "-5", "x", None, 1e9])
def test_the_time_of_a_judgement_is_a_sane_number_or_none(views, store, run_id, seconds):
    show = ShowPairs(views)
    _, _, shown, _, _ = show(*given(run_id))
    press(show, given(run_id, shown), verdict="tie", seconds=seconds)
    [row] = preferences.read(store)
    assert row.seconds is None or 0 <= row.seconds <= 86400


def test_nobody_takes_back_what_another_person_judged(views, store, run_id):
    show = ShowPairs(views)
    _, _, shown, _, _ = show(*given(run_id))
    *_, made, _, _ = press(show, given(run_id, shown), verdict="left")
    show.undo(*given(run_id, shown, made, who="Bob"))
    assert len(preferences.read(store)) == 1
    html, *_ = show.undo(*given(run_id, shown, made))
    assert "Taken back." in html
    assert preferences.read(store) == []
    for odd in ("", "[1]", "[[true]]", '{"a": 1}', "[" * 5000):
        assert "nothing to take back" in show.undo(*given(run_id, shown, odd))[0]


def test_a_file_that_another_process_holds_is_said(views, run_id, monkeypatch):
    show = ShowPairs(views)
    _, _, shown, _, _ = show(*given(run_id))

    def busy(*_):
        raise StoreBusy("--db 'x' is in use: another process is writing to it.")

    monkeypatch.setattr(preferences, "add", busy)
    *unchanged, notice = press(show, given(run_id, shown), verdict="left")
    assert unchanged == [SKIP] * 5
    assert "Nothing was stored." in notice
    assert "another process is writing to it" in notice


@pytest.mark.parametrize("mode", ["compare", "rank"])
def test_trajectories_are_judged_in_turns_as_cards_show_them(views, store, mode):
    acting = record_acting_run(store, groups=two_trajectories)
    html, *_ = ShowPairs(views)(*given(acting, mode=mode))
    assert html.count('<li class="action">') == 4
    assert html.count("<summary>") == 2
    assert f"error:</b> {REASON}" in html
    assert "0.25" not in html  # no reward
    assert "&lt;result&gt;" not in html  # the flat text


def test_a_judged_trajectory_comes_again_in_turns(views, store):
    acting = record_acting_run(store, groups=two_trajectories)
    show = ShowPairs(views)
    _, _, shown, made, _ = show(*given(acting))
    *_, made, _, _ = press(show, given(acting, shown, made), verdict="left")
    [row] = preferences.read(store)
    pair = replace(pair_of(row).swapped, group_id=row.group_id)
    left, right = pair_ref.answers_of(store, pair)
    assert [left.text, right.text] == [row.right, row.left]
    assert all(answer.turns for answer in (left, right))
    store.delete(acting)
    recorded(store, GroupsScored(1, [group()]))  # it may get the deleted group's id
    assert [a.turns for a in pair_ref.answers_of(store, pair)] == [(), ()]


def test_when_every_pair_is_judged_the_page_says_so(views, store, run_id):
    show = ShowPairs(views)
    _, _, shown, _, _ = show(*given(run_id))
    for _ in range(4):
        html, _, shown, _, _, _ = press(show, given(run_id, shown), verdict="left")
    assert "There is nothing left to judge here" in html
    assert len(preferences.read(store)) >= 4


def test_agreement_is_shown_with_its_number_of_pairs():
    found = Summary(12, 1, Agreement(2, 0.5, None), {"<b>": Agreement(9, 0.89, 0.777)})
    html = render.counts(found)
    assert "<b>12</b> judged · <b>1</b> skipped" in html
    assert "with yourself κ <b>–</b>, 50 % equal of 2 pairs" in html
    assert "with &lt;b&gt; κ <b>0.78</b>, 89 % equal of 9 pairs" in html


def test_files_are_named_and_errors_name_no_path_of_the_server(views, store, tmp_path):
    assert save_preferences(views, "jsonl")[0] is None
    assert save_preferences(views, "../x") == [None, ""]
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": 1}\n')
    notice, _ = load_preferences(views, str(file), "", "")
    assert "Nothing was imported." in notice
    assert "mine.jsonl" in notice
    assert str(tmp_path) not in notice
    assert "uploads" not in notice


def test_columns_of_an_import_are_read_as_typed():
    assert read_columns(" chosen = a b, rejected=c.d ,") == {"chosen": "a b", "rejected": "c.d"}
    assert read_columns("") == {}
