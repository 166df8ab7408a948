"""The run in view: charts, groups and result show that run, and explain themselves."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from live_server import Server
from playwright.sync_api import Page, expect
from views import ends, fits, pick_run, wait_until
from watch import watched

from grpo_core.config import nest, parse
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

LONG_NAME = "a very long name " * 12
FIRST, SECOND = "#curve-reward .js-plotly-plot", "#curve-kl .js-plotly-plot"


def sibling(text: str, accuracy: float, advantage: float) -> Rollout:
    scores = {"accuracy": accuracy, "format": 1.0}
    return Rollout(Completion(text, "stop", 5), scores, accuracy + 0.2, advantage)


# Six are right and equal, two are wrong in different words.
EIGHT = [sibling("<answer>4</answer>", 1.0, 0.54)] * 6 + [
    sibling("<answer>5</answer>", 0.0, -1.62),
    sibling("<answer>6</answer>", 0.0, -1.62),
]
# 27 of 64 are equal; the others are 4 texts.
MANY = [sibling("<answer>4</answer>", 1.0, 1.16)] * 27 + [
    sibling(f"<answer>{i % 4 + 5}</answer>", 0.0, -0.85) for i in range(37)
]


def record(
    store: Store,
    name: str,
    steps: int = 6,
    reward: float = 0.5,
    kl_coef: float = 0.02,
    siblings: Sequence[Rollout] = EIGHT,
) -> str:
    """A finished run whose mean reward is `reward` and a little more at each step."""
    config = parse(
        nest({"train.steps": steps, "train.group_size": len(siblings), "rubric.name": "answer"})
    )
    config = config.model_copy(update={"rubric": resolve_rubric(config.rubric)})
    run_id = store.create_run(config, name)
    rewards = [r.reward for r in siblings if r.reward is not None]
    mean = sum(rewards) / len(rewards)
    group = Group(Prompt("p", "2+2=?", "4", "sums"), tuple(siblings), mean, 0.46, "healthy")
    with Recorder(store, run_id) as recorder:
        recorder(ModelLoaded({"device": "cpu"}))
        for step in range(steps + 1):
            if step:
                recorder(GroupsScored(step, (group,)))
                metrics = StepMetrics(
                    reward_mean=reward + step / 100,
                    reward_std=0.1,
                    loss=0.0,
                    kl=step / 100,
                    kl_coef=kl_coef,
                    entropy=0.5 - step / 100,
                )
                recorder(StepCompleted(step, metrics, {"score/accuracy": 0.5}))
            if step in (0, steps):
                accuracy = {0: 0.36, steps: 0.95}[step]
                values = {"": accuracy, "_low": accuracy - 0.06, "_high": accuracy + 0.04}
                recorder(Evaluated(step, {f"heldout/accuracy{k}": v for k, v in values.items()}))
    store.set_status(run_id, RunStatus.FINISHED)
    return run_id


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Iterator[tuple[Server, dict[str, str]]]:
    """A server over finished runs, and their ids."""
    db: Path = tmp_path_factory.mktemp("view") / "runs.sqlite"
    store = Store(db)
    ids = {
        "one step": record(store, "one step", steps=1),
        "large": record(store, "large groups", siblings=MANY),
        "other": record(store, LONG_NAME, reward=0.9, kl_coef=0.0),
        "first": record(store, "first"),
    }
    store.close()
    server = Server(db)
    yield server, ids
    server.close()


@pytest.fixture(scope="module")
def view(stored, browser) -> Iterator[Callable[..., Page]]:
    """Shows one of the runs on the Train tab.

    fresh: on a page that was just opened. Other tests, which change nothing, share a page per run.
    """
    server, ids = stored
    shared: dict[str, Page] = {}
    with watched(browser) as context:

        def view(name: str, fresh: bool = False) -> Page:
            page = None if fresh else shared.get(name)
            if page is None:
                page = context.new_page()
                page.goto(f"{server.url}/?run={ids[name]}")
                page.locator("#curve-detail .js-plotly-plot .scatterlayer .trace").first.wait_for()
                page.locator("#group article").first.wait_for()
            if not fresh:
                shared[name] = page
            page.set_viewport_size({"width": 1440, "height": 900})
            return page

        yield view


def drawn_rewards(page: Page) -> list[float]:
    """The values of the reward curve as Plotly drew them."""
    return page.evaluate(
        "s => document.querySelector(s).data.find(t => t.hoverinfo !== 'skip').y", FIRST
    )


def ask_for(page: Page, what: str) -> None:
    page.get_by_role("button", name=what, exact=True).click()


def overlay(page: Page, name: str) -> None:
    ask_for(page, "Chart tools")
    page.get_by_label("Overlay").click()
    page.get_by_role("option", name=name.strip()).click()
    expect(page.locator("#curve-kl .legend button")).to_have_count(2)
    page.wait_for_function("s => document.querySelector(s).data.length === 2", arg=SECOND)


def test_charts_show_a_run_that_was_chosen_on_another_tab(view):
    page = view("first", fresh=True)
    assert drawn_rewards(page)[0] == pytest.approx(0.51)
    page.get_by_role("tab", name="Inspect").click()
    page.locator("#look-body article").first.wait_for()
    pick_run(page, LONG_NAME)
    expect(page.locator("#group-table")).to_be_visible()
    page.wait_for_function("window.studioRefresh.pending === ''")
    page.get_by_role("tab", name="Train").click()
    page.wait_for_function(
        "s => document.querySelector(s).data.some(t => t.y[0] === 0.91)", arg=FIRST
    )
    assert drawn_rewards(page)[0] == pytest.approx(0.91)


def test_a_long_run_name_ends_in_an_ellipsis_and_is_whole_on_hover(view):
    page = view("first", fresh=True)
    overlay(page, LONG_NAME)
    entry = page.locator("#curve-kl .legend button", has_text="a very long name")
    assert LONG_NAME.strip() in entry.get_attribute("title")
    for width in (380, 1440, 2560):
        page.set_viewport_size({"width": width, "height": 900})
        assert fits(page), width
        wait_until(
            lambda: ends(entry, "x", "width") <= ends(page.locator("#curve-kl"), "x", "width")
        )
    names = page.evaluate("s => document.querySelector(s).data.map(t => t.name)", FIRST)
    assert all(len(name) < 60 for name in names)


def test_a_comparison_speaks_of_each_run_and_can_hide_one(view):
    page = view("first", fresh=True)
    overlay(page, LONG_NAME)
    expect(page.locator("#curve-kl .curve-note")).to_contain_text("KL coefficient 0.02 and 0.")
    colours = page.evaluate("s => document.querySelector(s).data.map(t => t.line.color)", SECOND)
    assert len(set(colours)) == 2
    page.locator("#curve-kl .legend button").first.press("Enter")
    for chart in (FIRST, SECOND):  # in all charts
        page.wait_for_function(
            "s => document.querySelector(s).data.some(t => t.visible === false)", arg=chart
        )
    shown = page.locator("#curve-reward .legend button").first
    expect(shown).to_have_attribute("aria-pressed", "false")
    shown.click()
    page.wait_for_function(
        "s => document.querySelector(s).data.every(t => t.visible !== false)", arg=SECOND
    )
    page.goto(page.url)  # the colour is the run's own: the same without the other run
    page.locator(f"{SECOND} .trace").first.wait_for()
    alone = page.evaluate("s => document.querySelector(s).data[0].line.color", SECOND)
    assert alone == colours[0]


def test_legend_switches_survive_a_reload(view):
    page = view("first", fresh=True)
    lines = "s => document.querySelector(s).data.filter(t => t.visible === false).length"
    criteria = "#curve-criteria .js-plotly-plot"
    page.locator("#curve-criteria .legend button").first.click()
    page.wait_for_function(f"s => ({lines})(s) === 1", arg=criteria)
    page.reload()
    page.wait_for_function("s => document.querySelector(s)?.data", arg=criteria)
    page.wait_for_function(f"s => ({lines})(s) === 1", arg=criteria)
    overlay(page, LONG_NAME)
    page.locator("#curve-kl .legend button").last.click()
    page.wait_for_function(f"s => ({lines})(s) === 1", arg=SECOND)
    page.reload()
    overlay(page, LONG_NAME)
    page.wait_for_function(f"s => ({lines})(s) === 1", arg=SECOND)
    for switch in ("#curve-kl", "#curve-criteria"):  # other tests share the browser's storage
        page.locator(f"{switch} .legend button[aria-pressed=false]").click()


def test_a_slow_train_tab_holds_up_no_other_region(stored, view):
    _, ids = stored
    page, held = view("first", fresh=True), []

    def hold(route) -> None:
        if route.request.post_data_json["name"] == "train":
            held.append(route)
        else:
            route.continue_()

    page.get_by_role("tab", name="Inspect").click()
    page.locator("#look-body article").first.wait_for()
    page.route("**/studio/show", hold)
    pick_run(page, "large groups")
    expect(page.locator("#look-body article").first).to_contain_text("×27")
    page.wait_for_url(f"**run={ids['large']}**")
    assert held  # Train still waits
    for route in held:
        route.continue_()
    page.unroute("**/studio/show")


def test_verdicts_of_a_run_of_one_step_are_drawn(stored, open_page):
    server, ids = stored
    page = open_page(server, f"?tab=inspect&run={ids['one step']}")
    bar = page.locator("#verdicts-over-time .barlayer .point path").first
    wait_until(lambda: bar.bounding_box()["width"] > 10)


def test_run_control_of_a_finished_run_is_disabled_with_its_reason(view):
    page = view("first")
    expect(page.get_by_role("button", name="Set breakpoints")).to_be_hidden()
    ask_for(page, "Run control")
    expect(page.get_by_text("This run is finished, so nothing can be changed.")).to_be_visible()
    for name in ("Checkpoint now", "Change", "Set breakpoints", "Set reward"):
        expect(page.get_by_role("button", name=name, exact=True)).to_be_disabled()
    for label in ("Pause when", "New value", "New reward"):
        expect(page.get_by_label(label, exact=True)).to_be_disabled()
    expect(page.get_by_role("button", name="Show log")).to_be_enabled()
    for name in ("Pause", "Step", "Stop"):
        expect(page.get_by_role("button", name=name, exact=True)).to_be_hidden()


def test_a_pressed_card_shows_its_own_arithmetic_and_what_cost_it_most(view):
    page = view("first")
    line, cards = page.locator("#group .formula-inline"), page.locator("#group article")
    expect(cards).to_have_count(3)  # six equal ones share a card
    expect(cards.first).to_contain_text("×6")
    expect(line).to_contain_text("#1 A = (r − mean)/(std + 1e-4) = (1.20 − 0.950)")
    expect(line).to_contain_text("accuracy earned most")
    cards.nth(1).click()
    expect(line).to_contain_text("#7 A = (r − mean)/(std + 1e-4) = (0.20 − 0.950)")
    expect(line).to_contain_text("accuracy cost most: (0 − 0.75) × 1 = −0.750")
    expect(cards.nth(1)).to_have_attribute("aria-current", "true")
    expect(page.locator("#group article[aria-current]")).to_have_count(1)
    cards.nth(2).press("Enter")
    expect(line).to_contain_text("#8 A =")
    expect(cards.nth(2).locator("mark")).to_have_text(["6"])  # the best one has 4
    expect(cards.first.locator("mark")).to_have_count(0)


def test_a_group_of_64_opens_as_a_histogram_with_its_distinct_completions(view):
    page = view("large")
    bars = page.get_by_role("img", name=re.compile("Rewards of 64 completions"))
    expect(bars).to_have_text(re.compile(r"37\s*0.20\s*27\s*1.20"), use_inner_text=True)
    expect(page.locator("#group article")).to_have_count(5)
    expect(page.locator("#group article").first).to_contain_text("×27")


def test_a_finished_run_says_its_result_and_leads_on(view):
    page = view("first", fresh=True)
    result = page.locator("#run-banner [role=status]")
    expect(result).to_contain_text("36 % (30–40) → 95 % (89–99)")
    expect(result).to_contain_text("Clearly better")
    why = result.get_by_role("button", name="See why")
    expect(why).to_have_attribute("title", "Opens the group of step 6 whose rewards differ most")
    why.press("Enter")
    page.locator("#look-body article").first.wait_for()
    expect(page.locator("#opened-group")).to_contain_text("step 6")
    page.get_by_role("tab", name="Train").click()
    result.get_by_role("button", name="Export").click()
    expect(page.locator("#run-table [role=checkbox][aria-checked=true]")).to_have_count(1)


def test_cards_and_their_group_come_before_the_loss_on_the_first_screen(view):
    page = view("first")
    expect(page.get_by_role("region", name="Advisor")).to_contain_text("KL spike")
    bar, loss, group = (page.locator(s) for s in ("#start-dock", "#curve-loss", "#group"))
    card = group.locator("article").first
    # above the bar, beside a notice and the result
    wait_until(lambda: ends(card) <= bar.bounding_box()["y"])
    wait_until(lambda: card.bounding_box()["y"] < loss.bounding_box()["y"])
    for tool in ("Smoothing", "Overlay"):
        expect(page.get_by_label(tool).first).to_be_hidden()
    wait_until(lambda: ends(group) - ends(group.locator("article").last) < 20)  # three, one row
    page.set_viewport_size({"width": 380, "height": 820})
    parts = [page.locator(s) for s in ("#line", "#advisor", "#run-banner")]
    # on a phone the run's state comes first
    wait_until(lambda: (tops := [p.bounding_box()["y"] for p in parts]) == sorted(tops))
    page.set_viewport_size({"width": 1440, "height": 900})
    ask_for(page, "Chart tools")
    for tool in ("Horizontal axis", "Smoothing", "Logarithmic", "Overlay"):
        expect(page.locator("#curve-tools").get_by_text(tool)).to_be_visible()


def test_charts_share_their_horizontal_range(view):
    page = view("first")
    page.evaluate("s => Plotly.relayout(document.querySelector(s), {'xaxis.range': [2, 4]})", FIRST)
    same = "s => String(document.querySelector(s).layout.xaxis.range) === '2,4'"
    for curve in ("kl", "loss", "detail"):
        page.wait_for_function(same, arg=f"#curve-{curve} .js-plotly-plot")
    page.locator("#curve-kl .unzoom").click()
    page.wait_for_function(
        "s => document.querySelector(s).layout.xaxis.autorange === true", arg=FIRST
    )


def test_a_chart_opens_large_and_escape_closes_it(view):
    page = view("first")
    small = page.locator(FIRST).bounding_box()["height"]
    page.locator("#curve-reward").get_by_role("button", name="Open large").press("Enter")
    dialog = page.get_by_role("dialog", name="Reward")
    dialog.wait_for()
    page.wait_for_function(
        "([s, h]) => document.querySelector(s + ' .main-svg').clientHeight > h", arg=[FIRST, 400]
    )
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    page.wait_for_function(
        "([s, h]) => document.querySelector(s + ' .main-svg').clientHeight === h",
        arg=[FIRST, round(small)],
    )
    expect(page.locator("#curve-reward .enlarge")).to_be_focused()


def test_a_title_says_what_its_metric_means_and_hover_explains_verdicts(view):
    page = view("first")
    for curve, means in (("kl", "estimator of KL"), ("detail", "Mean entropy of the policy")):
        title = page.locator(f"#curve-{curve} .curve-title")
        title.press("Enter")
        meaning = page.locator(f"#curve-{curve} .curve-meaning")
        expect(meaning).to_contain_text(means)
        expect(meaning).to_contain_text("nats/token")
        page.keyboard.press("Escape")
        expect(meaning).to_be_hidden()
        expect(title).to_be_focused()
    verdict = page.locator("#group .verdict").first
    assert "the policy learns" in verdict.get_attribute("title")
