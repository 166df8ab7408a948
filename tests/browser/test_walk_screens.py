"""The walk in a real page: all screens by keyboard on a phone and a desktop, and its controls."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from live_server import Server
from playwright.sync_api import Page, expect
from test_accessible import DESK, PHONE, tab_to, violations
from views import fits

from ui.render.learn_walk import NAMES, STAGES


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Iterator[Server]:
    """A server over a new file: nobody has trained anything yet."""
    server = Server(tmp_path_factory.mktemp("example") / "runs.sqlite", example=True)
    yield server
    server.close()


def title(page: Page, name: str):
    place = NAMES.index(name)
    return page.locator("#walk-title").get_by_text(f"{place + 1} · {STAGES[place].title}")


def test_all_screens_are_walked_by_keyboard_and_axe_finds_nothing(example, open_page):
    page = open_page(example, "?tab=learn&part=walk")
    page.emulate_media(reduced_motion="reduce")
    page.evaluate(AXE_SCRIPT)
    found = []
    for size, dark, key in ((DESK, False, "ArrowRight"), (PHONE, True, "ArrowLeft")):
        page.set_viewport_size(size)
        names = NAMES if key == "ArrowRight" else NAMES[::-1]
        for name in names:
            title(page, name).wait_for()
            expect(page.locator("#walk-numbers .walk-lead")).to_be_visible()
            found += violations(page, dark, size, parts=("#learn-walk",))
            assert fits(page), f"{name} scrolls sideways at {size['width']} px"
            page.keyboard.press(key)
        title(page, names[-1]).wait_for()  # the last screen stays
    assert found == []


def test_quick_presses_all_count_and_the_address_names_the_screen(example, open_page):
    page = open_page(example, "?tab=learn&part=walk")
    title(page, "prompt").wait_for()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    title(page, "ratio").wait_for()
    page.wait_for_url(re.compile("at=[0-9]+%2F[0-9]+%3Aratio"))
    page.reload()
    title(page, "ratio").wait_for()
    page.get_by_role("button", name="Previous").click()
    title(page, "advantages").wait_for()
    page.go_back()
    title(page, "ratio").wait_for()


def test_a_control_is_reached_by_keyboard_and_reset_takes_it_back(example, open_page):
    page = open_page(example, "?tab=learn&part=walk&at=:completions")
    title(page, "completions").wait_for()
    tab_to(page, "#walk-controls [name=size]")
    page.locator("#walk-controls [name=size]").fill("2")
    expect(page.locator("#walk-numbers .walk-changed")).to_contain_text("G 8 → 2")
    expect(page.locator("#walk-numbers li.out")).to_have_count(6)
    page.locator("#walk-title").click()
    for name in ("scores", "rewards", "advantages"):
        page.keyboard.press("ArrowRight")
        title(page, name).wait_for()
    expect(page.locator("#walk-numbers tbody th[scope=row]")).to_have_count(3)
    page.get_by_role("button", name="Reset").click()
    expect(page.locator("#walk-numbers .changed")).to_have_count(0)
    expect(page.locator("#walk-numbers tbody th[scope=row]")).to_have_count(9)


def test_a_number_leads_to_its_group_in_inspect_and_another_group_is_picked(example, open_page):
    page = open_page(example, "?tab=learn&part=walk&at=:advantages")
    title(page, "advantages").wait_for()
    choice = page.locator("#walk-head [name=group]")
    choice.select_option(index=2)
    chosen = choice.input_value()
    page.wait_for_url(re.compile(f"at={chosen.replace('/', '%2F')}%3Aadvantages"))
    step, position = chosen.split("/")
    link = page.locator("#walk-numbers th a").first
    expect(link).to_have_attribute("href", re.compile(f"step={step}&group={int(position) + 1}\\b"))
    link.click()
    page.locator("#look-body article").first.wait_for()
    expect(page.locator("#opened-group")).to_contain_text(f"group {int(position) + 1}")
    page.wait_for_url(re.compile(f"step={step}&group={int(position) + 1}"))
    page.go_back()
    title(page, "advantages").wait_for()
    assert choice.input_value() == chosen
