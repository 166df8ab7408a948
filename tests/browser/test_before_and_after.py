"""What a person does around a run, in a real browser.

Before it: preview prompts, check the model, probe the rubric, read Preflight. After it: compare
answers in the Playground.
"""

from __future__ import annotations

from playwright.sync_api import expect
from set_up import choose, fill, open_section
from test_main_job import start
from views import wait_for_answers, wait_until

from grpo_core.store import Store
from grpo_core.types import RunStatus


def test_own_prompts_are_previewed_checked_trained_on_and_compared(server, open_page, tmp_path):
    prompts = tmp_path / "sums.csv"
    prompts.write_text(
        "question,answer\n"
        + "".join(f"Q: {i}+{i + 11}+20=?,{2 * i + 31}\n" for i in range(10, 70))
        + "Q: 10+21+20=?,51\n<img src=x onerror=alert(1)>,1\n"
    )
    page = open_page(server)
    choose(page, "Task", "Your own prompts")
    fill(page, "Prompts from", str(prompts))
    page.get_by_role("button", name="Preview prompts").click()
    shown = page.locator("#prompt-preview")
    expect(shown).to_contain_text("62 rows read")
    expect(shown).to_contain_text("1 duplicate removed")
    expect(shown.locator("pre").first).to_contain_text("=?")

    open_section(page, "model")
    page.get_by_role("button", name="Check model").click()
    expect(page.locator("#model-answer")).to_contain_text("821,888 parameters")
    expect(page.locator("#model-answer")).to_contain_text("It answers")

    open_section(page, "rubric")
    page.get_by_role("tab", name="Probe").click()
    page.get_by_role("button", name="Probe rubric").click()
    expect(page.locator("#probe-result")).to_contain_text("honest answer")
    page.get_by_role("tab", name="Preview groups").click()
    page.get_by_role("button", name="Preview groups").click()
    expect(page.locator("#workbench .tried")).to_have_count(3)
    fill(page, "Steps", "3")
    page.get_by_role("button", name="Preflight", exact=True).click()
    expect(page.locator("#preflight-report")).to_contain_text("KL at first", timeout=120_000)

    start(page)  # so few prompts are held out that Preflight warned of it
    page.locator("#start-answer").get_by_role("button", name="Close").click()
    page.locator("#start-answer .banner").wait_for(state="detached")
    start(page)
    page.get_by_role("button", name="Start anyway").click()
    store = Store(server.db)
    wait_until(lambda: store.runs() and store.runs()[0].status == RunStatus.FINISHED, 120)
    assert (store.runs()[0].task, store.runs()[0].steps_done) == ("file", 3)

    page.get_by_role("tab", name="Playground").click()
    expect(page.locator("#play-about")).to_contain_text("1 saved state")
    wait_for_answers(page)
    assert page.get_by_role("textbox", name="Prompt", exact=True).input_value()
    sides = page.locator("#play-answers h3")
    expect(sides).to_have_text(["before training", "after step 3"], ignore_case=True)
    expect(page.locator("#play-answers section")).to_have_count(1 + 4)
    expect(page.locator("#play-answers article")).to_have_count(10)
