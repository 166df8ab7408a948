"""How a person finds and fills a field of the set-up: open its section, then type."""

from __future__ import annotations

import time

from playwright.sync_api import Locator, Page

from ui.components import form

TWELVE_FRAMES = """async () => {
  for (let i = 0; i < 12; i++) await new Promise(requestAnimationFrame);
}"""
NAMES = {form.label(name): name for name in form.NAMES}


def card(page: Page, section: str) -> Locator:
    """The card of a section: "model", "prompts", "rubric", "algorithm" or "run"."""
    return page.locator(f"#setup-cards [data-section={section}]")


def open_section(page: Page, section: str) -> None:
    """Press the card of a section, unless it is open."""
    if card(page, section).get_attribute("aria-expanded") != "true":
        card(page, section).click()
    heading = page.locator("#new-run-pane h2").filter(visible=True)
    heading.get_by_text(form.SECTIONS[section], exact=True).wait_for()


def close(page: Page) -> None:
    """Back to the run."""
    page.keyboard.press("Escape")
    page.locator("#live").wait_for()


def field(page: Page, label: str) -> Locator:
    """The control with this label, in its section."""
    name = NAMES[label]
    open_section(page, form.section_of(name))
    control = page.locator(f"#{form.element_id(name)}").get_by_label(label, exact=True).first
    control.wait_for()
    return control


def fill(page: Page, label: str, text: str) -> Locator:
    """Type into a field and leave it."""
    control = field(page, label)
    fill_until_kept(control, text)
    return control


def fill_until_kept(control: Locator, text: str) -> None:
    """Type into a control whose section was just opened, and leave it.

    A moment after a section was built Gradio once restores the old value of a control in it, so
    type until the text stays for some frames: a slow page draws them late.
    """
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        control.fill(text)
        control.blur()
        control.page.evaluate(TWELVE_FRAMES)
        if control.input_value() == text:
            return
    raise AssertionError(f"{control} did not keep {text!r}")


def choose(page: Page, label: str, option: str) -> None:
    """Open a field's list and choose from it."""
    field(page, label).click()
    page.get_by_role("option", name=option).first.click()
