"""Runs of other trainers on the page, without a browser: whose numbers, and what is offered."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from foreign import HIGH, RUN, TEXTS, a_step, record_foreign, with_tokens
from recorded import FakeService, record_run

from grpo_core.analysis import what_if
from grpo_core.analysis.advisor import advise
from grpo_core.analysis.html_report import write_report
from grpo_core.errors import StudioError
from grpo_core.records.record import SourceGroup, SourceRollout, SourceRun, SourceStep
from grpo_core.runs.resume import plan_branch, plan_resume
from grpo_core.types import RunStatus
from ui.components import form
from ui.render.place import Place
from ui.render.run_table import run_table
from ui.render.tables import Sort
from ui.tabs import run_control
from ui.tabs.inspect_group import GroupInputs, ShowGroup
from ui.tabs.learn_walk import ShowWalk
from ui.tabs.play_answers import PlayInputs, reply_to
from ui.tabs.playground import ShowPlayground
from ui.tabs.run_list import settings
from ui.tabs.run_offers import offers
from ui.tabs.start_bar import QUEUE, START, start_label
from ui.tabs.start_from import copy_run

BARE = SourceRun(trainer="table", format="table", key="bare", name="texts only")


@pytest.fixture
def run(store, views):
    return views.run(record_foreign(store))


@pytest.fixture
def bare(store, views):
    """A run of which only texts are known."""
    rollouts = tuple(SourceRollout(text=t) for t in TEXTS)
    steps = tuple(
        SourceStep(step=s, groups=(SourceGroup(prompt="p", rollouts=rollouts),)) for s in (1, 2)
    )
    return views.run(record_foreign(store, BARE, steps))


def opened(views, run, step, position, view="cards", options=None):
    given = GroupInputs(view, "sampled", json.dumps({view: options or {}}), "{}")
    head, _, body, _ = ShowGroup(views)(run, Place(step, position), given)
    return head, body


def test_inspect_says_what_was_recorded_and_what_is_absent(views, run):
    head, body = opened(views, run, 1, 0)
    assert "recorded by <b>TRL 1.16.0</b>: prompts, completions" in head
    assert "absent: tokens" in head
    assert 'title="Not known: the records of TRL 1.16.0 have no tokens."' in body
    assert "advantage, recorded by TRL 1.16.0" in body


def test_a_disagreement_shows_both_numbers_and_the_estimator(views, run):
    head, _ = opened(views, run, 2, 1)
    assert "advantages disagree" in head
    assert "Recomputed with group_std: <code>A = (r − mean)/(std + 1e-4)</code>" in head
    # The second completion: reward 0, recorded +0.8659, recomputed −0.8659.
    assert "<td>0.000</td><td><b>+0.8659</b></td><td><b>−0.8659</b></td><td>+1.7318</td>" in head
    assert "= −0.87, but +0.87 was recorded" in head or "= +0.87, but −0.87 was recorded" in head
    head, _ = opened(views, run, 2, 0)
    assert "was recorded" not in head


def test_the_advisor_names_the_group_that_disagrees(store, run):
    notice = next(n for n in advise(store, run.id) if n.code == "disagreement")
    assert store.group(notice.group_id).verdict == "disagrees"
    assert "1 group has recorded advantages" in notice.message
    own = record_run(store)
    assert "disagreement" not in [n.code for n in advise(store, own)]


def test_groups_that_disagree_can_be_filtered(store, run):
    assert store.groups(run.id, verdict="disagrees").total == 1


def test_the_own_estimator_gives_the_recorded_advantages(store, run):
    group_id = store.group_ids(run.id, 1)[0]
    answer = what_if.what_if(store, run.id, what_if.settings(run.config), group_id)
    assert [r.advantage for r in answer.rollouts] == [HIGH, -HIGH, -HIGH, HIGH]
    assert answer.largest_change < 1e-12


def test_what_if_without_rewards_claims_no_stored_advantage(views, bare):
    _, body = opened(views, bare, 1, 0, "whatif")
    assert "have no advantages" in body
    assert "0.000" not in body.split("A then")[0]


def test_a_run_of_texts_shows_no_zeros(views, bare):
    assert bare.source.recomputed == {}
    head, body = opened(views, bare, 1, 0)
    assert "So there is nothing to compare." in head
    assert '<b title="Not known: the records of the table have no advantages.">–</b>' in body
    walk = ShowWalk(views)(bare.id, "1/0", "{}", "{}")[1]
    assert "This run cannot be walked" in walk


def test_tokens_say_what_was_not_recorded(views, store, run):
    _, body = opened(views, run, 1, 0, "tokens")
    assert "Not known: the records of TRL 1.16.0 have no tokens." in body
    steps = (with_tokens(a_step(1)),)
    other = views.run(record_foreign(store, replace(RUN, key="two"), steps))
    _, body = opened(views, other, 1, 0, "tokens", {"by": "kl"})
    assert "&lt;answer&gt;" in body
    assert "have no log-probabilities of the reference" in body


def test_no_action_is_offered_that_needs_its_weights(views, run):
    bar = offers(views, [run], 0, True)
    refused = {a.label: a.refusal for a in [*bar.actions, *bar.exports, *bar.more]}
    here = "TRL 1.16.0 trained this run; its weights are not here."
    for label in ("Resume", "Branch from step…", "Export model", "Push to Hub"):
        assert refused[label] == here, label
    assert "are not here" in refused["Export command"]
    assert [refused[label] for label in ("Open", "Copy settings", "Report", "Export CSV")] == [
        ""
    ] * 4


def test_commands_to_it_are_refused_everywhere(views, store, run):
    live = record_foreign(store, replace(RUN, key="live"), status=RunStatus.RUNNING)
    going = views.run(live)
    assert "takes no commands" in run_control.ended(going)
    assert not any(button["interactive"] for button in run_control.states(going))
    for plan in (lambda: plan_resume(store, run.id), lambda: plan_branch(store, run.id, None, {})):
        with pytest.raises(StudioError, match="its weights are not here"):
            plan()


def test_a_live_run_elsewhere_blocks_no_device_here(views, store):
    record_foreign(store, replace(RUN, key="live"), status=RunStatus.RUNNING)
    assert start_label(views.runs()) == START
    record_run(store, "own", status=RunStatus.RUNNING)
    assert start_label(views.runs()) == QUEUE


def test_the_playground_says_why_it_has_no_answer(views, run):
    out = ShowPlayground(views, FakeService())(run.id, "{}", "", "{}", None, None)
    assert "its weights are not here" in out[0]
    assert out[2]["choices"] == out[4]["choices"] == []
    given = PlayInputs("2+2", "4", run.id, 0, run.id, 0, 2, "1")
    said = json.loads(reply_to(views, FakeService(), json.dumps({"run": run.id, "id": "q"}), given))
    assert "its weights are not here" in said["html"]


def test_copy_settings_takes_what_means_the_same_and_names_the_rest(views, run):
    *values, message = copy_run(views, run.id)
    copied = dict(zip(form.NAMES, values, strict=False))
    assert copied["train.group_size"] == 4
    assert copied["algorithm.kl_coef"] == "0.04"
    assert copied["model.name"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert copied["task.name"] == "sums"  # the default: prompts cannot be copied
    assert copied["rubric.name"] == "answer"
    assert "Without a counterpart here: dataloader_num_workers" in message
    assert "Choose the prompts and the rubric yourself" in message


def test_compared_settings_are_only_those_that_are_known(views, run):
    [known] = settings(views, [run]).values()
    assert known["train.learning_rate"] == 1e-6
    assert "task.name" not in known
    assert "train.temperature" not in known


def test_the_table_names_the_trainer_and_leaves_places_empty(views, store, run, bare):
    html = run_table([run, bare], [], None, Sort("created", True))
    assert html.count('class="pill trainer"') == 2
    assert "correct, format" in html
    assert 'title="Not known: the records of the table have no name of its model."' in html
    assert "not recorded" not in html
    assert views.label(run) == "gsm8k, TRL · TRL 1.16.0"


def test_an_empty_curve_says_who_did_not_record_it(views, run):
    from ui.render.charts import View

    assert views.figure("kl", [run.id], View())["empty"] == "Not recorded by TRL 1.16.0"


def test_the_report_says_whose_numbers_it_has(store, run):
    out = io.StringIO()
    write_report(store, run.id, out)
    assert "<h2>Recorded by TRL 1.16.0</h2>" in out.getvalue()
    assert "<p>1 group has recorded advantages that its rewards do not give.</p>" in out.getvalue()
    assert "advantages disagree" in out.getvalue()


def test_what_another_trainer_wrote_is_shown_as_text(views, store):
    evil = "<img src=x onerror=alert(1)>"
    hostile = replace(RUN, trainer=evil, key="evil", name=evil, settings={evil: evil})
    run = views.run(record_foreign(store, hostile))
    head, body = opened(views, run, 2, 1)
    table = run_table([run], [], None, Sort("created", True))
    pages = [head, body, table, views.run_banner(run), views.status_line(run)]
    pages.append(copy_run(views, run.id)[-1])
    assert not any("<img" in page for page in pages)
