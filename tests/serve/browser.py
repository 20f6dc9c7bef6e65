"""A headless Chromium for tests of the chat page, and what a person does there.

Tests are skipped, with the reason, where playwright or Chromium is not installed.
"""

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image

_playwright = pytest.importorskip("playwright.sync_api", reason="the chat page is tested with playwright")
_CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if _CHROMIUM is None:
    pytest.skip("the chat page is tested in Chromium, which is not installed", allow_module_level=True)

expect = _playwright.expect


@contextmanager
def open_browser() -> Iterator:
    with _playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])  # tests may run as root
        yield browser
        browser.close()


@contextmanager
def open_page(browser, url: str) -> Iterator:
    """The chat page of a server. Errors on its console and requests to other places fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(10_000)
    page = context.new_page()
    complaints, elsewhere = [], []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda sent: None if sent.url.startswith((url, "data:")) else elsewhere.append(sent.url))
    page.goto(url)
    expect(page.locator("#model")).not_to_be_empty()
    yield page
    context.close()
    # Chromium itself reports every answer that is an error and every connection that fails.
    assert [text for text in complaints if not text.startswith("Failed to load resource")] == []
    assert elsewhere == []


def picture(name: str = "square.png", image: Image.Image | None = None) -> dict:
    """A picture as a file for the page."""
    content = io.BytesIO()
    (image or Image.new("RGB", (40, 30), "red")).save(content, "PNG")
    return {"name": name, "mimeType": "image/png", "buffer": content.getvalue()}


def attach(page, *files: dict) -> None:
    page.locator("#files").set_input_files(list(files))


def ask(page, question: str, *files: dict) -> None:
    """Asks and waits for the end of the answer."""
    if files:
        attach(page, *files)
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def set_slider(page, place: str, step: int) -> None:
    page.locator(f"{place} input[type=range]").fill(str(step))


def last_position(page, answer: int = -1) -> str:
    return page.locator("[data-fact=last-position] dd").nth(answer).inner_text()
