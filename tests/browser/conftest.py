"""Servers in their own processes, and pages in a real Chromium.

A request that leaves the machine fails the test.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ui"))
sys.path.insert(0, str(Path(__file__).parent))

from live_server import Server
from views import arrive
from watch import PATIENCE, watched

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if CHROMIUM is None and not os.environ.get("REQUIRE_BROWSER"):
                item.add_marker(
                    pytest.mark.skip(
                        reason="no chromium on this machine; CI sets REQUIRE_BROWSER=1"
                    )
                )


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    server = Server(tmp_path / "runs.sqlite")
    yield server
    if server.process.poll() is None:
        server.close()


@pytest.fixture(scope="session")
def idle_server(tmp_path_factory) -> Iterator[Server]:
    """One server for all tests that start no run."""
    server = Server(tmp_path_factory.mktemp("idle") / "runs.sqlite")
    yield server
    server.close()


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)  # costs nothing where a test passes
    assert CHROMIUM, "REQUIRE_BROWSER is set, but there is no chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser):
    with watched(browser) as context:
        yield context


@pytest.fixture
def open_page(context) -> Callable:
    def open_page(server: Server, query: str = ""):
        return arrive(context.new_page(), server.url + "/" + query)

    return open_page
