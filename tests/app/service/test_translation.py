"""What holds of every translation, over tiny random models."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient


def translate(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post("/translate", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_answer_names_model_and_languages(client: TestClient) -> None:
    answer = translate(client, text="I am cold .", source="en", target="fr")
    assert (answer["model"], answer["source"], answer["target"]) == ("en-fr", "en", "fr")
    assert len(answer["translations"]) == 1
    assert translate(client, text="va", source="fr")["model"] == "fr-en-plain"


def test_text_of_a_list_is_translated_as_alone(client: TestClient) -> None:
    texts = ["I am cold .", "", "we lost the time", "zebra"]
    together = translate(client, text=texts, beam_size=3)["translations"]
    for text, translation in zip(texts, together, strict=True):
        assert translate(client, text=text, beam_size=3)["translations"] == [translation]


def test_blank_text_has_the_empty_translation(client: TestClient) -> None:
    answer = translate(client, text=["", " \n"], num_hypotheses=2, alignments=True)
    blank = {
        "text": "",
        "score": 0.0,
        "tokens": 0,
        "finish_reason": "end",
        "alignment": {"source_tokens": [], "target_tokens": [], "weights": []},
    }
    assert answer["translations"] == [{**blank, "hypotheses": [blank]}] * 2
    assert answer["usage"] == {"input_tokens": 0, "output_tokens": 0}


def test_hypotheses_come_best_first(client: TestClient) -> None:
    answer = translate(client, text="I am cold .", beam_size=5, num_hypotheses=4)
    best = answer["translations"][0]
    assert len(best["hypotheses"]) == 4
    assert best["hypotheses"][0] == {k: v for k, v in best.items() if k != "hypotheses"}
    scores = [hypothesis["score"] for hypothesis in best["hypotheses"]]
    assert all(a >= b for a, b in itertools.pairwise(scores))
    assert answer["usage"]["output_tokens"] == sum(h["tokens"] for h in best["hypotheses"])
    assert "hypotheses" not in translate(client, text="go")["translations"][0]
    assert len(translate(client, text="go", num_hypotheses=1)["translations"][0]["hypotheses"]) == 1


def test_alignment_has_a_distribution_over_the_source_for_each_token(client: TestClient) -> None:
    for beam_size in (1, 4):
        answer = translate(client, text="I am cold .", beam_size=beam_size, alignments=True)
        translation = answer["translations"][0]
        alignment = translation["alignment"]
        assert alignment["source_tokens"] == ["I", "am", "cold", ".", "<eos>"]
        assert len(alignment["target_tokens"]) == translation["tokens"]
        assert len(alignment["weights"]) == translation["tokens"]
        for row in alignment["weights"]:
            assert len(row) == 5
            assert sum(row) == pytest.approx(1, abs=1e-5)


def test_default_length_follows_the_source(client: TestClient) -> None:
    for text, longest in (("go", 3 * 2 + 16), ("I am cold .", 3 * 5 + 16)):
        translation = translate(client, text=text, beam_size=1)["translations"][0]
        assert translation["tokens"] <= longest
        if translation["finish_reason"] == "length":
            assert translation["tokens"] == longest
    short = translate(client, text="go", max_new_tokens=2)["translations"][0]
    assert short["tokens"] <= 2


def test_length_penalty_divides_the_score(client: TestClient) -> None:
    plain = translate(client, text="go", beam_size=1, length_penalty=0)["translations"][0]
    normalised = translate(client, text="go", beam_size=1, length_penalty=1)["translations"][0]
    assert normalised["text"] == plain["text"]
    assert normalised["score"] == pytest.approx(plain["score"] / plain["tokens"])


def test_text_that_the_tokenizer_drops_has_the_empty_translation(odd_client: TestClient) -> None:
    # Normalisation takes zero width spaces away.
    answer = translate(odd_client, text=["\u200b", " \u200b\n", "  ", "go"], beam_size=1)
    for translation in answer["translations"][:3]:
        assert (translation["text"], translation["tokens"], translation["score"]) == ("", 0, 0.0)
    assert answer["translations"][3]["tokens"] > 0


def test_a_beam_returns_what_exists_where_that_is_less(odd_client: TestClient) -> None:
    body = {"text": "go", "beam_size": 16, "num_hypotheses": 16, "max_new_tokens": 1}
    translation = translate(odd_client, **body)["translations"][0]
    assert len(translation["hypotheses"]) == 5


def test_alignments_are_bounded(start_service: Callable[..., TestClient]) -> None:
    client = start_service(max_alignment_cells=240)
    # 2 texts x the 3 hypotheses of a beam x 8 target tokens x 5 source tokens = 240
    body = {
        **{"text": ["I am cold ."] * 2, "alignments": True},
        **{"beam_size": 3, "num_hypotheses": 2},
    }
    assert translate(client, **body, max_new_tokens=8)["translations"][1]["alignment"]
    response = client.post("/translate", json={**body, "max_new_tokens": 9})
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == ["alignments"]
    assert "270 weights" in response.text
    assert "the 240 allowed" in response.text
    assert translate(client, **{**body, "alignments": False}, max_new_tokens=9)


def test_padding_gets_no_attention(client: TestClient) -> None:
    texts = ["go", "I am cold . we lost the time machine I am cold ."]
    together = translate(client, text=texts, beam_size=3, alignments=True)["translations"]
    alone = translate(client, text="go", beam_size=3, alignments=True)["translations"][0]
    assert together[0] == alone
    # Two source tokens share all of it, whatever the other text's length.
    for row in together[0]["alignment"]["weights"]:
        assert len(row) == 2
        assert sum(row) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_a_beam_trace_leads_to_the_hypotheses(client: TestClient, beam_size: int) -> None:
    body = {"text": "I am cold .", "beam_size": beam_size, "num_hypotheses": beam_size}
    plain = translate(client, **body)["translations"][0]
    asked = {"alignments": True, "beam_trace": True}
    traced = translate(client, **body, **asked)["translations"][0]
    complete = [
        (candidate, number)
        for number, step in enumerate(traced["beam_trace"])
        for candidate in step
        if candidate["finish_reason"] is not None
    ]
    complete.sort(key=lambda entry: -entry[0]["score"])
    for (candidate, number), hypothesis in zip(complete, traced["hypotheses"], strict=False):
        assert candidate["score"] == hypothesis["score"]
        assert candidate["finish_reason"] == hypothesis["finish_reason"]
        tokens = path(traced["beam_trace"], number, candidate)
        assert tokens == hypothesis["alignment"]["target_tokens"]
    # Who does not ask gets the very same answer without it.
    assert "beam_trace" not in plain
    for hypothesis in (traced, *traced["hypotheses"]):
        del hypothesis["alignment"]
    del traced["beam_trace"]
    assert traced == plain


def path(trace: list[Any], number: int, candidate: dict[str, Any]) -> list[str]:
    """The tokens of a candidate from the first step on."""
    before = [] if number == 0 else path(trace, number - 1, trace[number - 1][candidate["parent"]])
    return [*before, candidate["token"]]


def test_a_blank_text_has_no_steps(client: TestClient) -> None:
    traces = [
        t["beam_trace"]
        for t in translate(client, text=["go", " "], beam_trace=True)["translations"]
    ]
    assert traces[0][0][0]["parent"] is None
    assert traces[1] == []


def test_beam_traces_are_bounded(start_service: Callable[..., TestClient]) -> None:
    client = start_service(max_alignment_cells=64)
    # 2 texts x beam size 4 x 8 target tokens = 64
    body = {"text": ["go", "we lost"], "beam_size": 4, "beam_trace": True}
    assert translate(client, **body, max_new_tokens=8)["translations"][1]["beam_trace"]
    response = client.post("/translate", json={**body, "max_new_tokens": 9})
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == ["beam_trace"]
