"""On which device a run trains, in the header, the status line and the table of runs."""

from __future__ import annotations

from dataclasses import replace

from recorded import FakeService, record_run

from grpo_core.runs.device_queue import Machine
from grpo_core.runs.manager import RunManager
from grpo_core.store import Store
from grpo_core.types import RunStatus
from ui.page import build_app
from ui.render import run_table, status, tables
from ui.tabs.run_list import search_runs

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
