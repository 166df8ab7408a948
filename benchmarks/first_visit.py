"""How long does a person wait for the server, the page, a group, and the first group of a run?

    python -m benchmarks.first_visit [--times 5]

Every time starts anew: a new file, a new server, a new browser without a cache. Prints median and
worst of

    server up         from the command to the first answer, beside `import gradio` alone
    usable            from the address to a page whose Start button can be pressed
    group shown       from the address of a group to its completions
    first group       from the click on Start to the first group of that run

and how much the page is made of: Gradio components, elements of the document, requests and bytes.
Exit code 1: a goal was missed. Goals are for a quiet machine with two cores.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.server import Server
from grpo_core.store import RunRow, Store

if TYPE_CHECKING:
    from playwright.sync_api import Page as BrowserPage

UP_RATIO = 1.4  # goal: at most so many times what importing Gradio takes
GOALS = {"usable": 3.0, "group shown": 2.0, "first group": 5.0}  # seconds
WAIT_MS = 60_000
# What the page at hand is made of. transferSize: with headers.
MADE_OF = """() => {
  const entries = [...performance.getEntriesByType('navigation'),
    ...performance.getEntriesByType('resource')];
  return {
    elements: document.querySelectorAll('*').length,
    requests: entries.length,
    KiB: Math.round(entries.reduce((sum, e) => sum + e.transferSize, 0) / 1024),
  };
}"""


@contextmanager
def new_browser() -> Iterator[BrowserPage]:
    """A page in a browser of its own. Its start is not measured: call this before the clock."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(WAIT_MS)
        yield page
        browser.close()


def seconds_of(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def gradio_seconds() -> float:
    """What `import gradio` takes in a process of its own."""
    return seconds_of(lambda: subprocess.run([sys.executable, "-c", "import gradio"], check=True))


def usable(page: BrowserPage, url: str) -> None:
    """Open the page, and wait until Start can be pressed."""
    page.goto(url)
    start_button(page).wait_for()
    page.wait_for_function("window.studioRefresh?.failed === 0")


def start_button(page: BrowserPage) -> Any:
    return page.locator("#start").first


def group_shown_seconds(page: BrowserPage, url: str, run_id: str, step: int) -> float:
    """From the address of a group to its completions on the screen."""
    began = time.perf_counter()
    page.goto(f"{url}/?tab=inspect&run={run_id}&step={step}")
    page.locator("#look-body article").first.wait_for()
    return time.perf_counter() - began


def first_group(page: BrowserPage, store: Store, press_start: Callable[[], object]) -> RunRow:
    """Press Start, wait until the first group of the new run is shown, and return that run."""
    known, shown = {run.id for run in store.runs()}, page.locator("#group").inner_text()
    press_start()
    while not (new := [run for run in store.runs() if run.id not in known]):
        time.sleep(0.02)
    # A card of that run: the address names it a moment before the older run's cards are gone.
    page.wait_for_function(
        "([id, before]) => window.location.search.includes(id) && "
        "document.querySelector('#group article') && "
        "document.querySelector('#group').innerText !== before",
        arg=[new[0].id, shown],
    )
    return new[0]


def visit(folder: Path) -> tuple[dict[str, float], dict[str, int]]:
    """One server and three browsers. Returns the seconds, and what the page is made of."""
    seconds: dict[str, float] = {"import gradio": gradio_seconds()}
    db = folder / "runs.sqlite"
    server = Server(db, is_new=True)
    seconds["server up"] = server.up_seconds
    store = Store(db)
    try:
        with new_browser() as page:
            seconds["usable"] = seconds_of(lambda: usable(page, server.url))
            page.wait_for_load_state("networkidle")
            made_of = page.evaluate(MADE_OF)
            press = start_button(page).click
            seconds["first group"] = seconds_of(lambda: first_group(page, store, press))
            run_id = store.runs()[0].id
            page.get_by_role("button", name="Stop", exact=True).click()
            while store.run(run_id).status.is_live:
                time.sleep(0.1)
        with new_browser() as page:
            seconds["group shown"] = group_shown_seconds(page, server.url, run_id, 1)
    finally:
        server.close()
    return seconds, {"components": len(server.values), **made_of}


def report(rows: list[dict[str, float]]) -> list[str]:
    """Print median and worst of every column; the names of the missed goals."""
    missed = []
    for name in rows[0]:
        values = [row[name] for row in rows]
        median, worst = statistics.median(values), max(values)
        goal = GOALS.get(name)
        if goal and median > goal:
            missed.append(name)
        shown = f"   goal {goal} s" if goal else ""
        print(f"{name:<15} median {median:6.2f} s   worst {worst:6.2f} s{shown}")
    ratios = [row["server up"] / row["import gradio"] for row in rows]
    median, worst = statistics.median(ratios), max(ratios)
    print(f"server / gradio median {median:6.2f}     worst {worst:6.2f}     goal {UP_RATIO}")
    if median > UP_RATIO:
        missed.append("server up")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=5)
    times = parser.parse_args().times
    rows, made_of = [], {}
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            seconds, made_of = visit(Path(folder))
        rows.append(seconds)
    print(", ".join(f"{value:,} {name}" for name, value in made_of.items()))
    missed = report(rows)
    print(f"missed: {', '.join(missed)}" if missed else "every goal met")
    return len(missed) > 0


if __name__ == "__main__":
    sys.exit(main())
