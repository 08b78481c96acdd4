"""The page ``/docs`` in a real browser: whoever tries an endpoint there sees its answer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request

from tests.app.conftest import TIMEOUT_SECONDS, Server

pytestmark = pytest.mark.browser

ENDPOINTS = (
    ("post", "/generate"),
    ("post", "/translate"),
    ("post", "/bleu"),
    ("get", "/models"),
    ("get", "/models/{name}"),
    ("get", "/health/live"),
    ("get", "/health/ready"),
    ("get", "/metrics"),
    ("post", "/v1/completions"),
    ("get", "/v1/models"),
    ("get", "/v1/models/{name}"),
    ("post", "/detect"),
    ("get", "/languages"),
    ("get", "/frontend/settings"),
)
"""Those that anyone may try: reloading takes an admin's key."""


@dataclass
class DocsPage:
    """The open page, and what went on in it that nobody sees."""

    page: Page
    description: dict[str, Any]
    errors: list[str] = field(default_factory=list)
    hosts: set[str | None] = field(default_factory=set)

    def open(self, address: str) -> None:
        self.page.on("console", self._note_message)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._note_request)
        self.page.goto(f"{address}/docs")
        self.page.locator(".opblock").first.wait_for()

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _note_request(self, request: Request) -> None:
        # What the page holds itself, such as its icons, comes from no host.
        if not request.url.startswith("data:"):
            self.hosts.add(urlsplit(request.url).hostname)

    def endpoint(self, method: str, path: str) -> Locator:
        return self.page.locator(f'.opblock-{method}:has([data-path="{path}"])')

    def examples(self, method: str, path: str) -> dict[str, Any]:
        """Bodies that the description offers, by the names that the page gives them."""
        body = self.description["paths"][path][method].get("requestBody", {})
        examples = body.get("content", {}).get("application/json", {}).get("examples", {})
        return {example["summary"]: example["value"] for example in examples.values()}


@pytest.fixture(scope="module")
def docs(browser: Browser, server: Server) -> Iterator[DocsPage]:
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT_SECONDS * 1000)
    docs = DocsPage(page, server.client.get("/openapi.json").json())
    docs.open(server.address)
    yield docs
    page.close()


@pytest.fixture(autouse=True)
def _each_test_on_its_own(
    docs: DocsPage, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[None]:
    """What one test leaves fails no other; of a failure there is a picture."""
    failed_before = request.session.testsfailed
    yield
    if request.session.testsfailed > failed_before:
        docs.page.screenshot(path=tmp_path / "docs.png", full_page=True)
    docs.errors.clear()
    docs.hosts.clear()


def test_the_page_shows_every_endpoint(docs: DocsPage) -> None:
    shown = docs.page.locator(".opblock-summary-path").all()
    paths = [path for _, path in ENDPOINTS]
    paths.insert(paths.index("/metrics") + 1, "/admin/models/{name}/reload")
    assert [path.get_attribute("data-path") for path in shown] == paths
    assert docs.hosts == {"127.0.0.1"}
    assert docs.errors == []


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_trying_an_endpoint_shows_its_answer(docs: DocsPage, method: str, path: str) -> None:
    endpoint = docs.endpoint(method, path)
    endpoint.locator(".opblock-summary-control").click()
    endpoint.get_by_role("button", name="Try it out").click()
    examples = docs.examples(method, path)
    if examples:
        choice = endpoint.locator(".opblock-section-request-body .examples-select select")
        assert choice.locator("option").all_inner_texts() == list(examples)
        for summary, body in examples.items():
            choice.select_option(label=summary)
            assert execute(docs, endpoint) == body
    else:
        assert execute(docs, endpoint) is None
    # Closed again, it does not slow down the page for the others.
    endpoint.locator(".opblock-summary-control").click()
    assert docs.hosts == {"127.0.0.1"}
    assert docs.errors == []


def test_the_page_to_try_it_is_linked(docs: DocsPage) -> None:
    link = docs.page.get_by_role("link", name="the page", exact=True)
    assert link.evaluate("link => link.href") == urljoin(docs.page.url, "/")


def execute(docs: DocsPage, endpoint: Locator) -> Any:
    """Press the button and see that the page shows the new answer; returns what was sent."""
    answer = endpoint.locator(".live-responses-table .response")
    if answer.count():
        endpoint.get_by_role("button", name="Clear").click()
        answer.wait_for(state="detached")
    with docs.page.expect_response(
        lambda response: response.request.resource_type == "fetch"
    ) as of:
        endpoint.get_by_role("button", name="Execute", exact=True).click()
    response = of.value
    assert answer.locator(".response-col_status").inner_text() == "200"
    shown = answer.locator(".response-col_description .highlight-code code").first.inner_text()
    if response.headers["content-type"] == "application/json":
        assert json.loads(shown) == response.json()
    else:
        assert shown.split() == response.text().split()
    return response.request.post_data_json
