"""The set-up in a real browser: cards, sections, results, drafts, and the bar."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from live_server import Server
from playwright.sync_api import expect
from recorded import record_run
from set_up import card, choose, close, field, fill, open_section
from views import fits, wait_until

from grpo_core.store import Store

LONG_NAME = "a run with a long name " * 8 + "x" * 16  # 200 characters
DRAFT = "localStorage.getItem('studio-draft-1')"
MOUNTED = "document.querySelectorAll('#new-run-pane .block').length"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Iterator[tuple[Server, str]]:
    """A server over one finished run with a long name."""
    store = Store(tmp_path_factory.mktemp("new-run") / "runs.sqlite")
    run_id = record_run(store, LONG_NAME, steps=7)
    store.close()
    server = Server(store.path)
    yield server, run_id
    server.close()


@pytest.fixture
def page(recorded, open_page):
    return open_page(recorded[0])


def test_a_card_opens_its_section_and_escape_returns_to_the_run(page):
    expect(page.locator("#live")).to_be_visible()
    card(page, "rubric").press("Enter")
    expect(page.get_by_label("Score this text")).to_be_visible()
    expect(page.locator("#live")).to_be_hidden()
    expect(card(page, "rubric")).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Escape")
    expect(page.locator("#live")).to_be_visible()
    expect(card(page, "rubric")).to_be_focused()
    page.get_by_role("tab", name="Runs").click()
    page.get_by_role("button", name="New run").click()  # from any tab, at the section left last
    expect(page.get_by_label("Score this text")).to_be_visible()
    page.get_by_role("button", name="Back to the run").click()
    expect(page.locator("#live")).to_be_visible()


def test_a_section_is_built_when_it_is_opened(page):
    assert page.evaluate(MOUNTED) < 10
    open_section(page, "algorithm")
    expect(page.get_by_label("KL coefficient")).to_be_visible()
    page.wait_for_function(f"{MOUNTED} > 40")


def test_without_a_run_the_set_up_is_open(idle_server, open_page):
    page = open_page(idle_server)
    expect(page.get_by_role("button", name="Check model")).to_be_visible()
    expect(page.get_by_role("button", name="Start training")).to_be_enabled()


def test_cards_say_what_was_changed_and_what_is_wrong(page):
    expect(card(page, "run")).to_contain_text("80 steps · 8 × 8 · 48 tokens · seed 0")
    expect(card(page, "run")).not_to_contain_text("changed")
    fill(page, "Steps", "12")
    expect(card(page, "run")).to_contain_text("changed")
    expect(card(page, "run")).to_contain_text("12 steps")
    fill(page, "Learning rate", "fast")
    expect(card(page, "run")).to_contain_text("fix")
    expect(page.locator("#new-run-pane")).to_contain_text(
        "Must be a number. Leave it empty, or try 1e-4"
    )
    open_section(page, "model")
    problems = page.locator("#start-problems")
    expect(problems).to_contain_text("Fix these first:")
    problems.get_by_role("button", name="Learning rate").click()
    expect(page.get_by_label("Learning rate", exact=True)).to_be_focused()


def test_only_the_fields_that_a_choice_uses_are_shown(page):
    open_section(page, "algorithm")
    expect(page.get_by_label("Clip range, low")).to_be_visible()
    expect(page.get_by_label("CISPO cap")).to_be_hidden()
    choose(page, "Algorithm", "CISPO")
    expect(page.get_by_label("CISPO cap")).to_be_visible()
    expect(page.get_by_label("Clip range, low")).to_be_hidden()
    fill(page, "CISPO cap", "7")
    expect(page.locator("#algorithm-fields .changed")).to_have_text("CISPO: 5")
    page.get_by_role("button", name="Reset to preset").click()
    expect(page.get_by_label("CISPO cap")).to_have_value("5")
    expect(page.locator("#algorithm-fields .changed")).to_have_count(0)
    search = page.get_by_role("searchbox")
    search.fill("horizon")
    expect(page.get_by_label("KL horizon")).to_be_visible()
    expect(page.get_by_label("CISPO cap")).to_be_hidden()
    search.fill("")
    page.get_by_role("button", name="Show all").click()
    expect(page.get_by_label("Clip range, low")).to_be_visible()


def test_a_draft_survives_a_reload_and_keeps_no_secret(page):
    fill(page, "Steps", "33")
    fill(page, "Prompts per step", "5")
    open_section(page, "model")
    model = page.get_by_label("Model", exact=True).first
    model.fill("https://me:hunter2@example.org/model")
    model.press("Enter")
    expect(card(page, "model")).to_contain_text("changed")
    page.wait_for_function(f"['33', '5', 'example.org'].every(kept => {DRAFT}?.includes(kept))")
    assert "hunter2" not in page.evaluate(DRAFT)
    page.reload()
    expect(card(page, "run")).to_contain_text("33 steps · 5 × 8")
    expect(field(page, "Steps")).to_have_value("33")
    page.get_by_role("button", name="defaults").click()
    expect(card(page, "run")).to_contain_text("80 steps")
    expect(field(page, "Steps")).to_have_value("80")
    page.wait_for_function(f"{DRAFT} === null")


def test_a_damaged_draft_is_ignored(page):
    for damaged in (
        "{",
        "[1]",
        '"x"',
        '{"train.steps": {"a": 1}, "nosuch": 1, "rubric.criteria": [[1]]}',
    ):
        page.evaluate("text => localStorage.setItem('studio-draft-1', text)", damaged)
        page.reload()
        expect(page.get_by_role("button", name="Start training")).to_be_enabled()
        expect(card(page, "run"), damaged).to_contain_text("80 steps")
        expect(card(page, "rubric"), damaged).to_contain_text("accuracy 1")


def test_a_result_for_earlier_settings_says_so(page, tiny_settings):
    for label, name in (
        ("Model", "model.name"),
        ("Held-out prompts", "task.heldout_size"),
        ("Steps", "train.steps"),
        ("Prompts per step", "train.prompts_per_step"),
        ("Group size", "train.group_size"),
        ("Max new tokens", "train.max_new_tokens"),
    ):
        control = fill(page, label, str(tiny_settings[name]))
        if label == "Model":
            control.press("Enter")
    bar, report = page.locator("#preflight-state"), page.locator("#preflight-report")
    page.get_by_role("button", name="Preflight", exact=True).click()
    expect(report).to_contain_text("Time")
    expect(bar.get_by_role("button")).not_to_contain_text("earlier", use_inner_text=True)
    expect(page.locator("#outlook")).to_contain_text("About")
    fill(page, "Seed", "5")
    expect(bar).to_contain_text("for earlier settings", use_inner_text=True)
    expect(report.locator(".earlier")).to_be_visible()
    page.set_viewport_size({"width": 380, "height": 820})
    assert fits(page)
    page.set_viewport_size({"width": 1440, "height": 1000})
    fill(page, "Seed", "0")  # as before: the result counts again
    expect(report.locator(".earlier")).to_be_hidden()
    page.get_by_role("button", name="Close").click()
    expect(report).to_be_hidden()
    bar.get_by_role("button").click()
    expect(report).to_be_visible()


def test_settings_are_copied_from_a_run_a_file_and_an_address(page, recorded, tmp_path):
    server, run_id = recorded
    page.locator("#start-from [data-do=run]").click()
    expect(card(page, "run")).to_contain_text("7 steps · 2 × 2")
    expect(field(page, "Steps")).to_have_value("7")
    (tmp_path / "config.json").write_text(json.dumps({"train": {"steps": 9}}))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="a file").click()
    chooser.value.set_files(tmp_path / "config.json")
    expect(card(page, "run")).to_contain_text("9 steps · 8 × 8")
    page.get_by_role("button", name="an address").click()
    page.get_by_label("Address of a run").fill(f"{server.url}/?run={run_id}")
    page.get_by_role("button", name="Copy settings").click()
    expect(card(page, "run")).to_contain_text("7 steps · 2 × 2")
    page.get_by_label("Address of a run").fill("http://127.0.0.1/?run=nosuch")
    page.get_by_role("button", name="Copy settings").click()
    expect(page.locator("#notice")).to_contain_text("is not here")


def test_a_dropped_file_becomes_the_prompts(page, tmp_path):
    file = tmp_path / "my sums.csv"
    rows = "".join(f"Q: {i}+1=?,{i + 1},easy\n" for i in range(30))
    file.write_text("question,result,level\n" + rows + "Q: 1+1=?,2,easy\n<b>bold</b>,2,hard\n")
    open_section(page, "prompts")
    page.locator("#upload-prompts input[type=file]").set_input_files(file)
    table = page.locator("#prompt-preview")
    expect(table).to_contain_text("1 duplicate removed.")
    expect(table.locator("tbody tr").first).to_contain_text("training")
    expect(card(page, "prompts")).to_contain_text("my-sums")
    page.get_by_label("Answer column", exact=True).click()
    page.get_by_role("option", name="result").click()
    expect(table.locator(".earlier")).to_be_visible()
    page.get_by_role("button", name="Preview prompts").click()
    expect(table).to_contain_text("answers from “result”")
    assert table.locator("b").count() == 0


def lies(box, most: int, start: str = "y", size: str = "height") -> bool:
    """Whether a box lies between 0 and `most`."""
    return box[start] >= 0 and box[start] + box[size] <= most + 1


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (380, 820)])
def test_the_bar_is_one_row_and_new_run_is_in_reach(page, width, height):
    page.set_viewport_size({"width": width, "height": height})
    bar, new = page.locator("#start-dock"), page.get_by_role("button", name="New run")
    for opened in (False, True):
        if opened:
            page.locator("#group article").first.scroll_into_view_if_needed()
            new.click()
            page.locator("#new-run-pane h2").filter(visible=True).wait_for()
        wait_until(lambda: (box := bar.bounding_box())["height"] <= 64 and lies(box, height))
        for name in ("Preflight", "Start training"):
            button = page.get_by_role("button", name=name, exact=True)
            wait_until(lambda button=button: lies(button.bounding_box(), width, "x", "width"))
        assert fits(page)
    close(page)
    wait_until(lambda: lies(new.bounding_box(), height))
    if width < 1000:  # the run comes first
        line, model = page.locator("#line"), card(page, "model")
        wait_until(lambda: line.bounding_box()["y"] < model.bounding_box()["y"])
