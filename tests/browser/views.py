"""Every view of the page, and how a person gets there: (name, how), in an order in which each follows from the one before."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from playwright.sync_api import Page

LOOKS = ("Completions", "Best and worst", "Tokens", "What if", "Through time", "Two runs")


def views(page: Page) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each view of a page that shows a finished run with recorded tokens, beside a second run. Tabs that are new come by themselves."""
    yield "train", lambda: page.locator("#group article").first.wait_for()
    yield "train, all fields", lambda: _unfold(page)
    for tab in page.get_by_role("tab").all_inner_texts():
        if tab == "Train":
            continue
        yield tab.lower(), lambda tab=tab: _tab(page, tab)
        if tab == "Inspect":
            for look in LOOKS[1:]:
                yield f"inspect, {look.lower()}", lambda look=look: _look(page, look)
            yield "inspect, list of completions", lambda: _completions(page)
        if tab == "Runs":
            yield "runs, two compared", lambda: _compare(page)


def _unfold(page: Page) -> None:
    page.get_by_role("button", name="More fields").click()
    page.get_by_label("Warm-up").wait_for()


def _tab(page: Page, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()
    page.get_by_role("tabpanel", name=tab, exact=True).or_(
        page.locator(f"#tab-{tab.lower()}")
    ).first.wait_for()
    if tab == "Inspect":
        page.locator("#look-body article").first.wait_for()


def _look(page: Page, look: str) -> None:
    page.locator("#look").get_by_role("radio", name=look, exact=True).check(force=True)
    page.locator(
        {
            "Best and worst": "#look-body ins, #look-body del, #look-body .empty",
            "Tokens": "#look-body .tok",
            "What if": "#look-controls input[type=range]",
            "Through time": "#look-body .list, #look-body .empty",
            "Two runs": "#look-body .two, #look-controls .note",
        }[look]
    ).first.wait_for()


def _completions(page: Page) -> None:
    page.locator("#list-mode").get_by_role("radio", name="Completions").check(force=True)
    page.locator("#narrow form").wait_for()


def _compare(page: Page) -> None:
    for i in range(2):
        page.locator("#run-table [role=checkbox]").nth(i).click()
        page.locator("#run-table [role=checkbox][aria-checked=true]").nth(i).wait_for()
    page.locator("#compare .scatterlayer .trace").first.wait_for()
