"""Runs of other trainers in a real browser: every view of one, and import by upload."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from foreign import RUN, a_step, record_foreign, with_tokens
from live_server import Server
from playwright.sync_api import Page, expect
from test_accessible import DESK, PHONE, violations
from views import fits, look

from grpo_core.store import Store

ROWS = [
    {"step": s, "question": f"What is {s} + 1?", "response": f"It is {c}.", "points": c % 2}
    for s in (1, 2)
    for c in range(4)
]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    db = tmp_path_factory.mktemp("import") / "runs.sqlite"
    store = Store(db)
    steps = (a_step(1), a_step(2, swapped=True), a_step(3))
    record_foreign(store, RUN, tuple(map(with_tokens, steps)))
    record_foreign(store, replace(RUN, key="other", name="other run"))
    store.close()
    server = Server(db)
    yield server
    server.close()


@pytest.fixture
def run_id(server) -> str:
    return next(r.id for r in Store(server.db).runs() if r.name == RUN.name)


def clean_everywhere(page: Page, what: str) -> None:
    """axe finds nothing serious, light and dark, and nothing scrolls sideways at 380 px."""
    page.evaluate(AXE_SCRIPT)
    assert violations(page, False, DESK) + violations(page, True, PHONE) == [], what
    assert fits(page), what
    page.set_viewport_size(DESK)


def test_every_view_works_on_a_run_of_another_trainer(server, run_id, open_page):
    page = open_page(server, f"?run={run_id}&tab=inspect")
    page.emulate_media(reduced_motion="reduce")
    page.locator("#look-body article").first.wait_for()
    expect(page.locator("#run-pill .trainer")).to_have_text("TRL 1.16.0")

    page.get_by_role("button", name="advantages disagree").click()
    expect(page.locator("#group-table tbody tr, .groups tbody tr")).to_have_count(1)
    expect(page.locator(".disagreement td b").first).to_have_text("−0.8659")
    clean_everywhere(page, "a disagreement")

    page.get_by_role("button", name="all 4").click()
    page.get_by_role("button", name="Open group 1 of step 1", exact=False).click()
    look(page, "What if")
    page.locator("#look-body .why").wait_for()
    rows = page.locator("#look-body .why tbody tr")
    expect(rows).to_have_count(4)
    for i in range(4):  # the run's own estimator gives the recorded advantages
        stored, then = rows.nth(i).locator("b").all_inner_texts()
        assert stored == then
    look(page, "Tokens")
    expect(page.locator("#look-body .tok")).to_have_count(3)
    look(page, "Through time")
    expect(page.locator("#look-body .list tbody tr")).to_have_count(3)
    clean_everywhere(page, "through time")
    look(page, "Two runs")
    expect(page.locator("#look-body .two").first).to_contain_text("other run")
    look(page, "Completions")
    search = page.get_by_placeholder("Text in any prompt")
    search.fill("no idea")
    expect(page.locator(".groups tbody tr")).to_have_count(4)


def test_train_learn_and_playground_say_what_is_not_there(server, run_id, open_page):
    page = open_page(server, f"?run={run_id}")
    page.emulate_media(reduced_motion="reduce")
    page.locator("#group article").first.wait_for()
    expect(page.get_by_text("Advantages do not follow from the rewards")).to_be_visible()
    empty = page.locator("#curve-kl .plot")
    expect(empty).to_have_attribute("data-empty", "Not recorded by TRL 1.16.0")
    expect(page.get_by_role("button", name="Resume", exact=True)).to_have_count(0)
    clean_everywhere(page, "train")
    page.get_by_role("tab", name="Learn", exact=True).click()
    expect(page.locator("#walk-numbers .whose")).to_contain_text("recorded by TRL 1.16.0")
    page.get_by_role("tab", name="Playground", exact=True).click()
    expect(page.locator("#play-about")).to_contain_text("its weights are not here")


def test_a_table_is_imported_by_upload_with_named_columns(server, open_page, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(
        "".join(json.dumps({"q": r["question"], "a": r["response"]}) + "\n" for r in ROWS)
    )
    page = open_page(server, "?tab=runs")
    page.emulate_media(reduced_motion="reduce")
    page.get_by_role("button", name="Import", exact=True).click()
    expect(page.locator("#import-files")).to_have_css("border-style", "dashed")
    page.locator("#import-files input[type=file]").set_input_files(file)
    # the list of what has arrived, and not the progress of the upload
    expect(page.locator("#import-files").get_by_role("cell", name="mine.jsonl")).to_be_visible()
    page.get_by_role("button", name="Preview import").click()
    expect(page.locator("#import-result")).to_contain_text("of no known format")
    for label, column in (("completion", "a"), ("prompt", "q")):
        box = page.get_by_label(f"Column: {label}", exact=True)
        box.click()
        page.get_by_role("option", name=column, exact=True).last.click()
    page.get_by_role("button", name="Preview import").click()
    said = page.locator("#import-result .preview")
    expect(said).to_contain_text("2 groups, 8 completions")
    expect(said).to_contain_text("absent: right answers, rewards")
    page.evaluate(AXE_SCRIPT)
    own = ("#import-mapping", "#import-result", "#run-table")  # the list of uploads is Gradio's
    found = violations(page, False, DESK, parts=own) + violations(page, True, PHONE, parts=own)
    assert found == []
    assert fits(page)
    page.set_viewport_size(DESK)
    page.get_by_role("button", name="Import run").click()
    done = page.locator("#import-result .banner")
    expect(done).to_contain_text("Imported “mine”")
    expect(page.locator("#run-table")).to_contain_text("mine")
    done.get_by_role("button", name="Open").click()
    expect(page.locator("#group article").first).to_contain_text("It is 0.")
