"""On which device a run trains, in the header, the status line and the table of runs."""

from __future__ import annotations

from dataclasses import replace

from recorded import FakeService, record_run

from grpo_core.runs.device_queue import Machine
from grpo_core.runs.manager import RunManager
from grpo_core.store import Recorder, Store
from grpo_core.types import LOST, WAITING, Noticed, Restarted, RunStatus
from ui.components import form, form_help
from ui.page import build_app
from ui.render import charts, run_table, status, tables
from ui.server.views import Views
from ui.tabs.form_fields import default_values
from ui.tabs.run_list import search_runs
from ui.tabs.setup_cards import cards

ENV = {
    "device_name": "cuda:1",
    "dtype": "bfloat16",
    "precision": "bfloat16: this <card> computes in it.",
}


def run_on_a_card(store, **changes):
    return replace(store.run(record_run(store)), env=ENV, **changes)


def test_the_status_line_tells_device_and_precision_and_why(store):
    shown = '<span title="bfloat16: this &lt;card&gt; computes in it.">on cuda:1 in bfloat16</span>'
    for run_status in (RunStatus.RUNNING, RunStatus.FINISHED):
        run = run_on_a_card(store, status=run_status)
        assert shown in status.status_line(run, [], 0, None, 0.0)
    older = replace(run, env={"device": "CPU"})
    assert " in bfloat16" not in status.status_line(older, [], 0, None, 0.0)


def test_the_header_and_the_table_of_runs_name_the_device(store):
    run = run_on_a_card(store)
    assert 'title="on cuda:1"' in status.run_pill(run)
    table = run_table.run_table([run], [], run.id, tables.Sort("created", True))
    assert '<span class="by">on cuda:1</span>' in table
    assert search_runs([run, store.run(run.id)], "cuda:1") == [run]


def test_on_a_cpu_the_table_says_it_in_a_tooltip_only(store):
    run = replace(run_on_a_card(store), env=ENV | {"device_name": "cpu"})
    table = run_table.run_table([run], [], run.id, tables.Sort("created", True))
    assert 'title="on cpu"' in table
    assert 'class="by">on cpu' not in table


def test_the_form_offers_the_devices_that_are_there(tmp_path):
    manager = RunManager(
        Store(tmp_path / "runs.sqlite"), lambda *_: None, machine=Machine("two", ("cuda:0", "cpu"))
    )
    page = build_app(manager.store, manager, FakeService())
    [control] = [b for b in page.blocks.values() if getattr(b, "label", "") == "Device"]
    assert [value for _, value in control.choices] == ["auto", "cuda:0", "cpu"]
    assert control.allow_custom_value  # a recorded run may name a device of another machine


# ---- several workers -----------------------------------------------------------------------------

SHARED = ENV | {"device_name": "cuda:0", "workers": 4, "nodes": 2, "devices": "4 × <H200>"}


def test_a_shared_run_tells_how_many_devices_on_how_many_nodes(store):
    run = replace(run_on_a_card(store), env=SHARED)
    line = status.status_line(run, [], 0, None, 0.0)
    assert "on 4 × cuda, 2 nodes in bfloat16" in line
    assert 'title="4 × &lt;H200&gt;. bfloat16: this &lt;card&gt; computes in it."' in line
    table = run_table.run_table([run], [], run.id, tables.Sort("created", True))
    assert '<span class="by">on 4 × cuda, 2 nodes</span>' in table
    assert status.device_of(replace(run, env=SHARED | {"nodes": 1})) == "4 × cuda"
    on_cpu = SHARED | {"device_name": "cpu", "nodes": 1, "workers": 2}
    table = run_table.run_table([replace(run, env=on_cpu)], [], "", tables.Sort("created", True))
    assert '<span class="by">on 2 × cpu</span>' in table


def test_damaged_facts_of_a_run_are_shown_as_one_device(store):
    for wrong in ({"workers": "4"}, {"workers": None}, {"workers": float("nan")}):
        assert status.device_of(replace(run_on_a_card(store), env=SHARED | wrong)) == "cuda:0"
    run = replace(run_on_a_card(store), config={"train": {"workers": ["<b>"]}})
    assert status.workers_of(run) == 1


def test_a_queued_run_says_how_many_devices_it_waits_for(store):
    run_id = record_run(store, **{"train.workers": 4, "train.prompts_per_step": 4})
    queued = replace(store.run(run_id), status=RunStatus.QUEUED)
    line = status.status_line(queued, [], 0, None, 0.0)
    assert "starts as soon as 4 devices for it are free" in line


def values(**changes):
    flat = dict(zip(form.NAMES, default_values(), strict=True))
    return list((flat | {name.replace("__", "."): v for name, v in changes.items()}).values())


def test_the_form_says_how_the_groups_are_shared_out():
    assert (
        "Each worker takes 2 of the 8 groups"
        in form_help.notes(values(train__workers=4))["train.workers"]
    )
    for odd in ("", None, "many", 0, -1, 1.5, True, 9):
        assert "group" not in form_help.notes(values(train__workers=odd))["train.workers"]


def test_the_card_of_the_run_names_the_workers_only_where_there_are_several():
    assert "workers" not in cards(values())
    assert "seed 0 · 4 workers" in cards(values(train__workers=4))
    config, problems = form.read(values(train__workers="4"))
    assert (config.train.workers, problems) == (4, [])


def test_the_form_shows_workers_where_a_run_can_have_several_devices(tmp_path):
    def pane_of(*devices):
        manager = RunManager(
            Store(tmp_path / "runs.sqlite"), lambda *_: None, machine=Machine("m", devices)
        )
        page = build_app(manager.store, manager, FakeService())
        [pane] = [b for b in page.blocks.values() if b.elem_id == "new-run-pane"]
        return " ".join(pane.elem_classes)

    assert "one-device" in pane_of("cuda:0", "cpu")
    assert "one-device" not in pane_of("cuda:0", "cuda:1", "cpu")


# ---- workers that were lost ----------------------------------------------------------------------


def test_lost_workers_are_told_in_notice_end_card_and_curve(store):
    run_id = record_run(store, status=RunStatus.RUNNING)
    views = Views(store)
    with Recorder(store, run_id) as record:
        record(Noticed(0, WAITING, "warning", "It needs 8 GPUs."))
        for _ in range(2):
            record(Restarted(2, "Worker 2 was lost: <killed>."))
    store.set_alerts(run_id, [])  # the advisor has nothing to say, and these stay
    live = views.advice(views.run(run_id))
    assert "Waits for devices" in live
    assert "Worker 2 was lost: &lt;killed&gt;." in live
    with Recorder(store, run_id) as record:
        record(Noticed(0, WAITING, "info", ""))
    assert [n.code for n in store.alerts(run_id)] == [LOST]
    store.set_status(run_id, RunStatus.FINISHED)
    ended = views.run(run_id)
    assert "Workers were lost 2 times; it went on from its last checkpoint." in views.run_banner(
        ended
    )
    [told] = [n.message for n in views.notices(ended) if n.code == LOST]
    assert told.endswith("started the workers again, and the run went on after step 2.")
    spoken = views.figure("reward", [run_id], charts.View())
    assert "workers lost, on from step 2" in str(spoken)


def test_a_run_that_lost_no_worker_says_nothing_of_it(store):
    run_id = record_run(store)
    assert "lost" not in Views(store).run_banner(store.run(run_id))
