"""The page on a Hugging Face Space: the button to duplicate it, the storage note, the lease."""

from __future__ import annotations

import pytest
from recorded import FakeService, record_run

from grpo_core.config import nest, parse
from grpo_core.runs.zerogpu import measured_before
from grpo_core.store import Recorder
from grpo_core.types import ModelLoaded
from ui.page import build_app
from ui.render import run_end
from ui.tabs.form_fields import default_values
from ui.tabs.start_bar import show_outlook


def parts(app) -> list[dict]:
    return app.get_config_file()["components"]


@pytest.mark.parametrize("space", [True, False])
def test_the_page_can_be_duplicated_on_a_space_only(store, runs, space):
    page = parts(build_app(store, runs, FakeService(), space=space))
    assert any(c["props"].get("value") == "Duplicate this Space" for c in page) is space


def test_a_space_says_whether_its_runs_are_kept(store, runs):
    def shown(app):
        return [c["props"]["value"] for c in parts(app) if c["props"].get("elem_id") == "storage"]

    assert shown(build_app(store, runs, FakeService())) == []
    assert shown(build_app(store, runs, FakeService(), storage=lambda: "Copied <b> 3 s ago.")) == [
        '<p class="help storage">Copied &lt;b&gt; 3 s ago.</p>'
    ]


def test_a_lease_is_estimated_from_the_newest_run_of_that_size(store, runs):
    config = parse(nest({"train.steps": 3, "train.group_size": 2, "train.prompts_per_step": 2}))
    record_run(store)  # not in a lease
    assert measured_before(store.runs(), store.steps, config) is None
    run_id = record_run(store)
    with Recorder(store, run_id) as record:
        record(ModelLoaded({"lease_seconds": 60, "lease_begin_seconds": 5.0}))
    assert measured_before(store.runs(), store.steps, config) == (
        5.0,
        2.0,
    )  # every recorded step took 2 s
    assert measured_before(store.runs(), store.steps, parse(nest({"train.group_size": 4}))) is None

    service = FakeService("About 20 of 80 steps fit <i>")
    service.lease_seconds = 60
    assert "About 20 of 80 steps fit &lt;i&gt;" in show_outlook(service, default_values())
    assert [q for q, *_ in service.asked] == ["outlook"]
    page = parts(build_app(store, runs, service))
    assert any(
        "About 20" in str(c["props"].get("value"))
        for c in page
        if c["props"].get("elem_id") == "outlook"
    )


def test_only_a_run_stopped_by_a_limit_says_so(store):
    run_id = record_run(store)
    store.set_status(
        run_id,
        "stopped",
        "The GPU's lease of 60 s is over. Saved after step 3 of 9: "
        "press Resume for the next lease.",
    )
    said = run_end.run_banner(store.run(run_id))
    assert "<b>The GPU&#x27;s lease of 60 s is over.</b>" in said
    assert "press Resume" in said
    store.set_status(run_id, "stopped")
    assert "<b>Stopped after 3 of 3 steps.</b>" in run_end.run_banner(store.run(run_id))
