"""Inspect in a real browser: history, the list, toggles, held-out groups, comparisons."""

from __future__ import annotations

import pytest
from live_server import Server
from playwright.sync_api import expect
from recorded import record_run
from views import look, pick_run, wait_until

from grpo_core.store import Recorder, Store
from grpo_core.types import Completion, Evaluated, Group, Prompt, Rollout


def record_evaluation(store: Store, run_id: str, step: int, text: str) -> None:
    """Two held-out groups of one completion each."""
    groups = tuple(
        Group(
            Prompt(f"held-{n}", f"H: {n}+9=?", "50", "sums"),
            (Rollout(Completion(text, "stop", 4), {"accuracy": float(step > 0)}, float(step > 0)),),
            float(step > 0),
            None,
            "evaluation",
        )
        for n in (41, 42)
    )
    with Recorder(store, run_id) as record:
        record(Evaluated(step, {"heldout/accuracy": 0.5}, groups))


@pytest.fixture(scope="module")
def recorded_server(tmp_path_factory):
    """A server over two finished runs: "first" of 3 steps, "second" of 4."""
    db = tmp_path_factory.mktemp("inspect") / "runs.sqlite"
    store = Store(db)
    first, second = record_run(store, "first"), record_run(store, "second", steps=4)
    record_evaluation(store, first, 0, "does not know")
    record_evaluation(store, first, 3, "knows <answer>50</answer>")
    record_evaluation(store, second, 4, "says <answer>50</answer>")
    store.close()
    server = Server(db)
    server.runs = {"first": first, "second": second}
    yield server
    server.close()


def test_back_returns_to_the_tab_the_run_and_the_group(recorded_server, open_page):
    first = recorded_server.runs["first"]
    page = open_page(recorded_server, f"?run={first}")
    expect(page.locator("#group")).to_contain_text("step 3")
    entries = page.evaluate("history.length")
    page.get_by_role("tab", name="Inspect").click()
    head = page.locator("#opened-group .group-head")
    expect(head).to_contain_text("Q: 3+0=?")
    page.get_by_role("button", name="Open group 2 of step 1").click()
    expect(head).to_contain_text("Q: 1+9=?")
    page.get_by_role("button", name="Open group 1 of step 2").click()
    expect(head).to_contain_text("Q: 2+0=?")
    pick_run(page, "second")
    expect(head).to_contain_text("Q: 4+0=?")
    page.wait_for_function("!location.search.includes('step')")
    wait_until(lambda: page.evaluate("history.length") == entries + 4)  # tab, group, group, run

    page.go_back()
    expect(head).to_contain_text("Q: 2+0=?")
    expect(page.get_by_label("Run", exact=True)).to_have_value("first")
    page.go_back()
    expect(head).to_contain_text("Q: 1+9=?")
    page.go_back()
    expect(head).to_contain_text("Q: 3+0=?")
    page.go_back()
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")
    wait_until(lambda: f"run={first}" in page.url and "tab=" not in page.url)
    page.go_forward()
    page.go_forward()
    expect(head).to_contain_text("Q: 1+9=?")
    assert page.evaluate("history.length") == entries + 4  # nothing was added


def test_back_asks_once(recorded_server, open_page):
    page = open_page(recorded_server, f"?run={recorded_server.runs['first']}&tab=inspect")
    head = page.locator("#opened-group .group-head")
    page.get_by_role("button", name="Open group 2 of step 1").click()
    expect(head).to_contain_text("Q: 1+9=?")
    names: list[str] = []
    page.on("request", lambda r: "/studio/show" in r.url and names.append(r.post_data_json["name"]))
    page.go_back()
    expect(head).to_contain_text("Q: 3+0=?")
    for _ in range(2):  # the second one was certainly asked after the arrival
        with page.expect_request("**/studio/show"):
            pass
    assert [name for name in names if name != "poll"] == ["arrive"]


def test_set_reward_says_why_it_is_disabled(recorded_server, open_page):
    page = open_page(recorded_server)
    page.get_by_role("button", name="Run control").click()
    expect(page.get_by_role("button", name="Set reward")).to_be_disabled()
    expect(page.locator("#edit-refusal")).to_have_text(
        "This run is finished: its rewards are final."
    )


@pytest.mark.parametrize("width", [1440, 380])
def test_no_column_of_the_list_is_cut(recorded_server, open_page, width):
    page = open_page(recorded_server, f"?run={recorded_server.runs['second']}&tab=inspect")
    page.set_viewport_size({"width": width, "height": 900})
    for mode in ("Groups", "Completions"):
        page.locator("#list-mode").get_by_role("radio", name=mode).check(force=True)
        table = page.locator("#group-table .scroll")
        expect(table).to_contain_text("Completion" if mode == "Completions" else "Prompt")
        cut = """box => [...box.querySelectorAll('td')].filter(cell =>
                 cell.scrollWidth > cell.clientWidth + 1 && !cell.matches('.prompt-cell')
                 || cell.getBoundingClientRect().right > box.getBoundingClientRect().right + 1
               ).length + (box.scrollWidth > box.clientWidth + 1)"""
        wait_until(lambda table=table, cut=cut: table.evaluate(cut) == 0)
        assert table.locator(".prompt-cell").first.bounding_box()["width"] > 80


def test_toggles_say_and_show_their_state(recorded_server, open_page):
    page = open_page(recorded_server, f"?run={recorded_server.runs['first']}&tab=inspect")
    head = page.locator("#opened-group")
    for name, first in (("Best first", "true"), ("Full texts", "false")):
        toggle = head.get_by_role("button", name=name, exact=True)
        other = "true" if first == "false" else "false"
        sign = "button => getComputedStyle(button, '::before').content.startsWith('\"✓')"
        expect(toggle).to_have_attribute("aria-pressed", first)
        assert toggle.evaluate(sign) is (first == "true")
        toggle.click()
        expect(toggle).to_have_attribute("aria-pressed", other)
        assert toggle.evaluate(sign) is (other == "true")
    head.get_by_role("button", name="Next group").click()
    expect(head).to_contain_text("group 2 of 2")
    expect(head.get_by_role("button", name="Full texts")).to_have_attribute("aria-pressed", "true")


def test_another_run_shows_none_of_the_old_choices(recorded_server, open_page):
    page = open_page(recorded_server, f"?run={recorded_server.runs['first']}&tab=inspect")
    page.locator("#chips").get_by_role("button", name="tied").click()
    page.get_by_role("button", name="Open group 2 of step 1").click()
    expect(page.locator("#opened-group")).to_contain_text("Q: 1+9=?")
    page.get_by_role("tab", name="Runs").click()
    page.locator("#run-table").get_by_role("button", name="second", exact=True).click()
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")
    page.get_by_role("tab", name="Inspect").click()
    expect(page.locator("#opened-group")).to_contain_text("Q: 4+0=?")
    expect(page.locator("#chips").get_by_role("button", name="all 8")).to_have_attribute(
        "aria-pressed", "true"
    )


def test_a_row_tapped_on_a_phone_brings_its_group_into_view(recorded_server, open_page):
    page = open_page(recorded_server, f"?run={recorded_server.runs['first']}&tab=inspect")
    page.set_viewport_size({"width": 380, "height": 820})
    page.get_by_role("button", name="Open group 2 of step 1").click()
    expect(page.locator("#opened-group .group-head")).to_be_in_viewport()


def test_held_out_groups_are_marked_and_have_a_filter(recorded_server, open_page):
    page = open_page(recorded_server, f"?run={recorded_server.runs['first']}&tab=inspect")
    chips, table = page.locator("#chips"), page.locator("#group-table")
    expect(chips.get_by_role("button", name="all 6")).to_be_visible()
    chips.get_by_role("button", name="evaluation 4").click()
    expect(table).to_contain_text("1–4 of 4 groups")
    page.get_by_role("button", name="Open group 2 of evaluation after step 3").click()
    head = page.locator("#opened-group")
    expect(head).to_contain_text("H: 42+9=?")
    expect(head).to_contain_text("A held-out prompt, answered after step 3.")
    expect(head.locator(".verdict")).to_have_text("evaluation")
    for view in ("Tokens", "What if"):
        look(page, view)
        expect(page.locator("#look-body")).to_contain_text("Open a group of a training step.")
    page.reload()  # the address names it
    expect(head).to_contain_text("H: 42+9=?")
    head.get_by_role("button", name="Next group").click()
    expect(head).to_contain_text("H: 41+9=?")
    expect(head).to_contain_text("group 1 of 2")


def test_through_time_and_two_runs_begin_with_something_to_show(recorded_server, open_page):
    page = open_page(recorded_server, f"?run={recorded_server.runs['first']}&tab=inspect")
    expect(page.locator("#opened-group")).to_contain_text("Q: 3+0=?")  # came up once
    body, controls = page.locator("#look-body"), page.locator("#look-controls")
    look(page, "Through time")
    expect(body).to_contain_text("H: 41+9=?")
    expect(body.locator("tbody tr")).to_have_count(2)
    expect(body.locator(".two")).to_contain_text("knows")
    expect(controls).to_contain_text("came up once")
    controls.get_by_label("Prompt").select_option(label="H: 42+9=? (held-out, 2 visits)")
    expect(body).to_contain_text("H: 42+9=?")
    look(page, "Two runs")
    expect(body.locator(".two").first).to_contain_text("first")
    expect(body.locator(".two").first).to_contain_text("second")
    heights = "all => all.map(pill => pill.getBoundingClientRect().height)"
    wait_until(lambda: 0 < max(body.locator(".two .verdict").evaluate_all(heights)) < 30)
    expect(body).to_contain_text("Q: 3+0=?")  # both runs met the open group's prompt
    controls.get_by_label("Prompt").select_option(label="H: 41+9=? (held-out, 2 visits)")
    expect(body).to_contain_text("says")
    expect(body).to_contain_text("knows")
