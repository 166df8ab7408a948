"""Pause, step, edit, resume and branch in a real browser, by the names that a person reads."""

from __future__ import annotations

from playwright.sync_api import expect
from set_up import fill, fill_until_kept
from test_main_job import start, step_shown
from views import wait_until

from grpo_core.store import Store
from grpo_core.types import RunStatus


def test_a_person_pauses_edits_a_reward_steps_resumes_stops_and_branches(server, open_page):
    page = open_page(server)
    store = Store(server.db)

    def press(name: str) -> None:
        page.get_by_role("button", name=name, exact=True).first.click()

    def is_now(status: RunStatus):
        return wait_until(lambda: (run := store.runs()[0]).status is status and run)

    fill(page, "Group size", "4")
    fill(page, "Steps", "1000")
    start(page)
    wait_until(lambda: store.runs() and store.runs()[0].steps_done >= 1)
    press("Pause")
    is_now(RunStatus.PAUSED)
    page.get_by_text("paused").first.wait_for()

    # Set a breakpoint before the next update and edit a reward there. The advantages change too.
    page.get_by_role("button", name="Run control").click()
    condition = page.get_by_label("Pause when", exact=True)
    fill_until_kept(condition, f"step = {store.runs()[0].step + 2}")
    press("Set breakpoints")
    page.get_by_text("The run will pause when").wait_for()
    press("Resume")
    run = wait_until(
        lambda: (
            (r := store.runs()[0]).status is RunStatus.PAUSED
            and "Breakpoint" in (r.error or "")
            and r
        )
    )
    page.get_by_text("Breakpoint “step =").first.wait_for()
    at = store.last_step_with_groups(run.id)
    wait_until(lambda: step_shown(page) == at)
    page.get_by_label("Completion of the group in view").fill("2")
    page.get_by_label("New reward").fill("4.25")
    press("Set reward")
    page.locator("#group .edited").wait_for()
    edited = store.group(store.group_ids(run.id, at)[0]).rollouts[1]
    assert (edited.reward, edited.edited) == (4.25, True)
    assert edited.advantage > 1
    best = page.locator("#group article").first
    expect(best).to_contain_text("4.25")
    assert store.run(run.id).steps_done == at - 1  # still before the update

    press("Step")
    wait_until(lambda: (r := store.run(run.id)).status is RunStatus.PAUSED and r.steps_done == at)
    page.get_by_label("Setting").click()
    page.get_by_role("option", name="KL coefficient").click()
    page.get_by_label("New value").fill("0.5")
    press("Change")
    page.get_by_text("from the next step on").first.wait_for()
    press("Checkpoint now")
    wait_until(lambda: [c.step for c in store.checkpoints(run.id)] == [at])
    press("Resume")
    wait_until(lambda: store.run(run.id).steps_done >= at + 2)
    assert [s["kl_coef"] for s in store.steps(run.id)[at - 1 : at + 2]] == [0.02, 0.5, 0.5]
    press("Show log")
    page.locator("pre.log").get_by_text("a person changed a reward").first.wait_for()
    press("Stop")
    stopped = is_now(RunStatus.STOPPED).steps_done

    # resume from the checkpoint that stopping made, then branch from it
    press("Resume")
    wait_until(lambda: store.run(run.id).steps_done > stopped + 1)
    press("Stop")
    is_now(RunStatus.STOPPED)
    page.get_by_role("tab", name="Runs").click()
    page.locator("#run-table [role=checkbox]").first.click()
    page.get_by_role("button", name="Branch from step…").click()
    fill_until_kept(page.get_by_label("Changed settings"), "train.learning_rate=0.00002")
    press("Start branch")
    wait_until(lambda: len(store.runs()) == 2)
    wait_until(lambda: store.runs()[0].steps_done > store.runs()[0].parent_step)
    child = store.runs()[0]
    assert child.parent_run_id == run.id
    assert store.steps(child.id)[0]["step"] == child.parent_step + 1
    press("Stop")
    is_now(RunStatus.STOPPED)
