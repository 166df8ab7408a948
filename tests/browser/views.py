"""Every view of the page and how a person opens it.

The order matters: each view opens from the one before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from playwright.sync_api import Locator, Page, TimeoutError
from set_up import open_section

from ui.components import form
from ui.tabs.learn import PARTS as LEARN_PARTS

GROUP_VIEWS = ("Completions", "Best and worst", "Tokens", "What if", "Through time", "Two runs")
FITS = "document.documentElement.scrollWidth <= innerWidth"  # nothing scrolls sideways


def views(page: Page, tokens: bool = True) -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, how to open it) for each view of a finished run, beside a second run.

    New tabs of the page are included automatically. tokens: whether the run has recorded tokens.
    """
    yield "train", lambda: page.locator("#group article").first.wait_for()
    yield "train, all tools", lambda: _ask_for_tools(page)
    for section in form.SECTIONS:
        yield f"train, {section}", lambda section=section: open_section(page, section)
    for tab in page.locator("#tabs > .tab-wrapper").get_by_role("tab").all_inner_texts():
        if tab == "Train":
            continue
        yield tab.lower(), lambda tab=tab: _tab(page, tab)
        if tab == "Inspect":
            for view in GROUP_VIEWS[1:]:
                if view == "Tokens" and not tokens:
                    continue
                yield f"inspect, {view.lower()}", lambda view=view: _group_view(page, view)
            yield "inspect, list of completions", lambda: _completions(page)
            yield "inspect, compare", lambda: _judge(page, "Compare")
            yield "inspect, rank the group", lambda: _judge(page, "Rank the group")
        if tab == "Runs":
            yield "runs, two compared", lambda: _compare(page)
        if tab == "Learn":
            for title in LEARN_PARTS.values():
                yield f"learn, {title.lower()}", lambda title=title: learn_part(page, title)
            if tokens:
                yield "learn, walk: ratio and clip", lambda: _walk_to(page, "ratio")


def wait_until(ask: Callable, seconds: float = 60.0):
    """The first true answer; it fails without one for so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := ask()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found, "it did not happen in time"
    return found


def fits(page: Page) -> bool:
    """Whether the page does not scroll sideways, once its charts have taken their new width."""
    try:
        page.wait_for_function(FITS, timeout=10_000)
    except TimeoutError:
        return False
    return True


def ends(place: Locator, start: str = "y", size: str = "height") -> float:
    """The lower edge of an element on the page, in pixels; with "x" and "width" its right edge."""
    box = place.bounding_box()
    assert box is not None, f"{place} is not on the page"
    return box[start] + box[size]


def arrive(page: Page, address: str) -> Page:
    """Open an address, and wait for the first answer, whatever tab it names."""
    page.goto(address)
    page.get_by_role("tab", name="Train").wait_for()
    page.wait_for_function("window.studioRefresh?.failed === 0")
    return page


def pick_run(page: Page, name: str) -> None:
    """Choose the run in view."""
    page.get_by_label("Run", exact=True).click()
    page.get_by_role("option", name=name.strip()).click()


def look(page: Page, view: str) -> None:
    """Choose one of GROUP_VIEWS."""
    page.locator("#look").get_by_role("radio", name=view, exact=True).check(force=True)


def learn_part(page: Page, title: str) -> None:
    """Choose a part of Learn."""
    page.locator("#learn-part").get_by_role("radio", name=title, exact=True).check(force=True)
    page.locator(
        {
            "Beside PPO": "#methods-offers button",
            "Longer thinking": "#thinking-about :is(.calc, .empty)",
            "Glossary": "#glossary .term",
        }.get(title, ".learn-part")
    ).filter(visible=True).first.wait_for()


def wait_for_answers(page: Page) -> None:
    """Wait until the Playground's answers to the question asked last are whole.

    Before that they are shown while they are written. A question is asked by itself where a run
    has saved states, so there must be answers too.
    """
    whole = "html[data-playing='']:has(#play-answers article):not(:has([data-revision]))"
    page.locator(whole).wait_for(timeout=120_000)


def _ask_for_tools(page: Page) -> None:
    for name in ("Run control", "Chart tools"):
        page.get_by_role("button", name=name, exact=True).click()
    page.locator("#curve-kl .curve-title").press("Enter")
    page.locator("#curve-kl .curve-meaning").wait_for()


def _tab(page: Page, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()
    page.get_by_role("tabpanel", name=tab, exact=True).or_(
        page.locator(f"#tab-{tab.lower()}")
    ).first.wait_for()
    if tab == "Inspect":
        page.locator("#look-body article").first.wait_for()
    if tab == "Learn":
        page.locator("#walk-numbers > *").filter(visible=True).first.wait_for()


def _group_view(page: Page, view: str) -> None:
    look(page, view)
    page.locator(
        {
            "Best and worst": "#look-body ins, #look-body del, #look-body .empty",
            "Tokens": "#look-body .tok",
            "What if": "#look-controls input[type=range]",
            "Through time": "#look-body .list, #look-body .empty",
            "Two runs": "#look-body .two, #look-controls .note",
        }[view]
    ).first.wait_for()


def _completions(page: Page) -> None:
    page.locator("#list-mode").get_by_role("radio", name="Completions").check(force=True)
    page.locator("#narrow form").wait_for()


def _walk_to(page: Page, screen: str) -> None:
    page.locator("#learn-part").get_by_role("radio", name="Walk").check(force=True)
    page.locator(f"#walk-head [data-screen={screen}]").click()
    page.locator("#walk-numbers .walk-pictures svg").first.wait_for()


def _judge(page: Page, mode: str) -> None:
    page.locator("#inspect-mode").get_by_role("radio", name=mode).check(force=True)
    page.locator(".pair .ranking" if mode.startswith("Rank") else ".pair .sides").wait_for()


def _compare(page: Page) -> None:
    for i in range(2):
        page.locator("#run-table [role=checkbox]").nth(i).click()
        page.locator("#run-table [role=checkbox][aria-checked=true]").nth(i).wait_for()
    page.locator("#compare .scatterlayer .trace").first.wait_for()
