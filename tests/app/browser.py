"""A page of the service open in Chromium, and what goes on in it that nobody sees."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    sync_playwright,
)

from tests.app.conftest import TIMEOUT_SECONDS
from tests.conftest import BROWSERS

# Tests may run as root, which Chromium's sandbox refuses; the rest keeps it from calling home.
BROWSER_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
DESKTOP_WIDTH, PHONE_WIDTH = 1180, 390


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Chromium as it is installed here."""
    path = next(path for name in BROWSERS if (path := shutil.which(name)))
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=list(BROWSER_OPTIONS)) as browser,
    ):
        yield browser


@dataclass
class TryPage:
    """The page at ``/``."""

    page: Page
    errors: list[str] = field(default_factory=list)
    hosts: set[str | None] = field(default_factory=set)
    refusals: list[str] = field(default_factory=list)

    def open(self, address: str, panel: str = "Translate") -> None:
        self.page.set_default_timeout(TIMEOUT_SECONDS * 1000)
        self.page.on("console", self._note_message)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._note_request)
        self.page.goto(f"{address}/")
        self.page.locator("#connection[data-state=ready]").wait_for()
        self.tab(panel).click()

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type != "error":
            return
        # The browser's own line about an answer with an error's status, or about none.
        is_refusal = message.text.startswith("Failed to load resource")
        (self.refusals if is_refusal else self.errors).append(message.text)

    def _note_request(self, request: Request) -> None:
        self.hosts.add(urlsplit(request.url).hostname)

    def tab(self, name: str) -> Locator:
        return self.page.get_by_role("tab", name=name)

    def find(self, selector: str) -> Locator:
        return self.page.locator(selector)

    def wait_for_text(self, selector: str, text: str) -> None:
        self.page.locator(selector, has_text=text).first.wait_for()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for what no selector says."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not condition():
            assert time.monotonic() < deadline
            self.page.wait_for_timeout(50)

    def focused_id(self) -> str:
        return str(self.page.evaluate("document.activeElement.id"))


@contextmanager
def open_page(
    browser: Browser,
    address: str,
    panel: str = "Translate",
    *,
    color_scheme: Literal["light", "dark"] = "light",
    width: int = DESKTOP_WIDTH,
) -> Iterator[TryPage]:
    """The page in a context of its own; when it is left, nothing may have gone wrong unseen."""
    context: Any = browser.new_context(
        color_scheme=color_scheme, viewport={"width": width, "height": 900}
    )
    try:
        page = TryPage(context.new_page())
        page.open(address, panel)
        yield page
        assert page.errors == []
        assert page.hosts == {"127.0.0.1"}
    finally:
        context.close()
