"""What goes wrong on the page is said where it went wrong, and mended or recovered from."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from app.settings import PROJECT_DIR
from tests.app.browser import TryPage, open_page
from tests.app.conftest import NO_TOKEN_LIMIT, Server

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SENTENCE = "She likes to read."


def test_a_field_that_breaks_a_rule_says_so_and_can_be_mended(
    browser: Browser, shipped: Server
) -> None:
    with open_page(browser, shipped.address) as page:
        page.find(".heat-map").wait_for()
        beam = page.find("#translate-beam")
        beam.fill("99")
        problem = page.find("#translate-beam-problem")
        problem.wait_for()
        assert problem.inner_text() == "Input should be less than or equal to 16."
        assert beam.get_attribute("aria-invalid") == "true"
        assert beam.get_attribute("aria-describedby") == "translate-beam-problem"
        assert page.find("#translate .problem").is_hidden()
        assert page.find("#translate-note").inner_text().startswith("From before")
        beam.fill("4")
        problem.wait_for(state="detached")
        page.wait_for_text("#translate-note", "en-fr, ")
        assert beam.get_attribute("aria-invalid") is None


@pytest.mark.parametrize(
    ("panel", "selector", "value", "button", "words"),
    [
        ("Generate", "#generate-prompt", "日本", "Generate", "never seen"),
        ("Generate", "#generate-top-p", "7", "Generate", "less than or equal to 1"),
        ("BLEU", "#bleu-references", "J'ai froid.", "Score", "1 entries"),
    ],
)
def test_what_is_refused_is_said_where_it_was_given(
    browser: Browser,
    shipped: Server,
    panel: str,
    selector: str,
    value: str,
    button: str,
    words: str,
) -> None:
    with open_page(browser, shipped.address, panel) as page:
        page.find(selector).fill(value)
        page.page.get_by_role("button", name=button).click()
        page.wait_for_text(f"{selector}-problem", words)


def test_an_error_without_a_field_is_said_in_the_panel(browser: Browser, shipped: Server) -> None:
    with open_page(browser, shipped.address, "Generate") as page:
        page.page.route(
            "**/generate",
            lambda route: route.fulfill(
                status=429,
                content_type="application/problem+json",
                body='{"code": "queue_full", "status": 429, "title": "The queue is full",'
                ' "detail": "the queue has no room for 1 more"}',
            ),
        )
        page.page.get_by_role("button", name="Generate").click()
        page.wait_for_text("#generate .problem", "The queue is full: the queue has no room for 1")


def test_a_service_without_a_model_for_a_task_says_so(browser: Browser, shipped: Server) -> None:
    context = browser.new_context()
    try:
        page = TryPage(context.new_page())
        page.page.route("**/models", lambda route: route.fulfill(json={"models": []}))
        page.open(shipped.address)
        page.wait_for_text("#translate-model", "none loaded can translate")
        assert page.find("#translate-model").is_disabled()
        assert page.find("#generate-start").is_disabled()
        assert page.find("input[name=mode][value=sources]").is_disabled()
        assert page.errors == []
    finally:
        context.close()


def test_a_service_that_is_not_ready_says_why(browser: Browser, shipped: Server) -> None:
    context = browser.new_context()
    not_ready = {
        "code": "not_ready",
        "status": 503,
        "title": "The service is not ready",
        "detail": "the models are being loaded",
    }
    try:
        page = context.new_page()
        page.route(
            "**/health/ready",
            lambda route: route.fulfill(
                status=503, json=not_ready, content_type="application/problem+json"
            ),
        )
        page.goto(shipped.address)
        page.get_by_text("The server is not ready: the models are being loaded.").wait_for()
        page.unroute("**/health/ready")
        page.locator("#translate-output", has_text="Le petit garçon").wait_for()
        assert page.locator("#away").is_hidden()
    finally:
        context.close()


def test_a_server_that_goes_away_is_said_and_recovered_from(
    browser: Browser, tmp_path: Path
) -> None:
    server = Server(PROJECT_DIR / "checkpoints", tmp_path, **NO_TOKEN_LIMIT)
    try:
        server.wait_until_ready()
        with open_page(browser, server.address, "Generate") as page:
            page.find("#generate-length").fill("100000")  # for longer than it will live
            page.page.get_by_role("button", name="Generate").click()
            page.find(".written .token").nth(5).wait_for()
            server.process.kill()
            page.wait_for_text("#generate .problem", "The server broke off in the middle")
            assert page.find("#generate-continue").is_enabled()
            page.wait_for_text("#away", "keeps trying")
            page.wait_for_text("#connection-text", "not reachable")
            page.tab("Translate").click()
            page.find("#translate-text").fill(SENTENCE)
            page.wait_for_text("#translate .problem", "does not answer")
            server.close()
            server = Server(PROJECT_DIR / "checkpoints", tmp_path, _port(server))
            page.find("#away").wait_for(state="hidden")
            # What could not be asked is asked again, without anybody doing anything.
            page.wait_for_text("#translate-output", "Elle aime lire.")
            assert page.find("#translate .problem").is_hidden()
            page.tab("Generate").click()
            assert page.find("#generate .problem").is_hidden()
            # Nor is what was written lost: it is gone on with.
            before = page.find(".token-line").text_content() or ""
            page.find("#generate-length").fill("5")
            page.page.get_by_role("button", name="Continue").click()
            page.wait_for_text("#generate-note", "5 tokens.")
            text = page.find(".token-line").text_content() or ""
            assert text.startswith(before)
            assert len(text) == len(before) + 5
    finally:
        server.close()


def _port(server: Server) -> int:
    return int(server.address.rpartition(":")[2])
