"""A machine with several cards: workers in the form, refusals, and the devices of runs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from live_server import Server
from playwright.sync_api import expect
from set_up import card, field, fill, open_section
from views import fits


class FourCards(Server):
    program = "tests/browser/four_cards.py"


@pytest.fixture(scope="module")
def cards(tmp_path_factory) -> Iterator[Server]:
    server = FourCards(tmp_path_factory.mktemp("cards") / "runs.sqlite")
    yield server
    server.close()


def test_workers_take_devices_from_the_form_to_the_table_of_runs(cards, open_page):
    page = open_page(cards)
    expect(page.locator("#brand .chip")).to_have_text("4 GPUs: 4 × Pretended card, 80 GB")
    fill(page, "Workers", "4")
    expect(page.locator("#new-run-pane")).to_contain_text("Each worker takes 2 of the 8 groups")
    expect(card(page, "run")).to_contain_text("4 workers")
    fill(page, "Workers", "3")
    expect(page.locator("#new-run-pane")).to_contain_text("2 of 3 workers take 3 groups")
    fill(page, "Workers", "5")
    start = page.get_by_role("button", name="Start training")
    start.click()
    expect(page.locator("#new-run-pane")).to_contain_text(
        "This run can use 4 devices here. Use at most 4."
    )
    assert fits(page)
    fill(page, "Workers", "4")
    open_section(page, "model")
    page.get_by_role("button", name="Check model").click()
    expect(page.locator("#model-answer")).to_contain_text("bfloat16 on 4 × Pretended card, 80 GB")
    expect(page.locator("#model-answer")).to_contain_text("Memory of each worker")
    start.click()
    status = page.locator("#status")
    expect(status).to_contain_text("on 4 × cuda, 2 nodes in bfloat16")
    page.get_by_role("button", name="New run").click()
    fill(page, "Workers", "2")
    page.get_by_role("button", name="Queue another").click()
    expect(status).to_contain_text("then starts by itself")
    page.get_by_role("tab", name="Runs").click()
    expect(page.locator("#run-table")).to_contain_text("on 4 × cuda, 2 nodes")
    assert fits(page)


def test_one_device_shows_workers_only_where_settings_ask_for_them(
    idle_server, open_page, tmp_path
):
    page = open_page(idle_server)
    open_section(page, "run")
    expect(field(page, "Max new tokens")).to_be_visible()
    expect(page.locator("#field-train-workers")).to_be_hidden()
    (tmp_path / "config.json").write_text(json.dumps({"train": {"workers": 2}}))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="a file").click()
    chooser.value.set_files(tmp_path / "config.json")
    expect(card(page, "run")).to_contain_text("2 workers")
    open_section(page, "run")
    expect(field(page, "Workers")).to_have_value("2")
