"""How the page looks and whom it serves: dark, on a phone, by keyboard, for a screen reader."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest
from playwright.sync_api import Browser

from app.settings import PROJECT_DIR
from tests.app.browser import DESKTOP_WIDTH, PHONE_WIDTH, TryPage, open_page
from tests.app.conftest import Server

pytestmark = [pytest.mark.browser, pytest.mark.slow]

Scheme = Literal["light", "dark"]

PANELS = ("Translate", "Generate", "BLEU", "Status")
LOOKS: dict[str, tuple[Scheme, int]] = {
    "light": ("light", DESKTOP_WIDTH),
    "dark": ("dark", DESKTOP_WIDTH),
    "phone": ("light", PHONE_WIDTH),
    "dark-phone": ("dark", PHONE_WIDTH),
}
SCREENSHOTS = ("translate-light", "generate-dark", "bleu-light", "status-light", "translate-phone")
MAX_SCREENSHOT_BYTES = 200_000
MIN_CONTRAST, MIN_CONTRAST_LARGE = 4.5, 3.0

# Text that is too pale for its background, as the Web Content Accessibility Guidelines count.
PALE_TEXTS = """([least, leastLarge]) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((v, i) => v * a + below[i] * (1 - a));
  const backgroundOf = (node) => {
    if (node === null) return [1, 1, 1];
    const color = rgba(getComputedStyle(node).backgroundColor);
    return color[3] === 1 ? color.slice(0, 3) : over(color, backgroundOf(node.parentElement));
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const pale = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
    if (node.closest(":disabled, .hidden, noscript, option")) continue;
    const style = getComputedStyle(node);
    const background = backgroundOf(node);
    const [one, other] = [luminance(over(rgba(style.color), background)), luminance(background)];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (contrast < (isLarge ? leastLarge : least)) {
      pale.push(`${walker.currentNode.data.trim()} (${node.className}): ${contrast.toFixed(2)}`);
    }
  }
  return pale;
}"""

# Text that sticks out of the card that it stands in, where nothing scrolls.
SPILLING = """() => [...document.querySelectorAll(".card p, .card dl, .card li, .sheet, .field p")]
  .filter((node) => node.checkVisibility() && node.scrollWidth > node.clientWidth + 1)
  .filter((node) => !node.closest(".hidden") && node.clientWidth > 0)
  .map((node) => `${node.className}: ${node.textContent.slice(0, 40)}`)"""

FOCUS = """() => {
  const node = document.activeElement;
  if (node === document.body) return null;
  const shown = node.matches("textarea") ? node.closest(".sheet") : node;
  const style = getComputedStyle(shown);
  return { id: node.id, text: node.textContent.trim().slice(0, 20), outline: style.outlineStyle };
}"""

UNNAMED = """() => [
  ...document.querySelectorAll("input, select, textarea, button, [role], a, fieldset"),
].filter((node) => {
    const labels = node.labels ? [...node.labels] : [];
    const by = (node.getAttribute("aria-labelledby") ?? "").split(" ").filter(Boolean);
    const words = [
      node.getAttribute("aria-label"),
      ...[...labels, ...by.map((id) => document.getElementById(id))].map((one) => one?.textContent),
      node.matches("button, a, [role=tab], [role=button], [role=status], [role=alert]")
        ? node.textContent || node.id : "",
      node.matches("fieldset") ? node.querySelector("legend")?.textContent : "",
    ];
    const isUsed = node.checkVisibility() && !node.matches("[role=presentation]");
    return isUsed && !words.some((word) => word && word.trim());
  })
  .map((node) => node.outerHTML.slice(0, 80))"""


@contextmanager
def in_use(browser: Browser, server: Server, panel: str, look: str) -> Iterator[TryPage]:
    """A panel with all that it can show."""
    scheme, width = LOOKS[look]
    with open_page(browser, server.address, panel, color_scheme=scheme, width=width) as page:
        if panel == "Translate":
            page.find(".heat-map").wait_for()
            page.find("#trace summary").click()
            page.find(".candidate").first.wait_for()
            page.find(".heat-map th[scope=row]").nth(4).hover()
        elif panel == "Generate":
            page.find("#generate-seed").fill("2")
            page.page.get_by_role("button", name="Generate").click()
            page.wait_for_text("#generate-note", "300 tokens.")
            page.find(".written .token").nth(40).hover()
        elif panel == "BLEU":
            page.page.get_by_role("button", name="Score").click()
            page.find(".sentences .token-line").nth(1).locator(".token").nth(5).hover()
        else:
            page.wait_for_text(".chart-value", "0 of 256")
            page.find(".model summary").first.click()
        yield page


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("panel", PANELS)
def test_nothing_is_too_wide_or_too_pale(
    browser: Browser, shipped: Server, panel: str, look: str
) -> None:
    with in_use(browser, shipped, panel, look) as page:
        _, width = LOOKS[look]
        assert page.page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.page.evaluate(SPILLING) == []
        assert page.page.evaluate(PALE_TEXTS, [MIN_CONTRAST, MIN_CONTRAST_LARGE]) == []
        assert page.refusals == []


def test_dark_is_dark(browser: Browser, shipped: Server) -> None:
    def brightness(scheme: Scheme) -> int:
        with open_page(browser, shipped.address, color_scheme=scheme) as page:
            color = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
            return max(map(int, re.findall(r"\d+", color)))

    assert brightness("dark") < 60
    assert brightness("light") > 200


@pytest.mark.parametrize("panel", PANELS)
def test_everything_has_a_name(browser: Browser, shipped: Server, panel: str) -> None:
    with in_use(browser, shipped, panel, "light") as page:
        assert page.page.evaluate(UNNAMED) == []
        ids = page.page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("panel", PANELS)
def test_the_focus_is_always_seen(browser: Browser, shipped: Server, panel: str) -> None:
    with in_use(browser, shipped, panel, "light") as page:
        page.tab(panel).focus()
        seen = []
        for _ in range(60):
            page.page.keyboard.press("Tab")
            focus = page.page.evaluate(FOCUS)
            if focus is None:
                break
            assert focus["outline"] != "none", focus
            seen.append(focus["id"])
        else:
            raise AssertionError("the Tab key does not come to an end")
        assert {node for node in seen if node} >= {
            "Translate": {"translate", "translate-text", "translate-model", "translate-beam"},
            "Generate": {"generate-prompt", "generate-start", "generate-continue"},
            "BLEU": {"bleu-hypotheses", "bleu-references", "bleu-score"},
            "Status": {"status-pause"},
        }[panel]


def test_tabs_follow_the_arrow_keys_and_the_address(browser: Browser, shipped: Server) -> None:
    with open_page(browser, shipped.address) as page:
        page.tab("Translate").focus()
        for key, panel in (
            ("ArrowRight", "generate"),
            ("ArrowRight", "bleu"),
            ("ArrowLeft", "generate"),
            ("End", "status"),
            ("ArrowRight", "translate"),
            ("ArrowLeft", "status"),
            ("Home", "translate"),
        ):
            page.page.keyboard.press(key)
            assert page.focused_id() == f"tab-{panel}"
            assert page.find("[role=tabpanel]:visible").get_attribute("id") == panel
            assert page.page.url.endswith(f"#{panel}")
            selected = page.find("[role=tab][aria-selected=true]")
            assert selected.evaluate_all("tabs => tabs.map((tab) => tab.id)") == [f"tab-{panel}"]
            assert page.find("[role=tab][tabindex='-1']").count() == 3
        page.page.goto(f"{shipped.address}/#bleu")
        page.find("#bleu").wait_for()
        assert page.find("#translate").is_hidden()


def test_what_changes_is_announced(browser: Browser, shipped: Server) -> None:
    with open_page(browser, shipped.address) as page:
        for selector in ("#translate-output", "#attention-readout", "#generate-readout"):
            assert page.find(selector).get_attribute("aria-live") == "polite"
        for selector in ("#connection", "#generate-note", "#bleu-note"):
            assert page.find(selector).get_attribute("role") == "status"
        for problem in page.find(".problem, #away").all():
            assert problem.get_attribute("role") == "alert"


@pytest.mark.parametrize("name", SCREENSHOTS)
def test_screenshots(
    browser: Browser, shipped: Server, pytestconfig: pytest.Config, name: str
) -> None:
    path = PROJECT_DIR / "docs" / "screenshots" / f"{name}.png"
    if pytestconfig.getoption("--screenshots"):
        panel, _, look = name.partition("-")
        path.parent.mkdir(exist_ok=True)
        title = next(title for title in PANELS if title.lower() == panel)
        with in_use(browser, shipped, title, look) as page:
            if title == "Status":
                let_it_work(page, shipped)
            page.page.screenshot(path=path, full_page=True)
    assert path.stat().st_size < MAX_SCREENSHOT_BYTES


def let_it_work(page: TryPage, server: Server) -> None:
    """Give the charts something to show."""
    page.find(".model summary").first.click()
    for turn in range(12):
        page.page.wait_for_timeout(1500)
        texts = ["I am cold.", "Where is the station?", "She likes to read."] * (1 + turn % 4)
        server.client.post("/translate", json={"text": texts}).raise_for_status()
        body = {"prompt": "The ", "max_new_tokens": 60 + 20 * (turn % 3)}
        server.client.post("/generate", json=body).raise_for_status()
    page.page.wait_for_timeout(2500)
