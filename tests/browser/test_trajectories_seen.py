"""Completions of several turns in a real browser: cards, tokens, curves, search."""

from __future__ import annotations

import pytest
from acting_runs import REASON, record_acting_run, two_trajectories
from axe_playwright_python.base import AXE_SCRIPT
from live_server import Server
from playwright.sync_api import expect
from recorded import record_run
from test_accessible import DESK, PHONE, violations
from views import fits, look, pick_run

from grpo_core.store import Store


@pytest.fixture(scope="module")
def acting_server(tmp_path_factory):
    """A server over runs with turns, "acting" and "judged", and one without, "plain"."""
    db = tmp_path_factory.mktemp("acting") / "runs.sqlite"
    store = Store(db)
    record_run(store, "plain")
    acting = record_acting_run(store, "acting")
    judged = record_acting_run(store, "judged", two_trajectories)
    store.close()
    server = Server(db)
    server.acting, server.judged = acting, judged
    yield server
    server.close()


def test_a_call_unfolds_by_keyboard_and_stays_open(acting_server, open_page):
    page = open_page(acting_server, f"?run={acting_server.acting}&step=3&group=1")
    card = page.get_by_role("article", name="Completion 2")
    expect(card.locator("summary")).to_contain_text("calculate 34*57 → 1938")
    expect(card.locator(".score.end")).to_have_text("2 turns · ended · 39 tok")
    card.focus()
    page.keyboard.press("Tab")  # the turns, which scroll
    page.keyboard.press("Tab")
    expect(card.locator("summary")).to_be_focused()
    page.keyboard.press("ArrowRight")  # no group is turned while a person reads
    page.keyboard.press("Enter")
    expect(card.locator("dl")).to_be_visible()
    expect(page.locator("#group")).to_contain_text("group 1 of 2")
    with page.expect_response(lambda r: r.url.endswith("studio/show")):  # a poll brings nothing new
        pass
    expect(card.locator("dl")).to_contain_text("34*57")
    wrong = page.get_by_role("article", name="Completion 3")
    wrong.locator("summary").click()
    expect(wrong.locator("dl")).to_contain_text(REASON)


def test_curves_of_turns_are_shown_only_for_runs_with_turns(acting_server, open_page):
    page = open_page(acting_server, f"?run={acting_server.acting}")
    calls = page.locator("#curve-tool_calls_mean")
    expect(calls.locator(".scatterlayer .trace").first).to_be_visible()
    expect(calls.locator(".curve-title")).to_have_text("Tool calls")
    pick_run(page, "plain")
    expect(page.locator("#group")).to_contain_text("Q: 3+0=?")
    expect(calls).to_be_hidden()
    pick_run(page, "acting")
    expect(calls.locator(".scatterlayer .trace").first).to_be_visible()


def test_observed_tokens_are_grey_and_hovering_says_why(acting_server, open_page):
    page = open_page(acting_server, f"?run={acting_server.acting}&tab=inspect&step=1&group=1")
    look(page, "Tokens")
    page.locator("#look-controls select").select_option("1")
    grey = page.locator("#look-body .tok.observed")
    expect(grey).to_have_count(21)  # <result>1938</result>, a token a character
    grey.first.hover()
    says = page.locator(".token-says")
    expect(says).to_contain_text("written by the environment, not trained on")
    page.locator("#look-body .tok").first.hover()
    expect(says).to_contain_text("log p −0.500")
    expect(page.locator("#look-body .swatch.observed")).to_have_text("observation")


def test_search_and_filters_find_tool_calls(acting_server, open_page):
    page = open_page(acting_server, f"?run={acting_server.acting}&tab=inspect")
    page.locator("#list-mode").get_by_role("radio", name="Completions").check(force=True)
    table = page.locator("#group-table")
    expect(table).to_contain_text("of 24 completions")
    page.locator("#narrow select[name=calls]").select_option("failed")
    expect(table).to_contain_text("1–3 of 3 completions")
    page.locator("#narrow select[name=calls]").select_option("none")
    expect(table).to_contain_text("1–15 of 15 completions")
    page.locator("#narrow select[name=tool]").select_option("calculate")
    page.locator("#narrow select[name=calls]").select_option("")
    expect(table).to_contain_text("1–9 of 9 completions")
    page.get_by_label("Search completions").fill("not an arithmetic")
    expect(table).to_contain_text("1–3 of 3 completions")
    expect(table).to_contain_text("not an arithmetic")
    pick_run(page, "plain")
    expect(page.locator("#narrow select[name=calls]")).to_have_count(0)


def test_trajectories_are_accessible_and_fit_in_both_themes(acting_server, open_page):
    page = open_page(acting_server, f"?run={acting_server.acting}&step=3&group=1")
    page.emulate_media(reduced_motion="reduce")  # no colour halfway between two themes
    page.evaluate(AXE_SCRIPT)
    page.locator("#group summary").first.click()
    problems = []

    def check(part: str) -> None:
        for dark, size in ((False, DESK), (True, PHONE)):
            problems.extend(violations(page, dark, size, (part,)))
            assert fits(page), (part, size)

    check("#group")
    page.set_viewport_size(DESK)
    page.get_by_role("tab", name="Inspect").click()
    page.locator("#look-body summary").first.click()
    check("#look-body")
    page.set_viewport_size(DESK)
    look(page, "Through time")
    page.locator("#look-body .two .turns").first.wait_for()
    check("#look-body")
    page.set_viewport_size(DESK)
    look(page, "Tokens")
    page.locator("#look-controls select").select_option("1")
    page.locator("#look-body .tok.observed").first.wait_for()
    check("#look-body")
    assert not problems


def test_trajectories_are_judged_in_turns_by_keyboard(acting_server, open_page):
    page = open_page(acting_server, f"?run={acting_server.judged}&tab=inspect")
    page.emulate_media(reduced_motion="reduce")
    page.evaluate(AXE_SCRIPT)
    mode, problems = page.locator("#inspect-mode"), []

    def check() -> None:
        for dark in (False, True):
            for size in (PHONE, DESK):
                problems.extend(violations(page, dark, size, ("#pairs",)))
                assert fits(page), size

    mode.get_by_role("radio", name="Rank the group").check(force=True)
    items, last = page.locator(".ranking > li"), page.locator(".ranking summary").last
    last.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".ranking dl").last).to_be_visible()
    page.keyboard.press("Alt+ArrowUp")  # moves the answer, not its turn
    expect(page.locator(".pair-title")).to_contain_text("Answer B is 1 of 2.")
    expect(items.first).to_have_attribute("data-letter", "B")
    check()
    mode.get_by_role("radio", name="Compare").check(force=True)
    turns = page.locator(".side .turns")
    expect(turns).to_have_count(2)
    turns.first.press("ArrowDown")  # scrolls, and is no verdict
    expect(page.locator(".pair-title b")).to_have_text("Pair 1")
    page.locator(".side summary").first.click()
    expect(page.locator(".side dl").first).to_be_visible()
    check()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".pair-title b")).to_have_text("Pair 2")
    assert not problems
