"""A first visit: every tab shows the recorded example run, until it is deleted for good."""

from __future__ import annotations

import pytest
from live_server import Server
from playwright.sync_api import expect
from views import ends, wait_until

from grpo_core.store import Store


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "runs.sqlite", example=True)
    yield server
    server.close()


def meet(page) -> None:
    """The set-up opens by itself with the example beside it, until a person closes it."""
    page.set_viewport_size({"width": 1440, "height": 900})
    expect(page.get_by_role("button", name="Check model")).to_be_visible()
    expect(page.locator("#group article").first).to_be_visible()
    pane, run = page.locator("#new-run-pane"), page.locator("#live")
    wait_until(lambda: ends(pane, "x", "width") <= run.bounding_box()["x"])
    wait_until(lambda: ends(run, "x", "width") <= 1440)
    welcome = page.get_by_text("Every setting may stay as it is.")
    wait_until(lambda: welcome.bounding_box()["y"] < 250)  # what to press is said first
    expect(page.locator("#pane-head")).to_contain_text("a recorded example")
    page.locator("#setup-cards [data-section=rubric]").click()  # takes the whole width
    expect(page.locator("#live")).to_be_hidden()
    expect(welcome).to_be_hidden()
    page.keyboard.press("Escape")
    for _ in range(2):
        expect(page.locator("#curve-kl")).to_be_visible()
        expect(page.locator("#new-run-pane")).to_be_hidden()
        card, bar = page.locator("#group article").first, page.locator("#start-dock")
        wait_until(lambda card=card, bar=bar: ends(card) <= bar.bounding_box()["y"])
        page.reload()
        page.locator("#group article").first.wait_for()


def test_a_first_visit_finds_an_example_in_every_tab(server, open_page):
    page = open_page(server)
    meet(page)
    expect(page.get_by_label("Run", exact=True)).to_have_value("Sums of three numbers (example)")
    expect(page.locator(".status")).to_contain_text("example")
    page.get_by_role("tab", name="Inspect").click()
    page.locator("table.groups tbody tr").first.wait_for()
    page.get_by_role("tab", name="Playground").click()
    page.get_by_text("This is the recorded example. Its trained weights are not shipped").wait_for()
    page.get_by_role("tab", name="Runs").click()
    row = page.locator("table.runs tbody tr")
    row.locator(".pill").filter(has_text="example").wait_for()
    row.get_by_role("checkbox").click()
    page.get_by_role("button", name="More", exact=True).click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete for good").click()
    page.get_by_text("Your runs appear here").wait_for()
    server.close()
    server.start()
    assert Store(server.db).runs() == []
