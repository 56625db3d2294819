"""A live server and Debian's Chromium for the playground's tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.live import LiveServer

CHROMIUM = shutil.which("chromium")
PATIENCE = 20_000  # milliseconds until what is expected must be there, on a busy machine too
FLAGS = [
    "--no-sandbox",  # tests run as root in containers
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.browser)
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="Chromium is not installed (Debian: apt-get install chromium)"))


@pytest.fixture(scope="module")  # no longer: while it is open its event loop runs, and async tests cannot
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        expect.set_options(timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The embedded model itself: what a newcomer sees."""
    with LiveServer(tmp_path_factory.mktemp("playground"), engine="child") as server:
        yield server


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The fake engine, which can be told to take its time ("[slow 250]" in a prompt)."""
    with LiveServer(tmp_path_factory.mktemp("slow"), engine="fake") as server:
        yield server


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh page. Anything the page complains about fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if is_complaint(message) else None)
    yield page
    context.close()
    assert not complaints, complaints


def is_complaint(message: object) -> bool:
    # A refused request is shown in the console too; the page handles it, and tests look at what it shows.
    text = str(getattr(message, "text", ""))
    return getattr(message, "type", "") == "error" and not text.startswith("Failed to load resource")
