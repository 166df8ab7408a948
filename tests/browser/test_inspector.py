"""The inspector in a real browser, on a run with recorded tokens."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from grpo_core.config import nest, parse
from grpo_core.control import RunControl
from grpo_core.runs import execute, prepare
from grpo_core.store import Store
from grpo_core.trainer import train


def test_tokens_what_if_and_completions_answer_in_the_browser(server, open_page, tiny_settings):
    store = Store(server.db)
    settings = prepare(parse(nest({**tiny_settings, "rubric.name": "concise answer", "train.steps": 2})))
    assert execute(store, store.create_run(settings, "tiny"), settings, train, RunControl()) == "finished"
    page = open_page(server, "?tab=inspect&step=1&group=1")
    looks = page.locator("#look")
    expect(page.locator("#opened-group")).to_contain_text("share of this step’s gradient")

    looks.get_by_role("radio", name="Tokens").check(force=True)
    tokens = page.locator(".tokens")
    expect(tokens).to_be_visible()
    tokens.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".token-says")).to_contain_text(re.compile(r"token 1 .*id \d+"))
    page.keyboard.press("End")
    expect(page.locator(".token-says")).to_contain_text(f"token {tokens.locator('.tok').count()} ")
    page.get_by_role("radio", name="entropy").check(force=True)
    expect(page.locator(".tokens")).to_have_attribute("aria-label", re.compile("entropy"))

    looks.get_by_role("radio", name="What if").check(force=True)
    weight = page.get_by_label("Weight of length")
    weight.fill("2")
    expect(page.locator("#look-body")).to_contain_text("would have been pushed the other way")
    expect(page.locator("#look-controls output").nth(3)).to_have_text("2")
    page.get_by_role("button", name="Use in a new run").click()
    expect(page.locator("#notice")).to_contain_text("The form has the settings of “tiny”")
    expect(page.get_by_label("Group size", exact=True)).to_have_value("4")

    page.get_by_role("tab", name="Inspect").click()
    page.locator("#list-mode").get_by_role("radio", name="Completions").check(force=True)
    expect(page.locator("#group-table")).to_contain_text("1–16 of 16 completions")  # 2 steps of 2 prompts of 4
    page.get_by_label("Length to").fill("0")
    expect(page.locator("#group-table")).to_contain_text("No completion matches")
