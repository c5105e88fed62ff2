"""A real browser: Debian's Chromium, driven by Playwright, without a network."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import sync_playwright
from tests.testbed import packages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page


@dataclass
class Shown:
    """A page as a person sees it, and what it tried to load or complained of meanwhile."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def run(self, script: str) -> Any:
        return self.page.evaluate(script)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start a browser and end it before other modules: while it lives, this thread has a loop."""
    packages.install("chromium")
    with sync_playwright() as playwright:
        # As root, Chromium has no sandbox; it opens nothing but files that a test has written.
        started = playwright.chromium.launch(
            executable_path=packages.program("chromium"), args=["--no-sandbox"]
        )
        yield started
        started.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Callable[..., Any]:
    """Show a page, `width` CSS pixels wide, as light or dark."""

    @contextmanager
    def shown(content: bytes, *, width: int = 1280, scheme: str = "light") -> Iterator[Shown]:
        file = tmp_path / "page.html"
        file.write_bytes(content)
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True
        )
        one = Shown(context.new_page())
        one.page.on("request", lambda request: one.requests.append(request.url))
        one.page.on("console", lambda message: one.complaints.append(message.text))
        one.page.on("pageerror", lambda error: one.complaints.append(str(error)))
        one.page.on("dialog", lambda dialog: one.complaints.append(dialog.message))
        one.page.goto(file.as_uri())
        yield one
        context.close()

    return shown
