"""The pages in a browser, where the server asks for a key, and what their policies keep out."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from app.keys import make_key
from tests.app.browser import TryPage, open_page
from tests.app.conftest import TIMEOUT_SECONDS, Server

pytestmark = pytest.mark.browser

KEY, STORED = make_key("alice", "user")


@pytest.fixture(scope="module")
def keyed(checkpoints_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("keyed-page")
    server = Server(checkpoints_dir, folder, GATEHOUSE_API_KEYS=STORED.entry)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


@pytest.fixture
def page(browser: Browser, keyed: Server) -> Iterator[TryPage]:
    with open_page(browser, keyed.address) as page:
        page.find("#key-form").wait_for()
        yield page


def give(page: TryPage, key: str) -> None:
    page.find("#key").fill(key)
    page.find("#key").press("Enter")


def test_the_page_asks_for_a_key_and_works_with_it(page: TryPage) -> None:
    assert page.find("#key").get_attribute("type") == "password"
    give(page, KEY)
    page.find("#key-form").wait_for(state="hidden")
    assert page.find("#key").input_value() == ""
    page.wait_for_text("#translate-model", "en-fr")
    page.find("#translate-text").fill("go")
    page.find(".choice").first.wait_for()
    page.tab("Generate").click()
    page.find("#generate-prompt").fill("the")
    page.find("#generate-length").fill("5")
    page.page.get_by_role("button", name="Generate").click()
    page.wait_for_text("#generate-note", "tokens.")
    page.tab("BLEU").click()
    page.page.get_by_role("button", name="Score").click()
    page.wait_for_text("#bleu-note", "BLEU")
    page.tab("Status").click()
    page.wait_for_text("#status-charts", "Rows running")
    assert page.find("#status .problem").is_hidden()


def test_whoever_opens_the_page_can_type_the_key_at_once(browser: Browser, keyed: Server) -> None:
    page = _open(browser, f"{keyed.address}/")
    page.locator("#key:focus").wait_for()
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    page.locator("#translate-model", has_text="en-fr").wait_for()
    page.context.close()


def test_a_key_lasts_as_long_as_the_tab(page: TryPage, browser: Browser, keyed: Server) -> None:
    give(page, KEY)
    page.wait_for_text("#translate-model", "en-fr")
    page.page.reload()
    page.wait_for_text("#translate-model", "en-fr")
    assert page.find("#key-form").is_hidden()
    kept = page.page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]")
    assert kept == [1, 0, ""]
    another = page.page.context.new_page()
    another.set_default_timeout(TIMEOUT_SECONDS * 1000)
    another.goto(f"{keyed.address}/")
    another.locator("#key-form").wait_for()
    another.close()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("gth_wrong", "The server does not know this key."),
        ("with space", "no spaces"),
        ("clé", "no spaces"),
        ("", "no spaces"),
    ],
)
def test_a_wrong_key_is_told_and_can_be_mended(page: TryPage, wrong: str, words: str) -> None:
    give(page, wrong)
    page.wait_for_text("#key-note", words)
    assert page.find("#key-form").is_visible()
    give(page, KEY)
    page.wait_for_text("#translate-model", "en-fr")
    assert page.find("#key-form").is_hidden()


def test_a_key_that_is_taken_back_is_asked_for_again(page: TryPage) -> None:
    give(page, KEY)
    page.wait_for_text("#translate-model", "en-fr")
    page.page.evaluate(
        "import('/static/access.js').then(({ access }) => { access.key = 'gth_revoked'; })"
    )
    page.find("#translate-text").fill("we lost")
    page.wait_for_text("#key-note", "does not know this key")
    give(page, KEY)
    # What was asked for is asked for again.
    page.find(".choice").first.wait_for()
    assert page.find("#translate .problem").is_hidden()


def test_the_key_stays_out_of_addresses_and_of_the_page(page: TryPage) -> None:
    addresses: list[str] = []
    page.page.on("request", lambda request: addresses.append(request.url))
    give(page, KEY)
    page.find("#translate-text").fill("go")
    page.find(".choice").first.wait_for()
    assert addresses
    assert not any(KEY in address for address in addresses)
    assert KEY not in page.page.content()


def test_the_page_of_a_server_without_keys_asks_for_none(browser: Browser, server: Server) -> None:
    with open_page(browser, server.address) as page:
        page.wait_for_text("#translate-model", "en-fr")
        assert page.find("#key-form").is_hidden()
        assert page.refusals == []


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_no_foreign_script_runs(browser: Browser, server: Server, path: str) -> None:
    page = _open(browser, f"{server.address}{path}")
    for markup in (
        "<img src=x onerror='window.intruded = true'>",
        "<iframe srcdoc='<script>parent.intruded = true</script>'></iframe>",
    ):
        page.evaluate("markup => document.body.insertAdjacentHTML('beforeend', markup)", markup)
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.intruded = true";
          document.body.append(script);
          const foreign = document.createElement("script");
          foreign.src = "data:text/javascript,window.intruded=true";
          document.body.append(foreign);
        }"""
    )
    page.wait_for_timeout(300)
    assert page.evaluate("window.intruded") is None
    page.context.close()


def test_no_other_page_may_frame_these(browser: Browser, server: Server) -> None:
    page = browser.new_page()
    page.set_default_timeout(TIMEOUT_SECONDS * 1000)
    with page.expect_console_message(lambda message: "frame-ancestors" in message.text):
        page.set_content(f"<iframe src='{server.address}/'></iframe>")
    page.close()


def test_the_docs_take_a_key(browser: Browser, keyed: Server) -> None:
    page = _open(browser, f"{keyed.address}/docs")
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.locator(".btn.authorize").click()
    page.locator(".auth-container input").fill(KEY)
    page.locator(".auth-btn-wrapper button[type=submit]").click()
    page.locator(".btn-done").click()
    endpoint = page.locator('.opblock-get:has([data-path="/models"])')
    endpoint.locator(".opblock-summary-control").click()
    endpoint.get_by_role("button", name="Try it out").click()
    endpoint.get_by_role("button", name="Execute", exact=True).click()
    status = endpoint.locator(".live-responses-table .response .response-col_status")
    status.wait_for()
    assert re.match("200", status.inner_text())
    assert errors == []
    page.context.close()


def _open(browser: Browser, address: str) -> Page:
    page = browser.new_context().new_page()
    page.set_default_timeout(TIMEOUT_SECONDS * 1000)
    page.goto(address)
    page.locator("main, .opblock").first.wait_for()
    return page
