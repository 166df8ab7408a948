"""The main job in a real browser: start, watch, stop, reload, inspect, overlay, export, delete."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect
from set_up import fill
from views import wait_until

from grpo_core.store import Store
from grpo_core.types import RunStatus


def step_in(panel: str) -> int | None:
    """The step that the text of the group panel names."""
    found = re.search(r"step ([\d,]+)", panel.lower())
    return int(found[1].replace(",", "")) if found else None


def step_shown(page) -> int:
    """The step in the group panel; waits until there is one."""
    return wait_until(lambda: step_in(page.locator("#group").inner_text()))


def siblings_shown(page) -> int:
    """How many completions the cards stand for: equal ones share a card, "×3"."""
    cards = page.locator("#group article").all_inner_texts()
    return sum(int(n[1]) if (n := re.search(r"×(\d+)\n", card)) else 1 for card in cards)


def start(page) -> None:
    page.get_by_role("button", name="Start training").click()


def stop(page, store, run_id) -> None:
    page.get_by_role("button", name="Stop", exact=True).click()
    wait_until(lambda: store.run(run_id).status == RunStatus.STOPPED)


def test_a_stranger_starts_watches_stops_reloads_inspects_overlays_exports_and_deletes(
    server, open_page, context, tmp_path
):
    page = open_page(server)
    store = Store(server.db)
    fill(page, "Steps", "1000")  # it must not end by itself
    start(page)
    page.locator("#group article pre").first.wait_for()

    # live groups: eight siblings, each with a signed advantage; the panel follows the newest step
    assert siblings_shown(page) == 8
    first = step_shown(page)
    wait_until(lambda: step_shown(page) > first)
    run = store.runs()[0]
    for curve in ("reward", "kl", "loss"):
        page.locator(f"#curve-{curve} .js-plotly-plot .scatterlayer .trace").first.wait_for()

    # what is shown is what is stored; step and texts are read at one moment of a live page
    panel, texts = page.evaluate(
        "() => { const group = document.getElementById('group'); return [group.innerText, "
        "[...group.querySelectorAll('article pre')].map(text => text.innerText)]; }"
    )
    group = store.group(store.group_ids(run.id, step_in(panel))[0])
    assert set(texts) == {r.text for r in group.rollouts}

    # a second tab of the same browser shows the same run; closing it changes nothing
    second = open_page(server, f"?run={run.id}")
    reached = step_shown(page)
    wait_until(lambda: step_shown(second) >= reached)
    second.close()

    stop(page, store, run.id)
    expect(page.locator("#outlook")).to_contain_text(f"measured in “{run.name}”")
    kept = store.run(run.id).steps_done
    assert kept >= 2
    assert len(store.steps(run.id)) == kept

    # reload: the same run at the same step
    at = wait_until(
        lambda: step_shown(page) == store.last_step_with_groups(run.id) and step_shown(page)
    )
    page.reload()
    page.locator("#group article pre").first.wait_for()
    wait_until(lambda: step_shown(page) == at)
    page.get_by_text("stopped").first.wait_for()

    # a second, shorter run with another seed, to the end
    fill(page, "Steps", "3")
    fill(page, "Seed", "1")
    start(page)
    wait_until(
        lambda: store.runs()[0].id != run.id and store.runs()[0].status == RunStatus.FINISHED, 120
    )
    other = store.runs()[0]
    assert (other.steps_done, other.config["train"]["seed"]) == (3, 1)

    # inspect a group of it
    page.get_by_role("tab", name="Inspect").click()
    rows = page.locator("#group-table tbody tr [data-do=open]")
    expect(rows).to_have_count(24)  # 3 steps of 8 prompts
    prompt = rows.nth(5).inner_text()
    rows.nth(5).click()
    wait_until(lambda: prompt in page.locator("#opened-group").inner_text())
    page.locator("#opened article pre").first.wait_for()
    wait_until(lambda: "group=" in page.url and f"run={other.id}" in page.url)
    shared = context.new_page()
    shared.goto(page.url)
    wait_until(lambda: prompt in shared.locator("#opened-group").inner_text())
    shared.close()

    # overlay two runs; only the differing settings are listed
    page.get_by_role("tab", name="Runs").click()
    boxes = page.locator("#run-table [role=checkbox]")
    boxes.first.wait_for()
    for i in range(2):
        boxes.nth(i).click()
        expect(page.locator("#run-table [role=checkbox][aria-checked=true]")).to_have_count(i + 1)
    page.locator("#compare-reward .js-plotly-plot .scatterlayer .trace").nth(1).wait_for()
    differing = page.locator("#differences")
    expect(differing).to_contain_text("train.steps")
    expect(differing).to_contain_text("train.seed")
    expect(differing).not_to_contain_text("kl_coef")

    # export one
    boxes.nth(1).click()
    expect(page.locator("#run-table [role=checkbox][aria-checked=true]")).to_have_count(1)
    page.get_by_role("button", name="Export", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export JSONL").click()
    download.value.save_as(tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "training" for line in lines) == 3 * 8 * 8
    page.get_by_role("button", name="Export", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export CSV").click()
    download.value.save_as(tmp_path / "out.csv")
    assert len((tmp_path / "out.csv").read_text().splitlines()) >= 4

    # rename and delete it: it asks first
    page.get_by_role("button", name=f"Rename {other.name}", exact=True).click()
    page.locator("#run-editor").get_by_label("Name").fill("to be deleted")
    page.get_by_role("button", name="Save", exact=True).click()
    page.locator("#run-table").get_by_text("to be deleted").wait_for()
    assert store.run(other.id).name == "to be deleted"
    page.get_by_role("button", name="More", exact=True).click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Delete for good").click()
    wait_until(lambda: [r.id for r in store.runs()] == [run.id])


@pytest.mark.parametrize(
    ("label", "value", "says"),
    [
        ("Steps", "0", "at least 1"),
        ("Group size", "1", "at least 2"),
        ("Model", "/no/such/folder", "no such folder"),
    ],
)
def test_wrong_input_is_reported_beside_its_field_and_kept(
    idle_server, open_page, label, value, says
):
    page = open_page(idle_server)
    control = fill(page, label, value)
    if label == "Model":
        control.press("Enter")
        control.blur()
    start(page)
    page.get_by_text(says).first.wait_for()
    page.locator("#start-problems").get_by_role("button", name=label).wait_for()
    expect(control).to_have_value(value)
    assert Store(idle_server.db).runs() == []
