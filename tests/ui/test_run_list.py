"""The Runs tab without a browser: what is offered, comparison, export, branches and deletion."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from recorded import FakeService, record_run

from grpo_core.config import PRESETS, nest, parse
from grpo_core.errors import StudioError
from grpo_core.store import Recorder
from grpo_core.types import (
    Checkpointed,
    Completion,
    Evaluated,
    Group,
    ModelLoaded,
    Prompt,
    Rollout,
    RunStatus,
)
from ui.components import form
from ui.render.changed import changed
from ui.render.run_bar import Bar
from ui.tabs import exports, run_actions
from ui.tabs.run_actions import ask_branch, branch_run, describe_run, read_changes, resume_run
from ui.tabs.run_list import NUM_DIALOGS, ShowRuns
from ui.tabs.run_offers import ONE, offers

COMPARE = 2 + NUM_DIALOGS  # in the outputs of ShowRuns: after the table, the bar, the questions


def preset(name):
    return {f"algorithm.{field}": value for field, value in PRESETS[name].items()}


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
    compare, figures, differ = out[COMPARE], out[COMPARE + 2 : COMPARE + 5], out[COMPARE + 6]
    assert compare["visible"] is True
    assert [entry["name"] for entry in figures[0]["legend"]] == ["a", "b"]
    assert "train.seed" in differ
    assert "train.steps" not in differ


def refused(bar: Bar) -> dict[str, str]:
    """What is refused, and why."""
    actions = (*bar.actions, *bar.exports, *bar.more)
    return {action.label: action.refusal for action in actions if action.refusal}


def test_an_action_that_would_be_refused_says_why(views, store):
    a, b = record_run(store), record_run(store)
    live = record_run(store, status=RunStatus.RUNNING)
    save_step(store, b, 3)

    def of(*run_ids: str) -> dict[str, str]:
        return refused(offers(views, [views.run(i) for i in run_ids], 0, may_push=True))

    unsaved = "No step of this run is saved. Set “Checkpoint every” in a new run."
    done = "This run has done all its steps. Branch from its last one to go on."
    alone = {"Compare": "Select two or more runs."}
    needs_saved = ("Branch from step…", "Export model", "Push to Hub")
    assert of(a) == {"Resume": done, **alone, **dict.fromkeys(needs_saved, unsaved)}
    assert of(b) == {"Resume": done, **alone}
    two = of(a, b)
    assert set(two.values()) == {ONE}
    assert not {"Compare", "Delete"} & set(two)
    assert of(live)["Resume"] == "This run is going on already."
    assert of(live)["Delete"] == f"“{views.label(views.run(live))}” is running. Stop it first."
    nowhere = refused(offers(views, [views.run(b)], 0, may_push=False))
    assert "does not push" in nowhere["Push to Hub"]


def save_step(store, run_id, step):
    with Recorder(store, run_id) as record:
        path = store.checkpoint_folder(run_id) / f"step-0000000{step}"
        record(Checkpointed(step, str(path), 1_500_000, "0" * 64))


def test_a_settings_file_of_another_version_is_not_copied(views, store):
    run_id = record_run(store)
    with store.writing() as writer, writer.transaction() as db:
        db.execute("UPDATE runs SET config = json_set(config, '$.train.old', 1), revision = 99")
    why = refused(offers(views, [views.run(run_id)], 0, may_push=True))
    assert "cannot read its settings" in why["Copy settings"]
    assert why["Export TRL script"] == why["Copy settings"]


def test_the_bar_counts_selected_runs_that_the_search_leaves_out(views, store):
    a, b = record_run(store, "apple"), record_run(store, "pear")
    assert "2 runs selected · 1 not in the list" in listing(views, [a, b], search="pear")[1]


def test_a_search_finds_runs_by_tag_note_and_changed_setting(views, store):
    run_id = record_run(store, "plain", **{"algorithm.kl_coef": 0.5})
    record_run(store, "other")
    store.annotate(run_id, ["keep", "keep", " "], "ran <b>hot</b>")
    for search in ("#keep", "HOT ran", "kl 0.5"):
        table = listing(views, search=search)[0]
        assert table.count("<tr class") == 1, search
        assert "plain" in table
        assert "ran &lt;b&gt;hot&lt;/b&gt;" in table


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
    question, asked = run_actions.ask_delete(views, json.dumps([gone]))
    assert '“<span class="cut">&lt;b&gt;gone&lt;/b&gt;</span>”?' in question
    assert "50 steps" in question
    assert asked == json.dumps([gone])
    assert store.run(gone)
    assert run_actions.ask_delete(views, json.dumps([live]))[1] == "[]"
    both = json.dumps([gone, live])
    message, confirm, selected = run_actions.delete_runs(views, both, both)
    assert "Deleted 1 run" in message
    assert "freed" in message
    assert "Stop it first" in message  # the store refuses the live run too
    assert (confirm["visible"], selected) == (False, json.dumps([live]))


def test_a_question_deletes_the_runs_it_named_not_the_selected_ones(views, store):
    named, selected = record_run(store, "named"), record_run(store, "selected")
    *_, kept = run_actions.delete_runs(views, json.dumps([named]), json.dumps([selected]))
    assert [run.id for run in store.runs()] == [selected]
    assert kept == json.dumps([selected])


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


def test_a_run_gets_a_name_tags_and_a_note(views, store):
    run_id = record_run(store)
    typed = {"run": run_id, "name": " new ", "tags": "#keep, first try,", "note": " why "}
    assert describe_run(views, typed) == ""
    run = store.run(run_id)
    assert (run.name, run.tags, run.note) == ("new", ("keep", "first try"), "why")
    assert "needs a name" in describe_run(views, typed | {"name": "  "})
    assert "was deleted" in describe_run(views, typed | {"run": ["x"]})


def test_runs_of_one_name_are_distinguished_in_every_list(views, store):
    a, b = record_run(store, "same"), record_run(store, "same", 2)
    labels = [f"same · {run_id.rpartition('-')[2]}" for run_id in (a, b)]
    assert sorted(label for label, _ in views.choices()) == sorted(labels)
    out = listing(views, [a, b])
    assert [entry["name"] for entry in out[COMPARE + 2]["legend"]] == labels
    assert all(label in out[COMPARE + 5] for label in labels)
    assert all(label in out[COMPARE + 6] for label in labels)


def test_a_branch_starts_from_a_checkpoint_and_is_listed_below_its_parent(views, store, runs):
    parent = record_run(store, "the <parent>")
    assert ask_branch(views, json.dumps([parent]))[-1] == "[]"
    save_step(store, parent, 2)
    save_step(store, parent, 3)
    question, which, until, _, _, asked = ask_branch(views, json.dumps([parent]))
    assert "Saved steps: 2, 3." in question
    assert "the &lt;parent&gt;" in question
    assert (which["choices"], which["value"]) == (
        [("step 3 · 1.5 MB", 3), ("step 2 · 1.5 MB", 2)],
        3,
    )
    assert (until, asked) == ("6", json.dumps([parent]))  # its 3 steps once more
    typed = {"train.steps": "6", "train.learning_rate": " ", "": "train.seed=4"}
    branch_run(runs, views, asked, 3, typed)
    assert runs.commands == [("branch", parent, 3, {"train.steps": 6, "train.seed": 4})]
    runs.commands.clear()
    wrong = branch_run(runs, views, asked, 3, {"": "no equals sign"})
    assert "No branch was started" in wrong[-1]
    runs.refuse = StudioError("train.steps = 2: the branch <b>starts</b> after step 3.")
    assert "&lt;b&gt;starts" in branch_run(runs, views, asked, 3, {"train.steps": "2"})[-1]
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


def test_settings_are_copied_into_the_form(views, store):
    run_id = record_run(store, "source", **{"algorithm.kl_coef": 0.0, "train.seed": 7})
    *values, _, notice = run_actions.copy_settings(views, json.dumps([run_id]))
    flat = dict(zip(form.NAMES, values, strict=True))
    assert (float(flat["algorithm.kl_coef"]), int(flat["train.seed"])) == (0, 7)
    assert "“source”" in notice


@pytest.mark.parametrize(
    ("settings", "chips"),
    [
        ({"algorithm.kl_coef": 0.0}, ["kl 0"]),
        ({"algorithm.preset": "DAPO", **preset("DAPO")}, []),
        ({"train.seed": 3, "rubric.gate": True}, ["gate on", "seed 3"]),
        ({"train.learning_rate": 1e-4}, []),  # what an empty field stands for, at this size
        ({"train.learning_rate": 5e-5}, ["learning rate 5e-05"]),
    ],
)
def test_chips_show_what_differs_from_the_preset(store, settings, chips):
    run_id = store.create_run(parse(nest(settings)), "a run")
    with Recorder(store, run_id) as record:
        record(ModelLoaded({"parameters": 800_000}))
    assert [change.short for change in changed(store.run(run_id))] == chips


def test_a_comparison_tells_the_difference_with_its_interval(views, store):
    low, high = evaluated(store, 0.4, 0.3, 0.5), evaluated(store, 0.8, 0.7, 0.9)
    table = listing(views, [low, high])[COMPARE + 5]
    # ± √(0.1² + 0.1²) = 0.14 around 0.8 − 0.4
    assert "<b>+40</b> points" in table
    assert "[+26 to +54]" in table
    assert "80 % <span" in table
    other = record_run(store, "other task", **{"task.name": "sort"})
    assert "no evaluation after training" in listing(views, [low, other])[COMPARE + 5]


def test_recorded_held_out_answers_are_compared_pair_by_pair(views, store):
    low = evaluated(store, 0.4, 0.3, 0.5, right="ab")
    high = evaluated(store, 0.8, 0.7, 0.9, right="bcd")
    table = listing(views, [low, high])[COMPARE + 5]
    # of the four prompts a is lost, c and d are won
    assert "pair by pair on 4 recorded prompts:</span> <b>+25</b> points" in table


def evaluated(store, accuracy, low, high, right=""):
    """A run with a last evaluation. right: of the prompts a to d those it answers."""
    run_id = record_run(store, f"reaches {accuracy}")
    bounds = {"heldout/accuracy_low": low, "heldout/accuracy_high": high}
    groups = tuple(answered(prompt, prompt in right) for prompt in "abcd") if right else ()
    with Recorder(store, run_id) as record:
        record(Evaluated(3, {"heldout/accuracy": accuracy, **bounds}, groups))
    return run_id


def answered(prompt, is_right):
    answer = Rollout(Completion("7", "stop", 1), {"accuracy": float(is_right)}, None, None)
    return Group(Prompt(prompt, f"Q: {prompt}", "7", "sums"), (answer,), None, None, "evaluation")
