"""What a person does around a run, in a real browser.

Before it: preview prompts, check the model, probe the rubric, read Preflight. After it: compare
answers in the Playground.
"""

from __future__ import annotations

from set_up import choose, fill, open_section
from test_main_job import start, wait_until
from views import wait_for_answers

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
    wait_until(lambda: "62 rows read" in page.locator("#prompt-preview").inner_text())
    shown = page.locator("#prompt-preview").inner_text()
    assert "1 duplicate removed" in shown
    assert "=?" in page.locator("#prompt-preview pre").first.inner_text()

    open_section(page, "model")
    page.get_by_role("button", name="Check model").click()
    wait_until(lambda: "821,888 parameters" in page.locator("#model-answer").inner_text())
    assert "It answers" in page.locator("#model-answer").inner_text()

    open_section(page, "rubric")
    page.get_by_role("tab", name="Probe").click()
    page.get_by_role("button", name="Probe rubric").click()
    wait_until(lambda: "honest answer" in page.locator("#probe-result").inner_text())
    page.get_by_role("tab", name="Preview groups").click()
    page.get_by_role("button", name="Preview groups").click()
    wait_until(lambda: page.locator("#workbench .tried").count() == 3)
    fill(page, "Steps", "3")
    page.get_by_role("button", name="Preflight", exact=True).click()
    wait_until(lambda: "KL at first" in page.locator("#preflight-report").inner_text(), 60)

    start(page)  # so few prompts are held out that Preflight warned of it
    page.locator("#start-answer").get_by_role("button", name="Close").click()
    page.locator("#start-answer .banner").wait_for(state="detached")
    start(page)
    page.get_by_role("button", name="Start anyway").click()
    store = Store(server.db)
    wait_until(lambda: store.runs() and store.runs()[0].status == RunStatus.FINISHED, 60)
    assert (store.runs()[0].task, store.runs()[0].steps_done) == ("file", 3)

    page.get_by_role("tab", name="Playground").click()
    wait_until(lambda: "1 saved state" in page.locator("#play-about").inner_text())
    wait_until(lambda: page.locator("#play-answers section").count() == 1 + 4, 60)
    wait_for_answers(page)
    assert page.get_by_role("textbox", name="Prompt", exact=True).input_value()
    assert [t.lower() for t in page.locator("#play-answers h3").all_inner_texts()] == [
        "before training",
        "after step 3",
    ]
    assert page.locator("#play-answers article").count() == 10
