"""Takes the pictures in docs/screenshots from a real run in a real browser, in two minutes.

    python docs/make_screenshots.py

Needs tests/requirements.txt and Chromium.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.server import ROOT, Server
from grpo_core.store import Store

OUT = ROOT / "docs" / "screenshots"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZES = (("light", 1440, 1140), ("dark", 1440, 1140), ("light", 380, 820))
GROUP_IS_AT = """n => {
    const m = document.querySelector('#group')?.innerText.match(/step (\\d+)/i);
    return m && Number(m[1]) >= n;
}"""


def shot(page: Page, name: str) -> None:
    page.mouse.move(0, 0)
    page.evaluate("window.scrollTo(0, 0)")  # filling in a form scrolls
    time.sleep(1.5)  # a poll and its drawing
    page.screenshot(path=OUT / f"{name}.png")


def write(page: Page, label: str, number: int) -> None:
    """Fill a field of the section "Run"."""
    page.locator("#setup-cards [data-section=run]").click()
    time.sleep(1)  # the section is built when it is opened
    page.get_by_label(label, exact=True).fill(str(number))
    page.get_by_label(label, exact=True).blur()


def start(page: Page, seed: int) -> None:
    write(page, "Seed", seed)
    time.sleep(1)
    page.get_by_role("button", name="Start training").click()


def wait_for_step(page: Page, step: int) -> None:
    page.wait_for_function(GROUP_IS_AT, arg=step, timeout=300_000)


def wait_until_finished(store: Store, runs: int) -> None:
    while [r.status for r in store.runs()] != ["finished"] * runs:
        time.sleep(0.5)
    time.sleep(2)


def open_pages(browser: Browser, url: str) -> dict[str, Page]:
    """One page for each of SIZES, by theme and width: "light-1440"."""
    pages = {}
    for theme, width, height in SIZES:
        page = browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="dark" if theme == "dark" else "light",
        )
        page.goto(f"{url}/?__theme={theme}")
        page.get_by_role("button", name="Start training").first.wait_for(state="attached")
        pages[f"{theme}-{width}"] = page
    return pages


def shoot_training(pages: dict[str, Page], store: Store) -> None:
    """The Train tab during a run, then a second run for the other tabs."""
    desk, dark, phone = (pages[name] for name in ("light-1440", "dark-1440", "light-380"))
    start(desk, 0)
    wait_for_step(desk, 34)
    shot(desk, "train-light")
    for page, name in ((dark, "train-dark"), (phone, "train-phone")):
        page.reload()
        wait_for_step(page, 38)
        shot(page, name)
    wait_until_finished(store, 1)
    write(desk, "Steps", 40)
    start(desk, 1)
    wait_until_finished(store, 2)


def shoot_tabs(desk: Page) -> None:
    desk.get_by_role("tab", name="Inspect").click()
    time.sleep(2)
    desk.locator("#group-table [data-do=open]").nth(20).click()
    shot(desk, "inspect")
    desk.get_by_role("tab", name="Runs").click()
    time.sleep(2)
    for i in range(2):
        desk.locator("#run-table [role=checkbox]").nth(i).click()
        time.sleep(1.5)
    shot(desk, "runs")


def shoot_views(pages: dict[str, Page], url: str) -> None:
    for name, page in pages.items():
        theme = name.split("-")[0]
        page.goto(f"{url}/?__theme={theme}&tab=inspect")
        page.locator("#look").wait_for()
        for view in ("Tokens", "What if"):
            page.get_by_role("radio", name=view, exact=True).check(force=True)
            shot(page, f"inspect-{view.replace(' ', '').lower()}-{name}")


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        db = f"{folder}/runs.sqlite"
        server = Server(db)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        try:
            pages = open_pages(browser, server.url)
            shoot_training(pages, Store(db))
            shoot_tabs(pages["light-1440"])
            shoot_views(pages, server.url)
        finally:
            browser.close()
            server.close()


if __name__ == "__main__":
    main()
