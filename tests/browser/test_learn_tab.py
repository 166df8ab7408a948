"""Learn: the glossary and its links, GRPO beside PPO, and one prompt through a run."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from live_server import Server
from playwright.sync_api import Page, expect
from recorded import record_run
from views import FITS, learn_part, wait_until
from watch import watched

from grpo_core.store import Recorder, Store
from grpo_core.types import Completion, Evaluated, Group, Prompt, Rollout

NAME = "<img src=x onerror=alert(1)> " * 8
TEXT = "<think><script>alert(2)</script></think><answer>{}</answer>"


def evaluate(store: Store, run_id: str) -> None:
    """Three evaluations of two held-out prompts; at the first one nothing reasons."""
    with Recorder(store, run_id) as record:
        for i, step in enumerate((10, 20, 30)):
            done = Completion(TEXT.format(i) if i else "<b>no</b>", "stop", 5 + i)
            scores = {"accuracy": float(i > 1), "reasoning": float(i > 0)}
            rollouts = (Rollout(done, scores, float(i > 1)),)
            groups = tuple(
                Group(
                    Prompt(p, f"{p} of <i>1+1</i>?", "2", "sums"), rollouts, 0.0, 0.0, "evaluation"
                )
                for p in ("first", "second")
            )
            metrics = {"heldout/reasoning": i / 2, "heldout/completion_tokens": 5.0 + i}
            record(Evaluated(step, {**metrics, "heldout/accuracy": i / 4}, groups))


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Iterator[tuple[Server, str]]:
    """A server over two runs, and the id of the older one, which has the hostile name."""
    db = tmp_path_factory.mktemp("learn") / "runs.sqlite"
    store = Store(db)
    run_id = record_run(store, NAME.strip()[:200], steps=3)
    evaluate(store, run_id)
    record_run(store, "newer")
    store.close()
    server = Server(db)
    yield server, run_id
    server.close()


@pytest.fixture(scope="module")
def page(stored, browser) -> Iterator[Page]:
    """A page of the older run, shared by the tests; each goes where it begins."""
    server, run_id = stored
    with watched(browser) as context:
        page = context.new_page()
        page.goto(f"{server.url}/?run={run_id}")
        page.locator("#curve-kl .curve-title").filter(has_text="KL").wait_for()
        yield page


def open_part(page: Page, title: str) -> None:
    page.get_by_role("tab", name="Learn").click()
    learn_part(page, title)


def test_a_charts_title_leads_to_its_entry_which_survives_a_reload(page, stored):
    page.locator("#curve-kl .curve-title").press("Enter")
    page.locator("#curve-kl .curve-meaning").get_by_role("link", name="In the glossary").click()
    entry = page.locator("[data-term='kl']")
    expect(entry).to_have_attribute("aria-current", "true")
    expect(entry).to_be_in_viewport()
    expect(entry).to_be_focused()
    here = re.compile(rf"run={stored[1]}.*tab=learn&part=glossary&at=kl$")
    expect(page).to_have_url(here)
    page.reload()
    expect(page.locator("[data-term='kl']")).to_be_in_viewport()
    expect(page).to_have_url(re.compile("tab=learn.*part=glossary.*at=kl"))

    # A link inside the glossary leads on, and Back leads back to the chart.
    page.get_by_role("link", name="Clip range, low", exact=True).click()
    expect(page.locator("[data-term='algorithm.clip_eps_low']")).to_be_focused()
    page.go_back()
    expect(page.locator("[data-term='kl']")).to_have_attribute("aria-current", "true")
    page.go_back()
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")


def test_the_glossary_is_searched_as_one_types(page):
    open_part(page, "Glossary")
    search = page.get_by_role("searchbox", name="Search the glossary")
    search.press_sequentially("critic squared", delay=5)
    shown = page.locator("#glossary .term").filter(visible=True)
    said = page.locator("#glossary-tools [role=status]")
    expect(shown.filter(has_text="Clip range, low")).to_have_count(0)  # it is searched
    wait_until(lambda: said.inner_text().split()[0] == str(shown.count()))
    expect(said).to_contain_text("entry" if shown.count() == 1 else "entries")
    assert {t.get_attribute("data-term") for t in shown.all()} >= {"algorithm.value_coef"}
    for term in shown.all():
        text = term.inner_text().lower()
        assert "critic" in text
        assert "squared" in text
    assert page.locator("#glossary section").filter(visible=True).count() < 10
    search.fill("")
    expect(page.locator("#glossary section").filter(visible=True)).to_have_count(10)


def test_the_comparison_shows_recorded_figures_and_offers_to_measure(page):
    open_part(page, "Beside PPO")
    results = page.get_by_role("region", name="Results by method")
    expect(results.get_by_role("row", name=re.compile("^PPO .critic. yes 3"))).to_be_visible()
    expect(page.locator("#methods-results")).to_contain_text("Recorded example: 21 November 2026")
    button = page.get_by_role("button", name="Compare over 1 seed")
    expect(button).to_be_enabled()
    expect(page.locator("#methods-offers")).to_contain_text("4 runs of 60 steps, about 3 min")


def test_one_prompt_is_shown_at_three_times_and_foreign_text_is_literal(page, stored):
    open_part(page, "Longer thinking")
    three = page.locator("#thinking-three")
    expect(three.locator("article")).to_have_count(3)
    expect(three.locator("q")).to_have_text("first of <i>1+1</i>?")
    expect(three.get_by_role("article", name=re.compile("^Beginning"))).to_contain_text("<b>no</b>")
    last = three.get_by_role("article", name=re.compile("^End"))
    expect(last).to_contain_text(TEXT.format(2))
    expect(last).to_contain_text("✓ right")
    expect(page.locator("#thinking-about")).to_contain_text("<img src=x onerror=alert(1)>")
    expect(page.locator("#thinking-share .curve-now")).to_have_text("")
    page.locator("#thinking-length .scatterlayer .trace").first.wait_for(state="attached")

    # The next prompt has an address; its completion opens on Inspect.
    three.get_by_role("button", name="Next prompt").click()
    expect(three.locator("q")).to_have_text("second of <i>1+1</i>?")
    expect(page).to_have_url(re.compile("part=thinking.*at=2"))
    page.reload()
    expect(three.locator("q")).to_have_text("second of <i>1+1</i>?")
    last.get_by_role("link").click()
    expect(page.locator("#opened-group .group-head")).to_contain_text("second of <i>1+1</i>?")
    expect(page).to_have_url(re.compile(rf"run={stored[1]}&.*step=30&group=2&kind=evaluation"))


def test_every_part_fits_a_phone_and_is_chosen_by_arrow_keys(page):
    open_part(page, "Beside PPO")
    page.set_viewport_size({"width": 380, "height": 820})
    part = page.locator("#learn-part")
    for title in ("Longer thinking", "Glossary"):
        page.wait_for_function(FITS)
        part.get_by_role("radio", checked=True).press("ArrowRight")
        expect(part.get_by_role("radio", name=title)).to_be_checked()
        learn_part(page, title)
    page.wait_for_function(FITS)
    page.set_viewport_size({"width": 1440, "height": 900})
