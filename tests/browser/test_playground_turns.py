"""The Playground and Preview groups of a task with a tool, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from live_server import Server
from playwright.sync_api import expect
from set_up import choose, open_section
from trained_runs import train_run
from views import FITS, pick_run, wait_for_answers
from watch import watched

from grpo_core.store import Store
from tests.environments.conftest import calling_model as calling_model  # a fixture

SETTINGS = {
    "task.name": "products",
    "task.heldout_size": 8,
    "train.steps": 1,
    "train.prompts_per_step": 2,
    "train.group_size": 4,
    "train.learning_rate": 1e-4,
    "train.eval_every": 0,
}


@pytest.fixture(scope="module")
def trained(calling_model, tmp_path_factory) -> Iterator[Server]:
    db = tmp_path_factory.mktemp("turns") / "runs.sqlite"
    store = Store(db)
    settings = {**SETTINGS, "model.name": str(calling_model), "train.max_new_tokens": 80}
    train_run(store, {**settings, "task.name": "sums"}, "without a tool", saves=True)
    train_run(store, settings, "with a calculator", saves=True)
    store.close()
    server = Server(db)
    yield server
    server.close()


@pytest.fixture(scope="module")
def page(trained, browser):
    """The Playground with answers of the run that has a calculator. Shared by all tests."""
    with watched(browser) as context:
        page = context.new_page()
        page.goto(f"{trained.url}?tab=playground")
        wait_for_answers(page)
        expect(page.locator("#play-answers article")).to_have_count(2 * (1 + 4))
        yield page


def test_answers_are_shown_in_turns(page):
    answers = page.locator("#play-answers")
    expect(answers.locator("div.turns").first).to_be_visible()
    call = answers.locator(".turns details").first
    expect(call).to_contain_text("calculate")
    call.locator("summary").click()
    expect(call.locator("dl")).to_contain_text("expression")
    call.locator("summary").click()
    expect(answers.locator(".heads")).to_contain_text("tool call")
    expect(answers.locator(".heads")).to_contain_text("sampled answers right")


def test_next_turn_goes_turn_by_turn_to_the_same_end(page):
    answers = page.locator("#play-answers")
    ended = [re.sub(r"\s+", " ", t) for t in answers.locator("article").all_inner_texts()]
    button = page.get_by_role("button", name="Next turn")
    button.click()
    expect(answers.locator(".played")).to_have_attribute("data-waits", "on")
    wait_for_answers(page)
    expect(answers.locator(".heads").first).to_contain_text("go on: press Next turn")
    expect(answers).to_contain_text("pauses")
    assert answers.locator(".turns li.action").count() > 0
    for _ in range(8):
        actions = answers.locator(".turns li.action").count()
        button.click()
        expect(answers.locator(".turns li.action")).not_to_have_count(actions)
        wait_for_answers(page)
        if not answers.locator("[data-waits]").count():
            break
    expect(answers.locator("[data-waits]")).to_have_count(0)
    timeless = [re.sub(r"\s+", " ", t) for t in answers.locator("article").all_inner_texts()]
    seconds = re.compile(r"(< 0\.01|[\d.]+) s\b")
    assert [seconds.sub("", t) for t in timeless] == [seconds.sub("", t) for t in ended]


def test_a_changed_prompt_begins_with_the_first_turn(page):
    answers = page.locator("#play-answers")
    page.get_by_role("textbox", name="Prompt", exact=True).fill("Q: 31*42=?")
    page.get_by_role("button", name="Next turn").click()
    expect(answers.locator("q").first).to_have_text("Q: 31*42=?")
    expect(answers.locator(".played")).to_have_attribute("data-waits", "on")
    wait_for_answers(page)
    counts = {len(o.locator("li.action").all()) for o in answers.locator("div.turns").all()}
    assert counts == {1}


def test_next_turn_is_offered_with_an_environment_only(page, trained):
    button = page.get_by_role("button", name="Next turn")
    expect(button).to_be_visible()
    page.goto(f"{trained.url}?tab=playground")
    expect(page.locator(".in-turns")).to_contain_text("Calculator")
    pick_run(page, "without a tool")
    expect(button).to_be_hidden()


def test_preview_groups_of_products_shows_turns(open_page, trained):
    page = open_page(trained)
    page.get_by_role("tab", name="Train").click()
    choose(page, "Task", "Products")
    open_section(page, "rubric")
    page.get_by_role("tab", name="Preview groups").click()
    page.get_by_role("button", name="Preview groups").click()
    bench = page.locator("#workbench")
    expect(bench.locator("div.turns").first).to_be_visible()
    expect(bench).to_contain_text("calculate")


def test_turns_fit_every_width(page, trained):
    page.goto(f"{trained.url}?tab=playground")
    expect(page.locator("#play-answers div.turns").first).to_be_visible()
    for width in (380, 1440, 2560):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(FITS)
