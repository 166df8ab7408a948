"""How many clicks, keys and seconds do five everyday tasks take?

    python -m benchmarks.five_tasks [--shots FOLDER]

    train       on one's own CSV, with two criteria, until the first group
    mistake     find the completion with the lowest advantage of a run, and its group
    why         say why a completion got its advantage
    compare     see in which setting two runs differ, and their held-out difference
    continue    a run of yesterday with a smaller learning rate, until its next step

Each task begins at the page's address in a fresh browser and ends when its answer is on the screen.
A chosen file counts as two clicks, a chosen option of a list too. Seconds are those of the page and
the machine: nobody reads or thinks in between.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.first_visit import first_group, new_browser
from benchmarks.server import ROOT, Server
from grpo_core.store import Store

if TYPE_CHECKING:
    from playwright.sync_api import Locator
    from playwright.sync_api import Page as BrowserPage

SMALL = ("train.steps=8", "train.prompts_per_step=4", "task.heldout_size=40")


@dataclass(slots=True)
class Hand:
    """A person's hand on one page; it counts what it does."""

    page: BrowserPage
    clicks: int = field(default=0)
    keys: int = field(default=0)

    def click(self, target: Locator) -> None:
        target.click()
        self.clicks += 1

    def press(self, name: str) -> None:
        self.click(self.page.get_by_role("button", name=name, exact=True))

    def open_tab(self, name: str) -> None:
        self.click(self.page.get_by_role("tab", name=name, exact=True))

    def choose(self, menu: Locator, label: str) -> None:
        menu.select_option(label=label)
        self.clicks += 2

    def write(self, target: Locator, text: str) -> None:
        """Click into a field and replace its text."""
        self.click(target)
        target.fill(text)
        self.keys += len(text)

    def give_file(self, target: Locator, path: Path) -> None:
        target.set_input_files(path)
        self.clicks += 2


# ---- the tasks -------------------------------------------------------------------------------


def train_on_own_file(hand: Hand, store: Store, folder: Path) -> str:
    """New run -> Prompts, Rubric -> Start. Returns what the first group says."""
    path = folder / "my sums.csv"
    rows = "".join(f"Q: {i}+{i + 11}+20=?,{2 * i + 31}\n" for i in range(10, 70))
    path.write_text("question,answer\n" + rows)
    page = hand.page
    hand.click(page.locator("#setup-cards [data-section=prompts]"))
    hand.give_file(page.locator("#upload-prompts input[type=file]"), path)
    page.locator("#prompt-preview tbody tr").first.wait_for()
    hand.click(page.locator("#setup-cards [data-section=rubric]"))
    page.locator(".criterion").first.wait_for()
    while (rows_left := page.locator(".criterion").count()) > 2:
        last = page.locator(".criterion").last
        hand.click(last.get_by_role("button", name="check and parameters"))
        hand.click(last.get_by_role("button", name="Remove"))
        page.wait_for_function(
            "n => document.querySelectorAll('.criterion').length < n", arg=rows_left
        )
    run = first_group(page, store, lambda: hand.press("Start training"))
    assert run.task == "file", run.task
    assert len(run.config["rubric"]["criteria"]) == 2
    return page.locator("#group .sum").first.inner_text()


def find_largest_mistake(hand: Hand, store: Store, folder: Path) -> str:
    """Inspect -> Completions, by advantage, smallest first -> the first one."""
    page = hand.page
    hand.open_tab("Inspect")
    page.locator("#look-body article").first.wait_for()
    hand.click(page.locator("#list-mode").get_by_text("Completions", exact=True))
    order = page.locator("#narrow select[name=sort]")
    hand.choose(order, "advantage")
    hand.click(page.locator("#narrow input[name=up]"))
    run = store.run(open_run(page))
    lowest = min(r.advantage or 0.0 for g in store.iter_groups(run.id) for r in g.rollouts)
    shown = f"{lowest:+.2f}".replace("-", "−")
    first = page.locator("#group-table tbody tr").first
    first.get_by_text(shown).wait_for()
    hand.click(first.locator("[data-do=open]"))
    page.locator("#opened-group").get_by_text(f"{lowest:+.3f}".replace("-", "−")).first.wait_for()
    return page.locator("#opened-group .says").first.inner_text()


def say_why(hand: Hand, store: Store, folder: Path) -> str:
    """A click on a card of the last step's group."""
    page = hand.page
    page.locator("#group article").first.wait_for()
    hand.click(page.locator("#group article").last)
    line = page.locator("#group .formula-inline")
    page.locator("#group article[aria-current]").last.wait_for()
    return line.inner_text()


def compare_two_runs(hand: Hand, store: Store, folder: Path) -> str:
    """Runs -> both -> the table of differing settings."""
    page = hand.page
    hand.open_tab("Runs")
    for name in ("without KL", "yesterday"):
        box = page.get_by_role("checkbox", name=f"Select {name}", exact=True)
        hand.click(box)
        page.wait_for_function("e => e.ariaChecked === 'true'", arg=box.element_handle())
    page.locator("#compare-reward .scatterlayer .trace").first.wait_for()
    rows = page.locator("#differences tbody tr")
    rows.first.wait_for()
    assert rows.count() == 1
    return rows.first.inner_text()


def continue_with_smaller_rate(hand: Hand, store: Store, folder: Path) -> str:
    """Runs -> the run -> Branch from step… -> a new learning rate -> Start branch."""
    page = hand.page
    known = {run.id for run in store.runs()}
    hand.open_tab("Runs")
    hand.click(page.get_by_role("checkbox", name="Select yesterday", exact=True))
    hand.press("Branch from step…")
    hand.write(page.get_by_label("New learning rate"), "1e-5")
    hand.press("Start branch")
    run = wait_for(lambda: next((r for r in store.runs() if r.id not in known), None))
    first = run.steps_done
    run = wait_for(lambda: r if (r := store.run(run.id)).steps_done > first else None)
    assert run.config["train"]["learning_rate"] == 1e-5
    page.get_by_text(run.name).first.wait_for()
    return f"{run.name}: step {run.steps_done} of {run.num_steps}"


TASKS: dict[str, Callable[[Hand, Store, Path], str]] = {
    "train": train_on_own_file,
    "mistake": find_largest_mistake,
    "why": say_why,
    "compare": compare_two_runs,
    "continue": continue_with_smaller_rate,
}


# ---- running them ----------------------------------------------------------------------------


def open_run(page: BrowserPage) -> str:
    return page.evaluate("new URLSearchParams(location.search).get('run')")


def wait_for(read: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value that `read` returns."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := read():
            return value
        time.sleep(0.02)
    raise TimeoutError("the page did not get there")


def train_runs(db: Path) -> None:
    """Two runs that differ in one setting; both have checkpoints."""
    for name, more in (("without KL", ("algorithm.kl_coef=0",)), ("yesterday", ())):
        settings = [part for setting in (*SMALL, *more) for part in ("--set", setting)]
        command = ["-m", "grpo_core", "train", "--db", str(db), "--name", name, *settings]
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)


def perform(name: str, server: Server, store: Store, folder: Path, shots: Path | None) -> None:
    """Do a task in a fresh browser and print what it took."""
    with new_browser() as page:
        page.goto(server.url)
        page.wait_for_function("window.studioRefresh?.failed === 0")
        page.locator("#group article").first.wait_for()
        hand, began = Hand(page), time.perf_counter()
        said = TASKS[name](hand, store, folder)
        seconds = time.perf_counter() - began
        if shots:
            page.screenshot(path=shots / f"{name}.png")
    said = " ".join(said.split())
    print(f"| {name} | {hand.clicks} | {hand.keys} | {seconds:.1f} | {said[:110]} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shots", type=Path, help="save a picture of each answer here")
    shots = parser.parse_args().shots
    print("| task | clicks | keys | seconds | on the screen at the end |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        new, known = folder / "new.sqlite", folder / "known.sqlite"
        train_runs(known)
        for db, tasks in ((new, ["train"]), (known, [t for t in TASKS if t != "train"])):
            server = Server(db, is_new=db == new)
            try:
                for task in tasks:
                    perform(task, server, Store(db), folder, shots)
            finally:
                server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
