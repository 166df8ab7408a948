"""Takes the pictures in docs/screenshots from a real run in a real browser: python docs/make_screenshots.py (about two minutes)

Needs tests/requirements.txt and Chromium.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent))

from grpo_core.store import Store

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "screenshots"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def shot(page: Page, name: str) -> None:
    page.mouse.move(0, 0)
    page.evaluate("window.scrollTo(0, 0)")  # filling in a form scrolled
    time.sleep(1.5)  # a poll and its drawing
    page.screenshot(path=OUT / f"{name}.png")


def start(page: Page, seed: int) -> None:
    page.get_by_label("Seed", exact=True).fill(str(seed))
    page.get_by_label("Seed", exact=True).blur()
    time.sleep(1)
    page.get_by_role("button", name="Start training").click()


def wait_for_step(page: Page, step: int) -> None:
    page.wait_for_function(
        "n => { const m = document.querySelector('#group')?.innerText.match(/step (\\d+)/i); return m && Number(m[1]) >= n; }",
        arg=step,
        timeout=300_000,
    )


def wait_until_finished(store: Store, runs: int) -> None:
    while [r.status for r in store.runs()] != ["finished"] * runs:
        time.sleep(0.5)
    time.sleep(2)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port), "--db", f"{folder}/runs.sqlite"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        try:
            server.stdout.readline()
            store = Store(f"{folder}/runs.sqlite")
            pages = {}
            for theme, width, height in (
                ("light", 1440, 1140),
                ("dark", 1440, 1140),
                ("light", 380, 820),
            ):
                page = pages[theme, width] = browser.new_page(
                    viewport={"width": width, "height": height}, color_scheme=theme
                )
                page.goto(f"http://127.0.0.1:{port}/?__theme={theme}")
                page.get_by_role("button", name="Start training").first.wait_for(state="attached")
            desk = pages["light", 1440]
            start(desk, 0)
            wait_for_step(desk, 34)
            shot(desk, "train-light")
            pages["dark", 1440].reload()
            wait_for_step(pages["dark", 1440], 38)
            shot(pages["dark", 1440], "train-dark")
            pages["light", 380].reload()
            wait_for_step(pages["light", 380], 38)
            shot(pages["light", 380], "train-phone")
            wait_until_finished(store, 1)
            desk.get_by_label("Steps", exact=True).fill("40")
            start(desk, 1)
            wait_until_finished(store, 2)
            for tab in ("Inspect", "Runs"):
                desk.get_by_role("tab", name=tab).click()
                time.sleep(2)
                if tab == "Inspect":
                    desk.locator("#group-table [data-do=open]").nth(20).click()
                else:
                    for i in range(2):
                        desk.locator("#run-table [role=checkbox]").nth(i).click()
                        time.sleep(1.5)
                shot(desk, tab.lower())
            for (theme, width), page in pages.items():
                page.goto(f"http://127.0.0.1:{port}/?__theme={theme}&tab=inspect")
                page.locator("#look").wait_for()
                for look in ("Tokens", "What if"):
                    page.get_by_role("radio", name=look, exact=True).check(force=True)
                    shot(page, f"inspect-{look.replace(' ', '').lower()}-{theme}-{width}")
        finally:
            browser.close()
            server.terminate()
            server.wait(timeout=20)


if __name__ == "__main__":
    main()
