"""The pictures of the playground in docs/images: a live server, the embedded model, Debian's Chromium.

python -m tools.screenshots
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests.live import LiveServer

IMAGES = Path(__file__).parent.parent / "docs" / "images"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
PROMPTS = [
    "a large yellow star on a night sky",
    "a green triangle left of an orange heart",
    "a red circle above a blue square",
]
DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("Chromium is needed: apt-get install chromium")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as data, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        with LiveServer(Path(data), engine="child") as server:
            desktop(browser, server.url)
            phone(browser, server.url)
        browser.close()


def desktop(browser: Browser, address: str) -> None:
    page = open_page(browser, address, DESKTOP, "light")
    for prompt in PROMPTS:
        make(page, prompt)
    page.screenshot(path=IMAGES / "playground.png")
    page.get_by_role("button", name="Gallery").click()
    page.wait_for_timeout(800)
    page.screenshot(path=IMAGES / "playground-gallery.png")
    page.get_by_role("button", name="Make", exact=True).click()
    page.emulate_media(color_scheme="dark")
    page.screenshot(path=IMAGES / "playground-dark.png")


def phone(browser: Browser, address: str) -> None:
    page = open_page(browser, address, PHONE, "dark")
    make(page, PROMPTS[-1])
    page.screenshot(path=IMAGES / "playground-phone.png", full_page=True)


def open_page(browser: Browser, address: str, size: dict[str, int], theme: str) -> Page:
    context = browser.new_context(viewport=size, color_scheme=theme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(address)
    return page


def make(page: Page, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Generate").click()
    page.locator(f"figure img.large[alt='{prompt}']").wait_for(timeout=60_000)


if __name__ == "__main__":
    main()
