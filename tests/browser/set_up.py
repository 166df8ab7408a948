"""How a person finds and fills a field of the set-up: open its section, then type."""

from __future__ import annotations

import time

from playwright.sync_api import Locator, Page

from ui.components import form

NAMES = {form.label(name): name for name in form.NAMES}


def open_section(page: Page, section: str) -> None:
    """Press the card of a section: "model", "prompts", "rubric", "algorithm" or "run"."""
    card = page.locator(f"#setup-cards [data-section={section}]")
    if card.get_attribute("aria-expanded") != "true":
        card.click()
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
    """Type into a field and leave it.

    A moment after its section was built Gradio once restores a field's old value, so type until
    the text stays.
    """
    control, deadline = field(page, label), time.monotonic() + 20
    while time.monotonic() < deadline:
        control.fill(text)
        control.blur()
        page.wait_for_timeout(200)
        if control.input_value() == text:
            return control
    raise AssertionError(f"{label} did not keep {text!r}")
