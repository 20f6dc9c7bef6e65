"""A headless Chromium for tests that need to know what a page really shows."""

import contextlib
import os
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update"),
    *("--disable-background-networking", "--disable-sync"),
)


def find_browser():
    """Path of a Chromium, installed from Debian's packages where that can be done; skips the test otherwise."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None and os.getuid() == 0 and shutil.which("apt-get"):
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    ["apt-get", "-qq", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10", *command],
                    env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=300,
                )
        path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium is installed, and apt-get could not install one")
    return path


@contextlib.contextmanager
def open_page(page, *, width=1280, height=900):
    """A local page, opened and idle, as an object of Playwright's; skips the test where that is not installed."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": width, "height": height})
        opened.goto(page.as_uri())
        yield opened
        browser.close()


class Browser:
    """Opens local pages; every call is a browser of its own.

    Args:
        folder: An empty folder for its profile.
    """

    def __init__(self, folder):
        self._command = [find_browser(), *_FLAGS, f"--user-data-dir={folder}"]

    def read(self, page, fragment=""):
        """The document as it is after its scripts ran."""
        return self._run("--dump-dom", f"{page.as_uri()}{fragment}").stdout

    def photograph(self, page, picture, *, width=1400, height=2000, fragment=""):
        """Write a screenshot."""
        self._run(f"--window-size={width},{height}", f"--screenshot={picture}", f"{page.as_uri()}{fragment}")

    def _run(self, *arguments):
        result = subprocess.run([*self._command, *arguments], capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return result
