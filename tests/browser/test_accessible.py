"""Accessibility: axe-core on every view, light and dark, on a phone and on a desktop.

Also the whole inspector by keyboard.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from live_server import Server
from playwright.sync_api import Page, expect
from trained_runs import train_run
from views import GROUP_VIEWS, fits, views

from grpo_core.store import Store

# Violations inside Gradio that cannot be fixed here: rule -> (a selector, the reason).
GRADIOS_OWN: dict[str, tuple[str, str]] = {}
SERIOUS = ("serious", "critical")
DESK, PHONE = {"width": 1440, "height": 1000}, {"width": 380, "height": 820}


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory) -> Iterator[Server]:
    """A server over two finished runs of one task and seed, with recorded tokens."""
    db = tmp_path_factory.mktemp("finished") / "runs.sqlite"
    store = Store(db)
    for name in ("one", "other"):
        settings = {
            "model.name": str(tiny_model),
            "task.heldout_size": 8,
            "train.steps": 2,
            "train.prompts_per_step": 2,
            "train.group_size": 4,
            "train.max_new_tokens": 8,
            "train.eval_every": 1,
            "rubric.name": "concise answer",
        }
        train_run(store, settings, name)
    store.close()
    server = Server(db)
    yield server
    server.close()


# The views of one group differ in these parts alone; its first view is checked whole.
PARTS = ("#look-controls", "#look-body")


def violations(
    page: Page,
    dark: bool,
    size: dict[str, int],
    parts: tuple[str, ...] = ("body",),
) -> list[str]:
    """The serious and critical violations in `parts` that axe-core finds."""
    page.set_viewport_size(size)
    page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
    options = {
        "resultTypes": ["violations"],
        "rules": {
            rule: {"enabled": False} for rule, (where, _) in GRADIOS_OWN.items() if not where
        },
    }
    context = {
        "include": [[part] for part in parts],
        "exclude": [[where] for where, _ in GRADIOS_OWN.values() if where],
    }
    found = page.evaluate(
        """async ([context, options]) => {
             for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);  // drawn anew
             return axe.run(context, options);
           }""",
        [context, options],
    )["violations"]
    where = f"{'dark' if dark else 'light'}, {size['width']} px"
    return [
        f"{where}: {v['id']} {node['target']} {node['html'][:120]}"
        for v in found
        if v["impact"] in SERIOUS
        for node in v["nodes"]
    ]


@pytest.mark.slow
def test_axe_finds_nothing_serious_in_any_view_theme_or_width(finished, open_page):
    page = open_page(finished)
    page.emulate_media(reduced_motion="reduce")  # no colour halfway between two themes
    page.evaluate(AXE_SCRIPT)
    found = {}
    for name, go in views(page):
        page.set_viewport_size(DESK)
        go()
        page.mouse.move(0, 0)
        # A theme changes only colours, and a size only places.
        repeated = name in {f"inspect, {view.lower()}" for view in GROUP_VIEWS[1:]}
        parts = PARTS if repeated else ("body",)
        found[name] = violations(page, False, DESK, parts) + violations(page, True, PHONE, parts)
        assert fits(page), f"{name} scrolls sideways at 380 px"
    assert len(found) >= 21  # Train and Inspect seven each, Runs two, the Playground, Learn four
    assert [f"{name}: {what}" for name, all_of_it in found.items() for what in all_of_it] == []


def tab_to(page: Page, selector: str, most: int = 90) -> None:
    """Press Tab until the focus is on `selector`, as a person without a pointer does."""
    for _ in range(most):
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} was not reached with {most} presses of Tab")


def test_the_whole_inspector_is_reached_and_used_by_keyboard(finished, open_page):
    page = open_page(finished, "?tab=inspect")
    expect(page.locator("#look-body article").first).to_be_visible()

    # The list: search, verdicts, the curve of verdicts, order, a group.
    tab_to(page, "#list-mode input")
    tab_to(page, "#search input")
    page.keyboard.type("<", delay=20)
    tab_to(page, "#chips button")
    tab_to(page, "#chips button:last-child")
    page.keyboard.press("Enter")
    expect(page.locator("#chips button[aria-pressed=true]")).not_to_have_text(re.compile("^all"))
    page.locator("#search input").fill("")
    page.locator("#chips button").first.press("Enter")
    expect(page.locator("#chips button").first).to_have_attribute("aria-pressed", "true")
    page.locator(
        "#verdicts-over-time .js-plotly-plot .trace"
    ).first.wait_for()  # drawn: plotly.js comes after the page
    tab_to(page, "#verdicts-over-time .plot")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#chips")).to_contain_text("only step 2")
    page.get_by_role("button", name=re.compile("Show all steps")).press("Enter")
    expect(page.locator("#chips")).not_to_contain_text("only")
    tab_to(page, "#group-table [data-key=reward_mean]")
    page.keyboard.press("Enter")
    expect(page.locator("#group-table th[aria-sort=descending]")).to_contain_text("Mean")
    tab_to(page, "#group-table tr:nth-child(4) .row-button")
    prompt = page.locator("#group-table tr:nth-child(4) .row-button").inner_text()
    page.keyboard.press("Enter")
    expect(page.locator("#group-table tr:nth-child(4)")).to_have_attribute("aria-current", "true")

    # The group: the arrows walk to the next one, a button turns the order round.
    head = page.locator("#opened-group .group-head")
    expect(head).to_contain_text(prompt)
    before = head.inner_text()
    tab_to(page, "#opened-group [data-by='1']")
    page.keyboard.press("ArrowRight")
    expect(head).not_to_have_text(before, use_inner_text=True)
    tab_to(page, "#opened-group [data-do=order]")
    page.keyboard.press("Enter")
    expect(head.locator("[data-do=order]")).to_have_attribute("aria-pressed", "false")

    # The six looks: arrows move the choice, round and round.
    look = page.locator("#look")
    tab_to(page, "#look input[value=cards]")
    page.keyboard.press("ArrowRight")
    expect(look.get_by_role("radio", name="Best and worst")).to_be_checked()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#look-body .tok").first).to_be_visible()
    tab_to(page, "#look-controls select")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#look-controls select")).to_have_value("1")
    tab_to(page, "#look-controls [name=by]")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#look-body .tokens")).to_have_attribute(
        "aria-label", re.compile("by ratio")
    )
    tab_to(page, "#look-body .tokens")
    page.locator("#look-body .tokens").press(
        "End"
    )  # wherever the focus went when the tokens were drawn anew
    expect(page.locator(".token-says")).to_contain_text(re.compile(r"token \d+ .*id \d+"))

    look.get_by_role("radio", name="Tokens").focus()
    page.keyboard.press("ArrowRight")
    tab_to(page, "#look-controls input[type=range]")
    page.keyboard.press("End")
    expect(page.locator("#look-body")).to_contain_text("largest change of A")
    tab_to(page, "#look-controls [data-do=reset]")
    page.keyboard.press("Enter")
    expect(page.locator("#look-body")).to_contain_text("largest change of A 0.000")
    look.get_by_role("radio", name="What if").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#look-body")).to_contain_text("Answer, step 0")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#look-controls select")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(look.get_by_role("radio", name="Completions")).to_be_checked()
    expect(page.locator("#look-body article").first).to_be_visible()

    # The list of completions: every bound, and its export.
    page.locator("#list-mode input[value=groups]").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#group-table")).to_contain_text("16 completions")
    tab_to(page, "#narrow [name=tokens_to]")
    page.keyboard.type("0")
    expect(page.locator("#group-table")).to_contain_text("No completion matches")
    page.keyboard.press("Backspace")
    expect(page.locator("#group-table")).to_contain_text("16 completions")
    tab_to(page, "#narrow [data-do=export]")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.suggested_filename.endswith(".jsonl")
