"""Inspect in a real browser: history, the list, toggles, token colours. One server, one page."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

sys.path.insert(0, str(Path(__file__).parent.parent / "ui"))

from live_server import Server
from recorded import record_run

from grpo_core.store import Store

LONG_NAME = "a run with a long name, " * 8


@pytest.fixture(scope="module")
def recorded_server(tmp_path_factory):
    """A server over two finished runs: "first" of 3 steps, "second" of 4."""
    db = tmp_path_factory.mktemp("inspect") / "runs.sqlite"
    store = Store(db)
    first, second = record_run(store, "first"), record_run(store, "second", steps=4)
    store.close()
    server = Server(db)
    server.runs = {"first": first, "second": second}
    yield server
    server.close()


def requests_of(page) -> list[str]:
    """The names of the page's requests from now on, but for polls."""
    names: list[str] = []

    def note(request):
        if request.url.endswith("/studio/show") and "window" not in request.url:
            names.append(request.post_data_json["name"])

    page.on("request", note)
    return names


def test_back_returns_to_the_tab_the_run_and_the_group(recorded_server, open_page):
    first = recorded_server.runs["first"]
    page = open_page(recorded_server, f"?run={first}")
    expect(page.locator("#group")).to_contain_text("step 3")
    entries = page.evaluate("history.length")
    page.get_by_role("tab", name="Inspect").click()
    head = page.locator("#opened-group .group-head")
    expect(head).to_contain_text("Q: 3+0=?")
    page.get_by_role("button", name="Open group 2 of step 1").click()
    expect(head).to_contain_text("Q: 1+9=?")
    page.get_by_role("button", name="Open group 1 of step 2").click()
    expect(head).to_contain_text("Q: 2+0=?")
    page.get_by_label("Run", exact=True).click()
    page.get_by_role("option", name="second").click()
    expect(head).to_contain_text("Q: 4+0=?")
    page.wait_for_function("!location.search.includes('step')")
    assert page.evaluate("history.length") == entries + 4  # tab, group, group, run

    page.go_back()
    expect(head).to_contain_text("Q: 2+0=?")
    expect(page.get_by_label("Run", exact=True)).to_have_value("first")
    page.go_back()
    expect(head).to_contain_text("Q: 1+9=?")
    page.go_back()
    expect(head).to_contain_text("Q: 3+0=?")
    page.go_back()
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")
    assert f"run={first}" in page.url
    assert "tab=" not in page.url
    page.go_forward()
    page.go_forward()
    expect(head).to_contain_text("Q: 1+9=?")
    assert page.evaluate("history.length") == entries + 4  # nothing was added


def test_back_asks_once(recorded_server, open_page):
    page = open_page(recorded_server, f"?run={recorded_server.runs['first']}&tab=inspect")
    head = page.locator("#opened-group .group-head")
    page.get_by_role("button", name="Open group 2 of step 1").click()
    expect(head).to_contain_text("Q: 1+9=?")
    names = requests_of(page)
    page.go_back()
    expect(head).to_contain_text("Q: 3+0=?")
    with page.expect_request("**/studio/show") as after:  # the next poll
        pass
    assert after.value.post_data_json["name"] == "poll"
    assert names == ["arrive", "poll"]


def test_set_reward_says_why_it_is_disabled(recorded_server, open_page):
    page = open_page(recorded_server)
    page.get_by_role("button", name="Run control").click()
    expect(page.get_by_role("button", name="Set reward")).to_be_disabled()
    expect(page.locator("#edit-refusal")).to_have_text(
        "This run is finished: its rewards are final."
    )
