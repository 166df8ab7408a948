"""The inspector in a real browser, on a run with recorded tokens."""

from __future__ import annotations

import csv
import re
import struct
from collections.abc import Iterator

import pytest
from live_server import Server
from playwright.sync_api import expect
from set_up import field
from trained_runs import train_run
from views import look

from grpo_core.config import RunConfig
from grpo_core.store import Recorder, Store
from grpo_core.types import RunStatus, StepCompleted, StepMetrics

# From now on every answer takes 0.7 s longer.
SLOW_ANSWERS = """() => {
  const fetch_now = window.fetch;
  window.fetch = async (...request) => {
    await new Promise(done => setTimeout(done, 700));
    return fetch_now(...request);
  };
}"""


@pytest.fixture(scope="module")
def inspected(tmp_path_factory) -> Iterator[Server]:
    """One server for all runs whose address a test opens."""
    server = Server(tmp_path_factory.mktemp("inspected") / "runs.sqlite")
    yield server
    server.close()


def test_tokens_what_if_and_completions_answer_in_the_browser(inspected, open_page, tiny_settings):
    store = Store(inspected.db)
    settings = {**tiny_settings, "rubric.name": "concise answer", "train.steps": 2}
    run_id = train_run(store, settings, "tiny")
    page = open_page(inspected, f"?run={run_id}&tab=inspect&step=1&group=1")
    expect(page.locator("#opened-group")).to_contain_text("share of this step’s gradient")

    look(page, "Tokens")
    tokens = page.locator(".tokens")
    expect(tokens).to_be_visible()
    tokens.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".token-says")).to_contain_text(re.compile(r"token 1 .*id \d+"))
    page.keyboard.press("End")
    expect(page.locator(".token-says")).to_contain_text(f"token {tokens.locator('.tok').count()} ")
    page.get_by_role("radio", name="entropy").check(force=True)
    expect(page.locator(".tokens")).to_have_attribute("aria-label", re.compile("entropy"))

    look(page, "What if")
    weight = page.get_by_label("Weight of length")
    weight.fill("2")
    expect(page.locator("#look-body")).to_contain_text("would have been pushed the other way")
    expect(page.locator("#look-controls output").nth(3)).to_have_text("2")
    page.get_by_role("button", name="Use in a new run").click()
    expect(page.locator("#notice")).to_contain_text("The set-up has the settings of “tiny”")
    expect(field(page, "Group size")).to_have_value("4")

    page.get_by_role("tab", name="Inspect").click()
    page.locator("#list-mode").get_by_role("radio", name="Completions").check(force=True)
    expect(page.locator("#group-table")).to_contain_text(
        "1–16 of 16 completions"
    )  # 2 steps of 2 prompts of 4
    page.get_by_label("Length to").fill("0")
    expect(page.locator("#group-table")).to_contain_text("No completion matches")


def test_a_second_choice_counts_before_the_first_is_answered(inspected, open_page, tiny_settings):
    store = Store(inspected.db)
    settings = {**tiny_settings, "train.steps": 1, "train.prompts_per_step": 3}
    run_id = train_run(store, settings, "tiny")
    page = open_page(inspected, f"?run={run_id}&tab=inspect&step=1&group=1")
    page.evaluate(SLOW_ANSWERS)

    head = page.locator("#opened-group .group-head")
    for _ in range(5):  # from the first of three groups: 2, 3, 1, 2, 3
        head.get_by_role("button", name="Next group").click()
    expect(head).to_contain_text("group 3 of 3")
    head.get_by_role("button", name="Previous group").press("ArrowLeft")
    expect(head).to_contain_text("group 2 of 3")

    look(page, "Tokens")
    page.locator("#look-controls select").select_option("2")
    page.get_by_role("radio", name="entropy").check(force=True)
    shown = page.locator("#look-body .tokens")
    expect(shown).to_have_attribute("aria-label", re.compile("entropy"))
    third = store.group(store.group_ids(run_id, 1)[1]).rollouts[2]
    shown.press("End")
    expect(page.locator(".token-says")).to_contain_text(
        re.compile(rf"id {store.token_row(third.id).token_ids[-1]}\b")
    )

    page.locator("#chips button").nth(1).click()
    page.locator("#group-table [data-key=reward_mean]").click()
    expect(page.locator("#group-table th[aria-sort=descending]")).to_contain_text("Mean")
    expect(page.locator("#chips button").nth(1)).to_have_attribute("aria-pressed", "true")


def test_runs_are_selected_and_sorted_as_fast_as_one_clicks(server, open_page):
    store = Store(server.db)
    for name in ("b", "a"):
        store.set_status(store.create_run(RunConfig(), name), RunStatus.FINISHED)
    page = open_page(server, "?tab=runs")
    names, boxes = (
        page.locator("#run-table td.name .link"),
        page.locator("#run-table [data-do=select]"),
    )
    expect(names).to_have_text(["a", "b"])  # the newest first
    page.evaluate(SLOW_ANSWERS)
    boxes.nth(0).click()
    boxes.nth(1).click()
    expect(page.get_by_text("Where their settings differ")).to_be_visible()
    name = page.locator("#run-table th [data-key=name]")
    name.click()
    expect(page.locator("#run-table th[aria-sort=ascending]")).to_contain_text("Name")
    name.click()
    expect(names).to_have_text(["b", "a"])


def curve_run(store: Store) -> str:
    """Sixty steps whose loss repeats 0, .1, .2, .3, with three spikes."""
    run_id = store.create_run(RunConfig(), "curves")
    with Recorder(store, run_id) as record:
        for step in range(1, 61):
            record(
                StepCompleted(
                    step,
                    StepMetrics(
                        loss={20: 9.0, 30: 50.0, 40: 7.0}.get(step, 0.1 * (step % 4)),
                        reward_mean=0.5,
                        kl=0.01,
                    ),
                    {},
                )
            )
    store.set_status(run_id, RunStatus.FINISHED)
    return run_id


def test_a_curve_reports_hidden_points_and_saves_csv_and_png(inspected, open_page):
    page = open_page(inspected, f"?run={curve_run(Store(inspected.db))}")
    curve = page.locator("#curve-loss")
    expect(curve.locator(".curve-clipped")).to_contain_text("3 points above 0.300 are not drawn.")
    top = "() => document.querySelector('#curve-loss .js-plotly-plot')?.layout.yaxis.range[1]"
    page.wait_for_function(f"({top})() < 1")
    curve.get_by_role("button", name="Show them").click()
    page.wait_for_function(f"({top})() > 50")
    curve.get_by_role("button", name="Leave them out").click()
    page.wait_for_function(f"({top})() < 1")

    with page.expect_download() as download:
        curve.get_by_role("button", name="CSV").click()
    assert download.value.suggested_filename == "loss.csv"
    rows = list(csv.reader(download.value.path().read_text("utf-8").splitlines()))
    assert rows[0] == ["step", "Loss"]
    assert [float(r[0]) for r in rows[1:]] == list(range(1, 61))
    assert [float(rows[n][1]) for n in (1, 20, 30, 40)] == [
        0.1,
        9.0,
        50.0,
        7.0,
    ]  # the file has what the picture leaves out

    with page.expect_download() as download:
        curve.get_by_role("button", name="PNG").click()
    assert download.value.suggested_filename == "loss.png"
    picture = download.value.path().read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", picture[16:24]) == (1920, 1080)
    assert len(picture) > 10_000  # something is drawn on it
