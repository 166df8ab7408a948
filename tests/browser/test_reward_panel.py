"""The panel “Reward model” on the Runs tab: from judged pairs to a criterion of the rubric."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from live_server import Server
from playwright.sync_api import expect
from recorded import record_run
from views import FITS

from grpo_core.store import Store, preferences
from grpo_core.store.preferences import Preference

NAME = "long " * 39 + "name."  # 200 characters


def judge(store: Store, count: int) -> None:
    """Judgements for the shorter of two answers, two for each prompt."""
    rng, rows = random.Random(0), []
    for i in range(count):
        n = rng.randint(10, 99)
        texts = [f"<answer>{n}</answer>", f"<think>{n}, again {n}</think><answer>{n}</answer>"]
        left, right = texts[:: 1 if i % 2 else -1]
        rows.append(
            Preference(
                prompt=f"Q: {10 + i // 2}+7=?",
                left=left,
                right=right,
                verdict="left" if i % 2 else "right",
                created_at=1.0 + i,
                source="page",
            )
        )
    preferences.add(store, rows)


@pytest.fixture
def judged(tmp_path) -> Iterator[Server]:
    store = Store(tmp_path / "runs.sqlite")
    record_run(store, NAME)
    judge(store, 60)
    store.close()
    server = Server(tmp_path / "runs.sqlite")
    yield server
    server.close()


def test_judged_pairs_become_a_criterion_of_the_rubric(judged, open_page):
    page = open_page(judged, "?tab=runs")
    panel = page.locator("#reward-models")
    expect(panel).to_contain_text("60 judged pairs")
    base = page.get_by_label("Base model")
    base.fill("/no/where")
    page.get_by_role("button", name="Train reward model").click()
    expect(panel).to_contain_text("there is no such folder")
    base.fill("bundled")
    expect(page.get_by_role("button", name="Train reward model")).to_be_enabled()
    page.get_by_role("button", name="Train reward model").click()
    expect(panel).to_contain_text("Held-out pairs right: 100 %")
    expect(panel.get_by_role("img", name=re.compile("Predicted"))).to_be_visible()

    page.reload()
    expect(panel).to_contain_text("Held-out pairs right: 100 %")
    for width in (380, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(FITS)
    page.emulate_media(reduced_motion="reduce")
    page.evaluate(AXE_SCRIPT)
    for dark in (False, True):
        page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
        found = page.evaluate("axe.run('#reward-box')")["violations"]
        assert not found, [(v["id"], v["nodes"][0]["failureSummary"]) for v in found]
    panel.get_by_role("button", name="Use in rubric").focus()
    page.keyboard.press("Enter")
    names = page.get_by_role("textbox", name=re.compile(r"^Criterion \d+ name$"))
    expect(names.last).to_have_value("preferred")
    expect(page.locator("#sections")).to_contain_text("A reward model grades")
