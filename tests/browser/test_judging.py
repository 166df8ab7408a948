"""Judging answers in a real browser: by keyboard, over a reload, by two people at once."""

from __future__ import annotations

import json
import time

import pytest
from live_server import Server
from playwright.sync_api import Page, expect
from recorded import HOSTILE, record_run
from views import arrive, wait_until
from watch import watched

from grpo_core.store import Recorder, Store, preferences
from grpo_core.types import Completion, Group, GroupsScored, Prompt, Rollout


def record_answers(store: Store, name: str, texts: list[str], groups: int) -> str:
    """A run whose step 1 has groups of these different answers."""
    run_id = record_run(store, name, steps=1)
    rollouts = tuple(
        Rollout(Completion(t, "stop", 4), {"accuracy": 0.25}, 0.25, 0.0) for t in texts
    )
    made = [
        Group(Prompt(f"{name}{n}", f"{name} asks {n}", "", "sums"), rollouts, 0.25, 0.0, "healthy")
        for n in range(groups)
    ]
    with Recorder(store, run_id) as record:
        record(GroupsScored(1, tuple(made)))
    return run_id


@pytest.fixture(scope="module")
def judged_server(tmp_path_factory):
    """A server over two runs: "plain" of 8 groups of 4 answers, "hostile" of one group."""
    db = tmp_path_factory.mktemp("pairs") / "runs.sqlite"
    store = Store(db)
    hostile = record_answers(store, "hostile", HOSTILE, 1)
    plain = record_answers(store, "plain", ["one", "two", "three", "four"], 8)
    store.close()
    server = Server(db)
    server.runs = {"plain": plain, "hostile": hostile}
    yield server
    server.close()


@pytest.fixture(autouse=True)
def nothing_judged(judged_server):
    store = Store(judged_server.db)
    preferences.remove(store, [row.id for row in preferences.read(store)])
    store.close()


def rows(server: Server, who: str | None = None) -> list[preferences.Preference]:
    store = Store(server.db)
    try:
        return preferences.read(store, who)
    finally:
        store.close()


def inspect(server: Server, open_page, mode: str = "Compare", run: str = "plain") -> Page:
    return judge(open_page(server, f"?run={server.runs[run]}&tab=inspect"), mode)


def judge(page: Page, mode: str) -> Page:
    """Choose a way of judging, and wait for what is to be judged."""
    page.locator("#look-body article").first.wait_for()  # the tab is there
    page.locator("#inspect-mode").get_by_role("radio", name=mode).check(force=True)
    page.locator(".pair").wait_for()
    return page


def sides(page: Page) -> tuple[str, str, str]:
    """Prompt, left and right text, read at one moment."""
    return tuple(page.locator(".pair").evaluate(
        "pair => [...pair.querySelectorAll('pre')].map(pre => pre.textContent)"
    ))  # fmt: skip


def seen(page: Page) -> str:
    """What the pair is shown for: it changes with the name, and the pair with it."""
    return page.locator("#state-pairs-seen").get_by_label("seen").input_value()


def press_tab_until(page: Page, selector: str) -> None:
    for _ in range(8):
        page.keyboard.press("Tab")
        if page.evaluate("found => document.activeElement.matches(found)", selector):
            return
    raise AssertionError(f"Tab does not reach {selector}")


def call(page: Page, name: str) -> None:
    """Fill in the name of who judges, and go to the pair of this name."""
    nobodys = seen(page)
    page.get_by_label("Your name").fill(name)
    page.get_by_label("Your name").blur()
    wait_until(lambda: seen(page) != nobodys)
    page.wait_for_function(f"localStorage.getItem('studio-who-1') === '{name}'")
    page.locator(".pair").focus()


def test_twenty_pairs_by_keyboard_alone(judged_server, open_page):
    page = open_page(judged_server, f"?run={judged_server.runs['plain']}&tab=inspect")
    page.locator("#look-body article").first.wait_for()
    page.locator("#inspect-mode input[value=explore]").focus()
    page.keyboard.press("ArrowRight")  # Compare
    expect(page.locator(".pair-title b")).to_have_text("Pair 1")
    press_tab_until(page, "#pair-who *")
    nobodys, began = seen(page), time.monotonic()
    page.keyboard.type("Ada")
    press_tab_until(page, ".pair")
    wait_until(lambda: seen(page) != nobodys)
    page.locator(".pair").focus()  # the pair of another name is a new one
    expected = []
    for n in range(20):
        expect(page.locator(".pair-title b")).to_have_text(f"Pair {n + 1}")
        verdict, key = [("left", "ArrowLeft"), ("right", "ArrowRight"), ("tie", "ArrowDown")][n % 3]
        verdict, key = ("skip", "s") if n == 10 else (verdict, key)
        expected.append((*sides(page), verdict))
        page.keyboard.press(key)
    expect(page.locator(".pair-title b")).to_have_text("Pair 21")
    found = rows(judged_server, "Ada")
    assert [(r.prompt, r.left, r.right, r.verdict) for r in found] == expected
    assert {r.source for r in found} == {"page"}
    assert all(r.seconds >= 0 for r in found)
    assert sum(r.seconds for r in found) < time.monotonic() - began
    expect(page.locator("#pair-counts")).to_contain_text("19 judged · 1 skipped")
    text = page.locator("#pairs").inner_text()
    assert "plain" not in text.replace("plain asks", "")  # neither run nor reward
    assert "0.25" not in text


def test_a_reload_loses_nothing_and_shows_the_same_pair(judged_server, open_page):
    page = inspect(judged_server, open_page)
    call(page, "Bob")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".pair-title b")).to_have_text("Pair 2")  # Bob's, as the first may not be
    second = sides(page)
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".pair-title b")).to_have_text("Pair 3")
    third = sides(page)
    page.reload()
    expect(page.locator(".pair-title b")).to_have_text("Pair 3")
    wait_until(lambda: sides(page) == third)
    expect(page.get_by_label("Your name")).to_have_value("Bob")
    page.locator(".pair").focus()
    page.keyboard.press("Control+z")
    expect(page.locator(".pair-title")).to_contain_text("Taken back.")
    assert sides(page) == second
    assert [row.who for row in rows(judged_server)] == ["Bob"]
    page.keyboard.press("u")
    expect(page.locator(".pair-title b")).to_have_text("Pair 1")
    assert rows(judged_server) == []
    page.keyboard.press("u")
    expect(page.locator(".pair-title")).to_contain_text("There is nothing to take back.")


def test_two_people_at_once_do_not_disturb_each_other(judged_server, browser, open_page):
    with watched(browser) as other:
        ada = inspect(judged_server, open_page)
        bob = judge(arrive(other.new_page(), ada.url), "Compare")
        for page, name in ((ada, "Ada"), (bob, "Bob")):
            call(page, name)
        pairs = {"Ada": [], "Bob": []}
        for n in range(6):
            for page, name, key in ((ada, "Ada", "ArrowLeft"), (bob, "Bob", "ArrowRight")):
                expect(page.locator(".pair-title b")).to_have_text(f"Pair {n + 1}")
                pairs[name].append(sides(page))
                page.keyboard.press(key)
        for page in (ada, bob):
            expect(page.locator(".pair-title b")).to_have_text("Pair 7")
    for name, verdict in (("Ada", "left"), ("Bob", "right")):
        found = rows(judged_server, name)
        assert [(r.prompt, r.left, r.right) for r in found] == pairs[name]
        assert {r.verdict for r in found} == {verdict}


def test_hostile_answers_are_literal_text(judged_server, open_page):
    page = inspect(judged_server, open_page, "Rank the group", "hostile")
    shown = page.locator(".ranking li pre")
    expect(shown).to_have_count(len(HOSTILE))
    assert set(shown.all_text_contents()) <= set(HOSTILE)


def test_a_group_is_ranked_by_keyboard_and_by_dragging(judged_server, open_page):
    page = inspect(judged_server, open_page, "Rank the group")
    items = page.locator(".ranking li")
    expect(items).to_have_count(4)
    before = items.locator("pre").all_text_contents()
    items.nth(2).focus()
    page.keyboard.press("Alt+ArrowUp")
    page.keyboard.press("Alt+ArrowUp")
    expect(page.locator(".pair-title")).to_contain_text("Answer C is 1 of 4.")
    items.nth(3).drag_to(items.nth(1), target_position={"x": 10, "y": 2})
    page.get_by_role("button", name="Move answer B down").click()
    order = [before[i] for i in (2, 3, 0, 1)]
    wait_until(lambda: items.locator("pre").all_text_contents() == order)
    page.get_by_role("button", name="Store this ranking").click()
    expect(page.locator(".pair-title")).to_contain_text("Ranking stored.")
    found = rows(judged_server)
    assert [(r.chosen, r.rejected) for r in found] == [
        (order[i], order[j]) for i in range(4) for j in range(i + 1, 4)
    ]
    assert len({r.ranking for r in found}) == 1
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".pair-title")).to_contain_text("Taken back.")
    assert rows(judged_server) == []


def test_preferences_go_out_and_come_in_on_the_page(judged_server, open_page, tmp_path):
    page = inspect(judged_server, open_page)
    page.get_by_role("button", name="Left is better").click()
    expect(page.locator(".pair-title b")).to_have_text("Pair 2")
    [row] = rows(judged_server)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export JSONL").click()
    [line] = download.value.path().read_text("utf-8").splitlines()
    assert json.loads(line)["chosen"] == row.left
    given = tmp_path / "theirs.jsonl"
    given.write_text(line + '\n{"prompt": "<b>p</b>", "good": "a", "rejected": "b"}\n')
    page.get_by_label("Columns of the import").fill("chosen=good")
    page.locator("#pair-files input[type=file]").set_input_files(given)
    notice = page.locator("#notice")
    expect(notice).to_contain_text("1 added, 1 could not be read (row 1, column 'good'")
    expect(notice).to_contain_text("Preferences of theirs.jsonl:")
    assert [r.prompt for r in rows(judged_server)][1:] == ["<b>p</b>"]
