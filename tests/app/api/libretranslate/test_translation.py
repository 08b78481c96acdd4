"""The LibreTranslate dialect: what it answers and how it refuses."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.api.errors import ERROR_KINDS, problem
from app.api.libretranslate.errors import libretranslate_error
from app.engine.request import DEADLINE_GRACE_SECONDS, DecodeRequest, EndReason, Event
from app.exceptions import QueueFullError
from app.runtime import Runtime
from app.service.detection import DetectedLanguage, LanguageDetector
from tests.app.api.exchange import Exchange, scripted_app
from tests.app.api.test_routes import SlowLoader
from tests.app.conftest import make_settings
from tests.app.service.scripted_engine import end

StartService = Callable[..., TestClient]
PAIR = {"source": "en", "target": "fr"}
FORM = {"content-type": "application/x-www-form-urlencoded"}


def translate(client: TestClient, **fields: Any) -> dict[str, Any]:
    response = client.post("/translate", json=fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def native(client: TestClient, **fields: Any) -> list[dict[str, Any]]:
    response = client.post("/translate", json={"split": "sentences", **fields})
    translations: list[dict[str, Any]] = response.json()["translations"]
    return translations


def check(response: Any, status: int, message: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    assert message in response.json()["error"]


@pytest.mark.parametrize("q", ["I am cold .\n\nHe is happy .", ["go", "", "I am cold . go"]])
@pytest.mark.parametrize("send", ["json", "data", "files"])
def test_texts_are_those_of_the_native_dialect(client: TestClient, q: Any, send: str) -> None:
    expected = [each["text"] for each in native(client, text=q, **PAIR)]
    fields: Any = {"q": q, **PAIR, "api_key": "any", "format": "text"}
    if send == "files":  # a form in parts, as curl -F sends it
        listed = q if isinstance(q, list) else [q]
        fields = [("q", (None, each)) for each in listed]
        fields += [(name, (None, value)) for name, value in PAIR.items()]
    response = client.post("/translate", **{send: fields})
    assert response.status_code == 200, response.text
    answer = {"translatedText": expected if isinstance(q, list) else expected[0]}
    assert response.json() == answer


def test_alternatives(client: TestClient) -> None:
    [expected] = native(client, text="I am cold .", num_hypotheses=4, **PAIR)
    texts = [hypothesis["text"] for hypothesis in expected["hypotheses"]]
    answer = translate(client, q="I am cold .", alternatives=3, **PAIR)
    assert [answer["translatedText"], *answer["alternatives"]] == texts
    answer = translate(client, q=["go", "I am cold ."], alternatives=3, **PAIR)
    assert answer["alternatives"][1] == texts[1:]
    response = client.post("/translate", data={"q": "go", "alternatives": "1", **PAIR})
    assert len(response.json()["alternatives"]) == 1
    assert len(translate(client, q="go", alternatives=15, **PAIR)["alternatives"]) > 4


def test_a_language_is_detected_once_for_all_texts(client: TestClient) -> None:
    english, french = "I am cold and he is happy .", "Nous avons perdu la machine ."
    answer = translate(client, q=english, source="auto", target="fr")
    assert answer["detectedLanguage"]["language"] == "en"
    assert answer["detectedLanguage"]["confidence"] > 90
    assert answer["translatedText"] == translate(client, q=english, **PAIR)["translatedText"]
    answer = translate(client, q=[french, french], target="en")
    assert [each["language"] for each in answer["detectedLanguage"]] == ["fr", "fr"]
    assert answer["translatedText"][0] != french
    assert "detectedLanguage" not in translate(client, q="go", **PAIR)


def test_a_text_in_the_target_language_is_answered_as_it_is(client: TestClient) -> None:
    text = "Nous  avons perdu la <b>machine</b> ."
    for source in ("auto", "fr"):
        answer = translate(client, q=text, source=source, target="fr", format="html")
        assert answer["translatedText"] == text


def test_html(client: TestClient) -> None:
    page = '<p class="x">I am cold .</p><pre>I am cold .</pre><p>He <i>is</i> happy .</p>'
    answer = translate(client, q=[page, "go"], format="html", alternatives=1, **PAIR)
    cold = translate(client, q="I am cold .", **PAIR)["translatedText"]
    for text in (answer["translatedText"][0], answer["alternatives"][0][0]):
        assert text.count("<p>") == text.count('<p class="x">') == 1
        assert "<pre>I am cold .</pre>" in text
        assert "<i>" in text
    assert answer["translatedText"][0].startswith(f'<p class="x">{cold}</p>')
    assert answer["translatedText"][1] == translate(client, q="go", **PAIR)["translatedText"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"q": 3}, "q: "),
        ({"q": []}, "q: "),
        ({"q": ["a"] * 65}, "65 texts"),
        ({"q": "a" * 5_001}, "5001 characters"),
        ({"q": "go . " * 300}, "256 sentences"),
        ({"q": "a", "source": "de"}, "en to fr"),
        ({"q": "a", "target": "de"}, "en to fr"),
        ({"q": "a", "source": "de", "target": "de"}, "en to fr"),
        ({"q": "a", "format": "pdf"}, "format: "),
        ({"q": "a", "alternatives": 16}, "alternatives: "),
        ({"q": "a", "alternatives": "1"}, "alternatives: "),
        ({"q": "a", "text": "b"}, "text: "),
        ({"q": "a", "beam_size": 2}, "beam_size: "),
        ({"q": "a\ud800"}, "Unicode"),
    ],
)
def test_what_is_refused(client: TestClient, fields: dict[str, Any], message: str) -> None:
    content = json.dumps({**PAIR, **fields})
    headers = {"content-type": "application/json"}
    check(client.post("/translate", content=content, headers=headers), 400, message)


@pytest.mark.parametrize("sent", ["Où va +la%26machine", "O%C3%B9 va %20la%26machine"])
def test_a_form_is_utf_8_whether_encoded_or_not(client: TestClient, sent: str) -> None:
    # From a language to itself nothing is translated.
    content = f"q={sent}&source=fr&target=fr".encode()
    response = client.post("/translate", content=content, headers=FORM)
    assert response.json() == {"translatedText": "Où va  la&machine"}


def test_forms_that_are_none(client: TestClient) -> None:
    for content in (b"q=\xff&source=fr&target=fr", b"q=%FF&source=fr&target=fr", b"a&" * 1_100):
        check(
            client.post("/translate", content=content, headers=FORM), 400, "form of texts in UTF-8"
        )
    parts = b'--x\r\nContent-Disposition: form-data; name="q"\r\n\r\nO\xf9\r\n--x--\r\n'
    multipart = {"content-type": "multipart/form-data; boundary=x"}
    response = client.post("/translate", content=parts, headers=multipart)
    check(response, 400, "form of texts in UTF-8")
    check(client.post("/translate", data={"text": "go"}), 400, "q: Field required")
    check(client.post("/translate", data={"q": "a", "alternatives": "x"}), 400, "alternatives")
    check(client.post("/translate", files={"q": ("name", b"go")}), 400, "form")
    bad = {"content-type": "multipart/form-data"}
    check(client.post("/translate", content=b"x", headers=bad), 400, "form")
    check(client.post("/detect", content=b"q=" + b"x" * 2_100_000, headers=FORM), 413, "bytes")
    check(client.post("/translate", content=b"q=" + b"x" * 2_100_000, headers=FORM), 413, "bytes")


def test_other_endpoints_take_no_forms(client: TestClient) -> None:
    for path in ("/generate", "/bleu", "/v1/completions"):
        assert client.post(path, data={"q": "a", "prompt": "a"}).status_code == 415


def test_a_body_without_q_is_native(client: TestClient) -> None:
    assert client.post("/translate", json={"source": "en"}).json()["code"] == "invalid_request"
    assert client.post("/translate", content=b"{").json()["code"] == "unsupported_media_type"


@pytest.mark.parametrize("code", ERROR_KINDS)
def test_every_error_says_what_is_wrong(code: str) -> None:
    answer = libretranslate_error(problem(code, "what is wrong", headers={"Retry-After": "3"}))
    status, words = {422: 400}.get(ERROR_KINDS[code].status, ERROR_KINDS[code].status), None
    if code == "missing_api_key":
        status, words = 400, "Please contact the server operator to get an API key"
    elif code == "invalid_api_key":
        status, words = 403, "Invalid API key"
    assert json.loads(bytes(answer.body)) == {"error": words or "what is wrong"}
    assert answer.status_code == status
    assert answer.headers["retry-after"] == "3"


async def _failing(request: DecodeRequest) -> AsyncIterator[Event]:
    yield end(request, EndReason.FAILED)


def test_a_full_queue_and_a_failed_engine() -> None:
    async def scenario() -> None:
        app, runtime = scripted_app(_failing)
        exchange = Exchange(app, "/translate", {"q": "a", **PAIR})
        await exchange.run()
        assert (exchange.status, list(json.loads(exchange.body))) == (503, ["error"])
        runtime.scripted.refusal = QueueFullError("full", retry_after_seconds=7)
        exchange = Exchange(app, "/translate", {"q": "a", **PAIR})
        await exchange.run()
        assert (exchange.status, exchange.headers["retry-after"]) == (429, "7")
        assert json.loads(exchange.body) == {"error": "full"}

    asyncio.run(scenario())


def test_before_the_models_are_loaded(start_service: StartService, checkpoints_dir: Path) -> None:
    slow = SlowLoader()
    runtime = Runtime(make_settings(checkpoints_dir), engine_loader=slow)
    client = start_service(runtime=runtime, ready=False)
    for response in (
        client.get("/languages"),
        client.get("/frontend/settings"),
        client.post("/detect", json={"q": "a"}),
        client.post("/translate", json={"q": "a"}),
    ):
        check(response, 503, "loaded")
        assert response.headers["retry-after"] == "1"
    slow.may_go_on.set()


def test_detect(client: TestClient) -> None:
    for send in ({"json": {"q": "J'ai froid et il est content."}}, {"data": {"q": "J'ai froid."}}):
        found = client.post("/detect", **send).json()  # type: ignore[arg-type]  # either of two
        assert [each["language"] for each in found] == ["fr", "en"]
        assert found[0]["confidence"] > 90
    check(client.post("/detect", json={"q": ["a"]}), 400, "q: ")
    check(client.post("/detect", json={}), 400, "q: ")
    check(client.get("/detect"), 405, "Allow")
    metrics = client.get("/metrics").text
    assert 'gatehouse_requests_total{endpoint="detect",model="",outcome="ok"}' in metrics


def test_a_text_that_could_be_in_either_language(client: TestClient) -> None:
    """The default translator's source comes first, but no language is translated to itself."""
    assert [each["language"] for each in client.post("/detect", json={"q": "12"}).json()] == [
        "en",
        "fr",
    ]
    for target, source in (("fr", "en"), ("en", "fr"), (None, "en")):
        body = {"q": "go", "source": "auto", **({"target": target} if target else {})}
        assert translate(client, **body)["detectedLanguage"]["language"] == source


def test_languages_and_settings(client: TestClient) -> None:
    assert client.get("/languages").json() == [
        {"code": "en", "name": "English", "targets": ["fr"]},
        {"code": "fr", "name": "French", "targets": ["en"]},
    ]
    settings = client.get("/frontend/settings").json()
    assert settings["language"] == {
        "source": {"code": "en", "name": "English"},
        "target": {"code": "fr", "name": "French"},
    }
    assert settings["charLimit"] == 320_000
    assert not any(settings[name] for name in ("keyRequired", "suggestions", "filesTranslation"))


def test_a_language_without_a_name_is_called_by_its_code(odd_client: TestClient) -> None:
    [abc, english] = sorted(odd_client.get("/languages").json(), key=lambda each: each["code"])
    assert abc["code"] == "abc"
    assert english["targets"] == ["abc"]


def test_private_use_characters_may_run_out(client: TestClient) -> None:
    every = "".join(map(chr, range(0xFA000, 0xFFFFE)))
    response = client.post("/translate", json={"q": f"<p>{every}", **PAIR, "format": "html"})
    check(response, 400, "too many tags or private-use characters")


def test_a_form_may_be_as_large_as_a_body(client: TestClient) -> None:
    text = "été " * 76_000  # more than a MiB as a form's bytes
    response = client.post("/translate", data={"q": text, **PAIR, "format": "text"})
    assert "cannot be read" not in response.text
    assert response.status_code in (200, 400), response.text


def test_all_of_a_request_has_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def detect_slowly(self: object, text: str) -> list[DetectedLanguage]:
        await asyncio.sleep(0.5)
        return [DetectedLanguage("en", 1.0)]

    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        yield end(request, EndReason.FINISHED)

    async def scenario() -> None:
        monkeypatch.setattr(LanguageDetector, "detect", detect_slowly)
        app, runtime = scripted_app(script, request_timeout_seconds=5)
        body = {"q": "<p>I am cold", "source": "auto", "target": "fr", "format": "html"}
        await Exchange(app, "/translate", body).run()
        (request,) = runtime.scripted.submitted
        # What reading and detecting took is not given to the engine once more.
        assert request.timeout_seconds < 4.6 + DEADLINE_GRACE_SECONDS

    asyncio.run(scenario())
