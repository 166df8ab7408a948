"""The Runs tab in a real browser: the bar, the branch dialog, long names, columns, comparison."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from live_server import Server
from playwright.sync_api import Page, expect
from recorded import record_run
from views import fits, wait_until

from grpo_core.store import Recorder, Store
from grpo_core.types import Checkpointed, RunStatus

LONG = "long " * 39 + "name."  # 200 characters
assert len(LONG) == 200
WIDTHS = (380, 1440, 2560)
LOOKS = "marks => marks.map(e => getComputedStyle(e).borderTop)"  # width, dash and colour


def save_steps(store: Store, run_id: str, *steps: int) -> None:
    with Recorder(store, run_id) as record:
        for step in steps:
            path = store.checkpoint_folder(run_id) / f"step-{step:08}"
            record(Checkpointed(step, str(path), 1_500_000, "0" * 64))


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Iterator[Server]:
    """A server over three runs; the newest stands first: stopped, kl, long."""
    db = tmp_path_factory.mktemp("runs") / "runs.sqlite"
    store = Store(db)
    save_steps(store, record_run(store, LONG), 2, 3)
    save_steps(store, record_run(store, "kl", **{"algorithm.kl_coef": 0.0}), 3)
    record_run(store, "stopped", status=RunStatus.STOPPED)
    store.close()
    server = Server(db)
    yield server
    server.close()


@pytest.fixture
def page(stored, open_page) -> Page:
    page = open_page(stored, "?tab=runs")
    page.locator("#run-table tbody tr").first.wait_for()
    return page


def select(page: Page, *names: str) -> None:
    for name in names:
        box = page.get_by_role("checkbox", name=f"Select {name}", exact=True)
        box.click()
        expect(box).to_have_attribute("aria-checked", "true")


def action(page: Page, name: str):
    return page.locator("#run-bar").get_by_role("button", name=name, exact=True)


def test_the_branch_dialog_shows_its_steps_at_a_usable_width(page):
    select(page, LONG)
    action(page, "Branch from step…").click()
    step = page.get_by_label("From step")
    expect(step).to_have_value("step 3 · 1.5 MB")
    wait_until(lambda: step.bounding_box()["width"] >= 120)
    expect(page.locator("#branch-question")).to_contain_text("Saved steps: 2, 3.")
    expect(page.get_by_label("Train until step")).to_have_value("6")  # 3 steps more


def test_a_question_closes_when_another_run_is_selected(page):
    select(page, "kl")
    action(page, "Branch from step…").click()
    expect(page.locator("#branch-question")).to_contain_text("“kl”")
    select(page, "stopped")
    expect(page.locator("#branch")).to_be_hidden()


def test_a_long_name_never_scrolls_the_page_sideways(page):
    select(page, LONG, "kl")
    page.locator("#compare .scatterlayer .trace").first.wait_for()

    def fits_each_width(what: str) -> None:
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert fits(page), f"the page scrolls sideways: {what}, {width} px"

    fits_each_width("two compared")
    page.get_by_label("Run", exact=True).click()
    assert fits(page), "the run picker"
    page.keyboard.press("Escape")
    page.get_by_role("checkbox", name="Select kl", exact=True).click()
    action(page, "Branch from step…").click()
    expect(page.locator("#branch-question")).to_contain_text("long long")
    fits_each_width("branch")
    action(page, "More").click()
    action(page, "Delete").click()
    expect(page.locator("#confirm-question")).to_contain_text("long long")
    fits_each_width("delete")


def test_a_cut_name_is_whole_under_the_pointer(page):
    name = page.locator("#run-table td.name .link").last
    wait_until(lambda: name.evaluate("e => e.scrollWidth > e.clientWidth"))
    name.hover()
    expect(name).to_have_attribute("title", LONG)
    page.get_by_label("Run", exact=True).click()
    option = page.locator("#run .options li").last
    option.hover()
    expect(option).to_have_attribute("title", re.compile(LONG))
    option.click()
    picker = page.locator("#run input")
    picker.blur()
    picker.hover()
    expect(picker).to_have_attribute("title", LONG)


def test_the_bar_appears_on_selection_and_says_why_not(page):
    bar = page.locator("#run-bar")
    expect(bar.get_by_role("button")).to_have_count(0)
    select(page, "stopped")
    expect(action(page, "Resume")).to_be_enabled()
    expect(action(page, "Branch from step…")).to_be_disabled()
    action(page, "Branch from step…").focus()
    expect(bar.locator(".why")).to_contain_text("No step of this run is saved.")
    expect(action(page, "Compare")).to_be_disabled()
    select(page, "kl")
    expect(action(page, "Compare")).to_be_enabled()
    for name in ("Open", "Resume", "Copy settings", "Export", "Report"):
        expect(action(page, name)).to_be_disabled()
        expect(action(page, name)).to_have_attribute("title", "Select one run.")
    action(page, "Clear the selection").click()
    expect(bar.get_by_role("button")).to_have_count(0)
    select(page, "kl")
    expect(action(page, "Resume")).to_have_attribute("title", re.compile("has done all its steps"))


def test_copied_settings_fill_the_form_of_a_new_run(page):
    select(page, "kl")
    action(page, "Copy settings").click()
    expect(page.locator("#notice")).to_contain_text("The set-up has the settings of “kl”.")
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")


def test_a_run_is_renamed_tagged_and_noted_in_its_row(page):
    page.get_by_role("button", name="Rename stopped", exact=True).click()
    page.get_by_label("Name", exact=True).last.fill("stopped too early")
    page.get_by_label("Tags", exact=True).fill("keep, first try")
    page.get_by_label("Note", exact=True).fill("<b>ran out of time</b>")
    page.get_by_role("button", name="Save", exact=True).click()
    row = page.locator("#run-table tbody tr").first
    expect(row).to_contain_text("stopped too early")
    expect(row).to_contain_text("<b>ran out of time</b>")
    row.get_by_role("button", name="Show runs with the tag keep").click()
    expect(page.get_by_label("Search runs")).to_have_value("#keep")
    expect(page.locator("#run-table tbody tr")).to_have_count(1)
    page.get_by_label("Search runs").fill("")
    page.get_by_role("button", name="Rename stopped too early").click()
    page.get_by_label("Name", exact=True).last.fill("stopped")
    page.keyboard.press("Enter")
    expect(row.locator(".link")).to_have_text("stopped")


def test_runs_are_searched_by_their_changed_settings(page):
    expect(page.locator("#run-table tr", has_text="kl 0")).to_have_count(1)
    page.get_by_label("Search runs").fill("kl 0")
    expect(page.locator("#run-table tbody tr")).to_have_count(1)
    page.locator("#run-table .differs .tag").first.hover()
    expect(page.locator("#run-table .differs .tag").first).to_have_attribute(
        "title", "KL coefficient: 0, usually 0.02"
    )


def test_the_chosen_columns_survive_a_reload(page):
    heading = page.locator("#run-table th", has_text="Rubric")
    expect(heading).to_be_visible()
    page.get_by_role("button", name="Columns").click()
    page.get_by_label("Rubric", exact=True).last.uncheck()
    expect(heading).to_be_hidden()
    page.reload()
    page.locator("#run-table tbody tr").first.wait_for()
    expect(heading).to_be_hidden()


def test_every_run_shows_its_date_and_time(page):
    date = re.compile(r"\d+ [A-Z][a-z]{2} \d\d:\d\d")
    expect(page.locator("#run-table td.c-created")).to_have_text([date] * 3, use_inner_text=True)


def test_the_report_is_downloaded_from_the_page(page):
    select(page, "kl")
    with page.expect_download() as download:
        action(page, "Report").click()
    assert download.value.suggested_filename.endswith("-report.html")
    assert "<h1>kl</h1>" in download.value.path().read_text("utf-8")


def test_two_runs_are_compared_with_their_held_out_difference(page):
    select(page, "stopped", "kl")
    action(page, "Compare").click()
    expect(page.locator("#compare h2")).to_be_focused()
    expect(page.locator("#differences tbody tr")).to_have_count(1)
    expect(page.locator("#differences")).to_contain_text("algorithm.kl_coef")
    page.locator("#compare-reward .scatterlayer .trace").first.wait_for()
    expect(page.locator("#results tbody tr")).to_have_count(2)
    expect(page.locator("#results")).to_contain_text("40 % [30 to 50]")
    expect(page.locator("#compare-reward .legend .mark")).to_have_count(2)
    curves = page.locator("#compare-reward .legend .mark").evaluate_all(LOOKS)
    assert len(set(curves)) == 2
    for table in ("#results", "#differences"):  # as the curves are drawn
        marks = page.locator(f"{table} .mark")
        wait_until(lambda marks=marks: marks.evaluate_all(LOOKS) == curves)


def test_a_menu_sorts_the_cards_on_a_phone(page):
    menu = page.get_by_label("Sort by")
    expect(menu).to_be_hidden()
    page.set_viewport_size({"width": 380, "height": 820})
    expect(page.locator("#run-table thead")).to_be_hidden()
    expect(menu).to_have_value("created")
    menu.select_option("Name")
    names = page.locator("#run-table td.name .link")
    expect(names).to_have_text(["kl", LONG, "stopped"])
    page.get_by_role("button", name="Reverse the order, now ascending").click()
    expect(names).to_have_text(["stopped", LONG, "kl"])


@pytest.mark.parametrize("width", [380, 1440])
def test_the_form_of_a_run_stays_inside_its_table(page, width):
    page.set_viewport_size({"width": width, "height": 820})
    table = page.locator("#run-table").bounding_box()
    page.get_by_role("button", name="Rename stopped", exact=True).click()
    form = page.locator("#run-editor").bounding_box()
    assert form["x"] >= table["x"]
    assert form["x"] + form["width"] <= table["x"] + table["width"] + 1


def test_runs_are_cards_on_a_phone(page):
    page.set_viewport_size({"width": 380, "height": 820})
    row = page.locator("#run-table tbody tr").first
    expect(row).to_have_css("display", "flex")
    wait_until(lambda: row.bounding_box()["width"] <= 380)
    wait_until(lambda: row.locator("td.c-heldout").bounding_box()["x"] < 380)
    select(page, "kl", "stopped")
    assert fits(page)
    cell = page.locator("#differences tbody th").first
    wait_until(lambda: cell.bounding_box()["width"] >= 96)  # else one letter a line
