"""The page at ``/`` in a real browser, over the shipped models, used as a person would use it."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Route

from tests.app.browser import TryPage, open_page
from tests.app.conftest import Server

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SENTENCE = "She likes to read."
MINUS = "\N{MINUS SIGN}"


@pytest.fixture
def page(browser: Browser, shipped: Server) -> Iterator[TryPage]:
    with open_page(browser, shipped.address) as page:
        page.find(".heat-map").wait_for()
        yield page
        assert page.refusals == []


def ask(server: Server, path: str, **body: Any) -> Any:
    response = server.client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def letters(*texts: str) -> str:
    """What tokens and the text that they make have in common, wherever words are cut."""
    return re.sub(r"\W", "", "".join(texts))


# --------------------------------------------------------------- translate


def test_a_text_is_translated_while_it_is_typed(page: TryPage, shipped: Server) -> None:
    wanted = ask(shipped, "/translate", text=SENTENCE, num_hypotheses=3)["translations"][0]
    page.find("#translate-text").fill("")
    page.find("#translate-text").press_sequentially(SENTENCE)
    # Where typing is slow, what is there so far is translated, too, and may look much the same.
    hypotheses = [hypothesis["text"] for hypothesis in wanted["hypotheses"]]
    page.wait_until(lambda: page.find(".choice-text").all_inner_texts() == hypotheses)
    page.wait_for_text("#translate-output", wanted["text"])
    scores = [text.replace(MINUS, "-") for text in page.find(".choice .number").all_inner_texts()]
    assert scores == [f"{hypothesis['score']:.3f}" for hypothesis in wanted["hypotheses"]]
    assert page.find("#translate-source").inner_text() == "English"
    assert page.find("#translate-output").get_attribute("lang") == "fr"


def test_an_answer_that_comes_too_late_is_given_up(page: TryPage) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        if "go home" in (route.request.post_data or ""):
            held.append(route)
        else:
            route.continue_()

    page.page.route("**/translate", hold)
    text = page.find("#translate-text")
    with page.page.expect_event("requestfailed") as failed:
        with page.page.expect_request("**/translate"):
            text.fill("I want to go home.")
        text.fill(SENTENCE)
        page.wait_for_text("#translate-output", "Elle aime lire.")
    assert "go home" in (failed.value.post_data or "")
    assert failed.value.failure == "net::ERR_ABORTED"
    (late,) = held
    late.abort()


def test_options_change_the_answer(page: TryPage, shipped: Server) -> None:
    page.find("#translate-text").fill(SENTENCE)
    page.find("#translate-beam").fill("2")
    page.find("#translate-penalty").fill("0")
    best = ask(
        shipped, "/translate", text=SENTENCE, beam_size=2, num_hypotheses=2, length_penalty=0
    )
    # No more than the beam has are asked for.
    hypotheses = [hypothesis["text"] for hypothesis in best["translations"][0]["hypotheses"]]
    assert 1 <= len(hypotheses) <= 2
    page.wait_until(lambda: page.find(".choice-text").all_inner_texts() == hypotheses)


def test_a_hypothesis_is_chosen_with_the_keyboard(page: TryPage, shipped: Server) -> None:
    body = {"text": "The little boy is afraid of dogs.", "num_hypotheses": 3}
    second = ask(shipped, "/translate", **body)["translations"][0]["hypotheses"][1]["text"]
    page.find(".choice input").first.focus()
    page.page.keyboard.press("ArrowDown")
    rows = page.find(".heat-map th[scope=row]")
    shown = page.find(".choice-text").nth(1).inner_text()
    assert letters(*rows.all_inner_texts()) == letters(shown, "end")
    assert shown == second


def test_the_heat_map_says_what_is_pointed_at(page: TryPage, shipped: Server) -> None:
    body = {"text": "The little boy is afraid of dogs.", "alignments": True}
    weights = ask(shipped, "/translate", **body)["translations"][0]["alignment"]["weights"]
    row = page.find(
        ".heat-map th[scope=row]",
    ).nth(1)
    row.hover()
    percent = f"{weights[1][1] * 100:.0f} %"
    page.wait_for_text("#attention-readout", f"“petit” looks at “little” {percent}")
    assert page.find(".heat-map th.lit").all_inner_texts() == ["petit"]
    page.find(".heat-map th[scope=col]").nth(1).hover()
    page.wait_for_text("#attention-readout", f"“little” is looked at by “petit” {percent}")
    page.find(".heat-map tr").nth(2).locator("td").nth(1).hover()
    page.wait_for_text("#attention-readout", f"{percent} of “petit” looks at “little”")
    shown = page.find(".heat-map td:not(.corner)").evaluate_all(
        "cells => cells.map((cell) => Number(cell.style.getPropertyValue('--weight')))"
    )
    assert shown == pytest.approx([weight for row in weights for weight in row], abs=1e-4)


def test_the_heat_map_is_one_stop_that_arrow_keys_walk(page: TryPage) -> None:
    page.find(".choice input").first.focus()
    page.page.keyboard.press("Tab")
    page.wait_for_text("#attention-readout", "“Le” looks at")
    page.page.keyboard.press("ArrowDown")
    page.page.keyboard.press("ArrowRight")
    page.wait_for_text("#attention-readout", "of “petit” looks at “The”")
    page.page.keyboard.press("Tab")
    assert page.find(".heat-map :focus").count() == 0


def test_the_search_is_shown_step_by_step(page: TryPage, shipped: Server) -> None:
    body = {"text": "The little boy is afraid of dogs.", "num_hypotheses": 3, "beam_trace": True}
    answer = ask(shipped, "/translate", **body)["translations"][0]
    page.find("#trace summary").click()
    page.find(".candidate").first.wait_for()
    shown = page.find(".candidate small").all_inner_texts()
    kept = [candidate for step in answer["beam_trace"] for candidate in step]
    assert [text.replace(MINUS, "-") for text in shown] == [f"{one['score']:.2f}" for one in kept]
    assert page.find(".candidate.complete").count() == sum(
        one["finish_reason"] is not None for one in kept
    )
    for place, hypothesis in enumerate(answer["hypotheses"]):
        page.find(".choice input").nth(place).check()
        chosen = page.find(".candidate.chosen span").all_inner_texts()
        assert letters(*chosen) == letters(hypothesis["text"], "end")


def test_the_arrow_keys_walk_through_the_search(page: TryPage) -> None:
    page.find("#trace summary").focus()
    page.page.keyboard.press("Enter")
    page.find(".candidate").first.wait_for()
    page.page.keyboard.press("Tab")
    page.wait_for_text("#trace-readout", "Step 1, place 1: “Le”")
    page.page.keyboard.press("ArrowRight")
    page.wait_for_text("#trace-readout", "Step 2, place 1: “Le petit”")
    page.page.keyboard.press("ArrowDown")
    page.wait_for_text("#trace-readout", "Step 2, place 2: “Le peu”")
    page.page.keyboard.press("ArrowLeft")
    page.wait_for_text("#trace-readout", "Step 1, place 1: “Le”")


def test_nobody_pays_for_a_trace_that_is_not_looked_at(page: TryPage) -> None:
    with page.page.expect_request("**/translate") as asked:
        page.find("#translate-text").fill(SENTENCE)
    page.wait_for_text("#translate-output", "Elle aime lire.")
    assert "beam_trace" not in (asked.value.post_data_json or {})


def test_of_several_sentences_one_is_looked_at(page: TryPage) -> None:
    page.find("#translate-text").fill("I am cold. Where is the station?\n\nHe is happy.")
    page.wait_for_text("#translate-output", "Où est la gare ?")
    sentences = page.find("#translate-output .sentence")
    assert sentences.count() == 3
    assert "\n\n" in (page.find("#translate-output").text_content() or "")
    assert page.find(".choice-text").first.inner_text() == "J'ai froid."
    sentences.nth(1).focus()
    page.page.keyboard.press("Enter")
    assert sentences.nth(1).get_attribute("aria-pressed") == "true"
    assert page.find(".choice-text").first.inner_text() == "Où est la gare ?"
    written = "".join(page.find(".heat-map th[scope=row]").all_inner_texts())
    assert written == "O-ùestlagare?end"


def test_an_empty_text_has_an_empty_page(page: TryPage) -> None:
    page.find("#translate-text").fill("  ")
    page.find("#translate-details").wait_for(state="hidden")
    assert page.find("#translate-output").inner_text() == ""


def test_a_model_without_attention_says_so(browser: Browser, server: Server) -> None:
    with open_page(browser, server.address) as page:
        page.find("#translate-model").select_option("fr-en-plain")
        page.find("#translate-text").fill("nous avons perdu")
        page.wait_for_text("#attention-map", "No attention to show")
        assert page.find(".choice").count() > 0


# --------------------------------------------------------------- generate


def write(page: TryPage, prompt: str = "The Time Traveller ", **fields: float) -> None:
    page.tab("Generate").click()
    page.find("#generate-prompt").fill(prompt)
    for name, value in fields.items():
        page.find(f"#generate-{name.replace('_', '-')}").fill(str(value))
    page.page.get_by_role("button", name="Generate").click()


def written(page: TryPage) -> str:
    return page.find(".token-line").text_content() or ""


def test_a_text_is_written_and_its_seed_reproduces_it(page: TryPage, shipped: Server) -> None:
    write(page, length=60, temperature=0.8, top_k=20, top_p=0.9)
    page.wait_for_text("#generate-note", "60 tokens.")
    seed = re.search(r"Seed (\d+)", page.find("#generate-note").inner_text())
    assert seed
    body = {"max_new_tokens": 60, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "logprobs": True}
    answer = ask(shipped, "/generate", prompt="The Time Traveller ", seed=int(seed[1]), **body)
    output = answer["outputs"][0]
    assert written(page) == "The Time Traveller " + output["text"]
    logprobs = page.find(".written .token").evaluate_all(
        "tokens => tokens.map((token) => Number(token.dataset.logprob))"
    )
    assert logprobs == [token["logprob"] for token in output["token_logprobs"]]


def test_the_tint_is_that_of_the_legend(page: TryPage) -> None:
    write(page, length=80, temperature=1, seed=3)
    page.wait_for_text("#generate-note", "Seed 3")
    legend = page.find("#generate-legend li").all_inner_texts()
    assert legend == ["above 80 %", "50 to 80 %", "20 to 50 %", "5 to 20 %", "0 to 5 %"]
    wrong = page.find(".written .token").evaluate_all(
        """tokens => tokens.filter((token) => {
             const p = Math.exp(token.dataset.logprob);
             const tint = p >= 0.8 ? 0 : p >= 0.5 ? 1 : p >= 0.2 ? 2 : p >= 0.05 ? 3 : 4;
             return !token.classList.contains(`tint-${tint}`);
           }).length"""
    )
    assert wrong == 0
    tints = page.find(".written .token").evaluate_all(
        "tokens => [...new Set(tokens.map((token) => getComputedStyle(token).backgroundColor))]"
    )
    assert len(tints) == 5


def test_writing_is_stopped(page: TryPage, shipped: Server) -> None:
    write(page, length=100_000)
    page.find(".written .token").nth(5).wait_for()
    page.page.get_by_role("button", name="Stop").focus()
    page.page.keyboard.press("Enter")
    page.wait_for_text("#generate-note", "Stopped.")
    shipped.wait_for(lambda: shipped.metric("gatehouse_texts_running") == 0)
    assert page.find(".written .token").count() < 100_000
    assert page.focused_id() == "generate-start"


def test_continuing_goes_on_where_it_ended(page: TryPage, shipped: Server) -> None:
    whole = ask(shipped, "/generate", prompt="I saw", max_new_tokens=40, temperature=0)
    write(page, "I saw", length=20, temperature=0)
    page.wait_for_text("#generate-note", "20 tokens.")
    page.page.get_by_role("button", name="Continue").click()
    page.find(".written .token").nth(39).wait_for()
    page.wait_for_text("#generate-note", "20 tokens.")
    assert written(page) == "I saw" + whole["outputs"][0]["text"]


def test_the_keyboard_walks_through_the_tokens(page: TryPage) -> None:
    write(page, length=10, temperature=0)
    page.wait_for_text("#generate-note", "Nothing was drawn.")
    page.find(".token-line").focus()
    for _ in range(2):
        page.page.keyboard.press("ArrowRight")
    token = page.find(".written .token").nth(1)
    assert "current" in (token.get_attribute("class") or "")
    page.wait_for_text("#generate-readout", "had the probability")
    page.page.keyboard.press("Tab")
    assert page.find("#generate-readout").inner_text() == ""


# -------------------------------------------------------------------- BLEU


def test_given_translations_are_scored(page: TryPage, shipped: Server) -> None:
    hypotheses = ["J'ai froid, non ?", "Il est content de son travail.", "the the the the"]
    references = [
        ["J'ai froid, oui."],
        ["Il est heureux de son travail.", "Il est content."],
        ["the cat"],
    ]
    scores = ask(
        shipped, "/bleu", hypotheses=hypotheses, references=references, sentence_level=True
    )["scores"]["bleu"]
    page.tab("BLEU").click()
    page.find("#bleu-hypotheses").fill("\n".join(hypotheses))
    page.find("#bleu-references").fill("\n".join(" ||| ".join(texts) for texts in references))
    page.find("#bleu-references").press("Control+Enter")
    page.wait_for_text("#bleu-note", f"BLEU {scores['score']:.1f} over 3 sentences.")
    shown = page.find(".sentences > li > .figure").all_inner_texts()
    assert [float(text) for text in shown] == [round(score, 1) for score in scores["sentences"]]
    assert page.find(".signature").inner_text() == scores["signature"]
    # What is marked in the page is what sacreBLEU counted.
    counts = [re.findall(r"(\d+)/(\d+)", text) for text in page.find(".counts").all_inner_texts()]
    for order in range(4):
        matched, total = (sum(int(sentence[order][i]) for sentence in counts) for i in (0, 1))
        assert 100 * matched / total == pytest.approx(scores["precisions"][order])
    # Of four times "the" the reference has one.
    marks = page.find(".sentences > li").nth(2).locator(".token-line .token")
    classes = [mark.get_attribute("class") for mark in marks.all()]
    assert classes == ["match-1 token", *["match-0 token"] * 3]


def test_a_match_is_shown_in_the_reference(page: TryPage) -> None:
    page.tab("BLEU").click()
    page.page.get_by_role("button", name="Score").click()
    sentence = page.find(".sentences > li").nth(1)
    sentence.locator(".token-line .token", has_text="nouveau").hover()
    page.wait_for_text(".sentences .readout", "is a 4-gram of a reference")
    assert sentence.locator(".reference .token.current").all_inner_texts()[1:3] == [
        "son",
        "nouveau",
    ]
    sentence.locator(".token-line").focus()
    page.page.keyboard.press("Home")
    page.wait_for_text(".sentences .readout", "“Il est” is a 2-gram of a reference")


def test_sources_are_translated_and_scored(page: TryPage, shipped: Server) -> None:
    page.tab("BLEU").click()
    page.find("input[name=mode][value=sources]").check()
    page.find("#bleu-sources").fill(f"I am cold.\n{SENTENCE}")
    page.find("#bleu-references").fill("J'ai froid.\nElle aime lire.")
    page.page.get_by_role("button", name="Score").click()
    page.wait_for_text("#bleu-note", "over 2 sentences, translated by en-fr.")
    lines = page.find(".sentences .token-line").all_inner_texts()
    translations = ask(shipped, "/translate", text=["I am cold.", SENTENCE])["translations"]
    assert [line.replace(" .", ".").strip() for line in lines] == [t["text"] for t in translations]


# ------------------------------------------------------------------ status


def test_the_charts_show_what_the_server_does(page: TryPage, shipped: Server) -> None:
    page.tab("Status").click()
    page.wait_for_text(".chart-value", "0 of 256")
    tokens = page.find(".chart").filter(has_text="Tokens a second")
    some = tokens.locator(".chart-value").filter(has_text=re.compile("[1-9]"))

    def shows_work() -> bool:
        """It shows it for two seconds, which may pass before anyone looks: then there is more."""
        ask(shipped, "/generate", prompt="The ", max_new_tokens=50)
        return some.count() > 0

    page.wait_until(shows_work)
    latency = page.find(".chart").filter(has_text="Time of a request")
    latency.locator(".chart-value").filter(has_text=re.compile(r"\d m?s / \d")).wait_for()
    label = tokens.locator("svg").get_attribute("aria-label") or ""
    assert label.startswith("Tokens a second: now ")
    points = tokens.locator("polyline").first.get_attribute("points") or ""
    assert len(points.split()) >= 2
    assert page.find(".model h3").all_inner_texts()[0].startswith("en-fr")


def test_the_charts_can_be_paused(page: TryPage) -> None:
    page.tab("Status").click()
    page.wait_for_text(".chart-value", "0 of 256")
    page.page.get_by_role("button", name="Pause").click()
    asked: list[str] = []
    page.page.on("request", lambda request: asked.append(request.url))
    page.page.wait_for_timeout(3000)
    assert not [url for url in asked if url.endswith("/metrics")]
    with page.page.expect_request("**/metrics"):
        page.page.get_by_role("button", name="Pause").click()


def test_nobody_looks_at_metrics_behind_another_tab(page: TryPage) -> None:
    asked: list[str] = []
    page.page.on("request", lambda request: asked.append(request.url))
    page.page.wait_for_timeout(2500)
    assert not [url for url in asked if url.endswith("/metrics")]
