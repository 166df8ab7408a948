"""Long names and prompts: no view scrolls sideways, and Tab reaches every control visibly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from live_server import Server
from playwright.sync_api import Page
from recorded import record_run
from views import fits, views
from watch import watched

from grpo_core.store import Recorder, Store
from grpo_core.types import Completion, Group, GroupsScored, Prompt, Rollout, StepCompleted
from grpo_core.types import StepMetrics as Metrics

SIZES = [{"width": w, "height": h} for w, h in ((2560, 1300), (1440, 900), (380, 820))]
RUN_NAME = "a " + "very" * 25 + " long name <b>of</b> " + "\u05d0\u05d1\u05d2" * 26
# One unbroken word, text from right to left, and HTML.
LONG = "w" * 3000 + " \u0645\u0631\u062d\u0628\u0627" * 150
LONG = (LONG + "<table><td>" + "<img src=x onerror=alert(1)>" * 40).ljust(5000, "_")[:5000]


def record_long(store: Store, name: str) -> None:
    """A run of four steps; the last one has only long texts."""
    run_id = record_run(store, name)
    rollouts = tuple(
        Rollout(Completion(text, "length", 2000), {"accuracy": reward}, reward, reward - 0.5)
        for text, reward in ((LONG, 1.0), (LONG[::-1], 0.0))
    )
    group = Group(Prompt("long", LONG, LONG, "file"), rollouts, 0.5, 0.7, "healthy")
    with Recorder(store, run_id) as record:
        record(GroupsScored(4, (group,)))
        record(StepCompleted(4, Metrics(reward_mean=0.5, loss=0.0, kl=0.1), {}))


@pytest.fixture(scope="module")
def long_texts(tmp_path_factory) -> Iterator[Server]:
    db = tmp_path_factory.mktemp("long") / "runs.sqlite"
    store = Store(db)
    for end in ("one", "other"):
        record_long(store, RUN_NAME[: 200 - len(end)] + end)
    store.close()
    server = Server(db)
    yield server
    server.close()


# The elements beyond the right edge of the page. An element inside a box that scrolls or is cut
# does not count.
STICKS_OUT = """() => {
  if (document.scrollingElement.scrollWidth <= innerWidth) return [];
  const cuts = e => getComputedStyle(e).overflowX !== 'visible';
  const out = [...document.querySelectorAll('body *')].filter(e => {
    if (e.getBoundingClientRect().right <= innerWidth + 0.5) return false;
    for (let p = e.parentElement; p && p !== document.body; p = p.parentElement) {
      if (cuts(p) && p.getBoundingClientRect().right <= innerWidth + 0.5) return false;
    }
    return true;
  });
  return out.slice(0, 4).map(e => `${e.tagName} #${e.closest('[id]')?.id} .${e.className}`)
    .concat(`${document.scrollingElement.scrollWidth} px wide`);
}"""


def sideways(page: Page, size: dict[str, int]) -> list[str]:
    """What makes the page scroll sideways at this size; empty if it does not."""
    page.set_viewport_size(size)
    if fits(page):  # waits until the charts fit their new places
        return []
    return [f"{size['width']} px: {what}" for what in page.evaluate(STICKS_OUT)]


TOPS = "menus => menus.map(e => Math.round(e.getBoundingClientRect().top))"

# Notes which elements get the focus, and whether each then looks different.
WATCH_FOCUS = """() => {
  const look = e => {
    const near = [e, e.nextElementSibling, e.parentElement, e.parentElement?.parentElement,
      e.closest('label'), e.closest('.wrap, .container')].filter(Boolean);
    const parts = near.flatMap(n => [null, '::after', '::-webkit-slider-thumb'].map(
      part => getComputedStyle(n, part)));
    return parts.map(s => [s.outlineStyle, s.outlineWidth, s.outlineColor, s.boxShadow,
      s.borderColor, s.backgroundColor].join()).join();
  };
  window.reached ??= new Map();
  reached.clear();
  if (!window.controls) {
    document.addEventListener('focusin', event => {
      const e = event.target;
      if (!reached.has(e)) reached.set(e, e.unfocused !== look(e));
    }, true);
  }
  window.controls = [...document.querySelectorAll(
    'button, input, select, textarea, summary, a[href], [tabindex]')]
    .filter(e => e.tabIndex >= 0 && !e.disabled && e.checkVisibility({visibilityProperty: true}));
  for (const e of controls) e.unfocused = look(e);
  return controls.length;
}"""
MISSED = """() => {
  const name = e => [e.tagName, e.id || e.closest('[id]')?.id, e.ariaLabel || e.name || '',
    e.innerText?.slice(0, 20) || ''].join(' ');
  const there = controls.filter(e => e.isConnected && !e.disabled
    && e.checkVisibility({visibilityProperty: true}));
  return [
    ...there.filter(e => (e.type !== 'radio' || e.checked) && !reached.has(e))
      .map(e => 'not reached: ' + name(e)),
    ...there.filter(e => reached.get(e) === false)
      .map(e => 'no visible focus: ' + name(e)),
  ];
}"""


def missed(page: Page) -> list[str]:
    """The controls that Tab does not reach, or on which the focus cannot be seen."""
    for _ in range(3):  # a region that was filled meanwhile lost the focus: once more
        page.evaluate("document.activeElement.blur()")
        for _ in range(page.evaluate(WATCH_FOCUS) + 10):
            page.keyboard.press("Tab")
        if not (found := page.evaluate(MISSED)):
            break
    return found


@pytest.fixture(scope="module")
def walked(long_texts, browser) -> dict[str, list[str]]:
    """Every view opened once: what scrolls sideways in it, and what the keyboard misses."""
    found: dict[str, list[str]] = {"sideways": [], "missed": [], "tall": []}
    with watched(browser) as context:
        page = context.new_page()
        page.goto(long_texts.url)
        for name, go in views(page, tokens=False):
            page.set_viewport_size(SIZES[1])
            go()
            found["missed"] += [f"{name}, {what}" for what in missed(page)]
            if name == "playground":
                page.get_by_role("textbox", name="Prompt", exact=True).fill(LONG)
                page.get_by_role("textbox", name="Right answer").fill(LONG)
            wide = [what for size in SIZES for what in sideways(page, size)]
            found["sideways"] += [f"{name}, {what}" for what in wide]
            if name == "playground":  # at the last size, a phone's
                tops = page.locator("#play-sides .block").evaluate_all(TOPS)
                found["tall"] += [] if len(set(tops)) == 2 else [f"menus at {tops}"]
    return found


def test_no_view_scrolls_sideways_with_long_names_and_prompts(walked):
    assert walked["sideways"] == []


def test_the_menus_of_a_side_share_a_line_on_a_phone(walked):
    assert walked["tall"] == []


def test_tab_reaches_every_control_and_shows_where_it_is(walked):
    assert list(dict.fromkeys(walked["missed"])) == []
