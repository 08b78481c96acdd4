"""Whatever a client sends, the answer is one of those that are described, and comes soon."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from app.main import create_app
from tests.app.api.description import Description
from tests.app.conftest import Server, make_settings, resident_bytes, wait_until_ready

pytestmark = pytest.mark.fuzz

JSON = {"content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}

VALID: dict[str, list[dict[str, Any]]] = {
    "/generate": [{"prompt": "the", "seed": 1}, {"prompt": ["a", "b"], "beam_size": 2, "n": 2}],
    "/translate": [
        {"text": "I am cold ."},
        {"text": ["go", "we lost"], "split": "sentences", "protect": ["we"]},
        {"q": "I am cold .", "source": "en", "target": "fr"},
    ],
    "/bleu": [
        {"hypotheses": ["a b"], "references": [["a b"]]},
        {"sources": ["go"], "references": ["va"], "metrics": ["bleu", "ter"]},
    ],
    "/v1/completions": [{"prompt": "the", "seed": 1}],
    "/detect": [{"q": "I am cold ."}],
}
"""Bodies that are answered, of each endpoint that takes one."""

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
"""Any code points: lone surrogates, NUL, marks without letters, both directions of writing."""

HOSTILE_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 17, 2**31, 2**53, 2**63, 2**64, -(2**63) - 1, 10**400),
    *(0.0, -0.0, 1.0, 1.5, 5e-324, 1e-9, 1e308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "\0", "a\0b", "\ud800", "\udfff\ud800", "\ufeff", "\ufffd", "\uffff", "😀" * 9),
    *(
        "e" + "\u0301" * 999,
        "\u202e\u2066abc\u2069",
        "שלום",
        "\u2028\u2029\x85",
        "\r\n\r\n",
        "1e999",
    ),
    *("auto", "none", "en", "null", "NaN", "../../etc/passwd", "%s%n{0}{{a}}${b}", "a" * 6_000),
    *([], [[]], [None], [""], ["a", 1], ["\ud800"], [[["a"]]], ["a"] * 100, [{}]),
    *({}, {"": ""}, {"a": {"a": {}}}, {"\ud800": 1}),
]


@pytest.fixture(scope="module")
def small(checkpoints_dir: Path) -> Iterator[TestClient]:
    """A service that writes little, so that many requests are answered soon."""
    app = create_app(
        make_settings(checkpoints_dir, max_new_tokens_limit=8, default_max_new_tokens=4)
    )
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client


@pytest.fixture(scope="module")
def description(small: TestClient) -> Description:
    return Description(small)


def fields_of(description: Description, body: dict[str, Any], path: str) -> dict[str, Any]:
    """The fields of the schema that a body fits, with what is said of each."""
    content = description.paths[path]["post"]["requestBody"]["content"]["application/json"]
    options = content["schema"].get("anyOf", [content["schema"]])
    names = [option["$ref"].rpartition("/")[2] for option in options]
    every = [description.schemas[name]["properties"] for name in names]
    return next(fields for fields in every if set(body) <= set(fields))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body"), [(path, body) for path, bodies in VALID.items() for body in bodies]
)
def test_every_field_takes_or_refuses_every_value(
    small: TestClient, description: Description, path: str, body: dict[str, Any]
) -> None:
    assert small.post(path, json=body).status_code == 200
    for field, schema in fields_of(description, body, path).items():
        takes_lists = "array" in json.dumps(schema)
        for value in HOSTILE_VALUES:
            for sent in (value, [value, "a"]) if takes_lists else (value,):
                content = json.dumps({**body, field: sent})
                response = small.post(path, content=content, headers=JSON)
                description.check(path, response)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | ANY_TEXT
    | st.sampled_from(HOSTILE_VALUES),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(ANY_TEXT, children, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def contents(draw: st.DrawFn, path: str) -> bytes:
    """A body that is almost one: fields replaced, unknown, twice, or cut anywhere."""
    fields = list(draw(st.sampled_from(VALID[path])).items())
    names = st.sampled_from([name for name, _ in fields]) | ANY_TEXT
    fields += draw(st.lists(st.tuples(names, values), max_size=3))
    fields = draw(st.permutations(fields))
    ascii_only = draw(st.booleans())
    text = ",".join(
        f"{json.dumps(name)}:{json.dumps(value, ensure_ascii=ascii_only)}" for name, value in fields
    )
    content = f"{{{text}}}".encode("utf-8", "surrogatepass")
    is_cut = draw(st.integers(0, 9)) == 9
    return content[: draw(st.integers(0, len(content)))] if is_cut else content


@settings(suppress_health_check=list(HealthCheck))
@given(data=st.data(), path=st.sampled_from(list(VALID)))
def test_any_json(
    small: TestClient, description: Description, data: st.DataObject, path: str
) -> None:
    content = data.draw(contents(path))
    description.check(path, small.post(path, content=content, headers=JSON))


@settings(suppress_health_check=list(HealthCheck))
@given(
    path=st.sampled_from(list(VALID)),
    content=st.binary(max_size=200),
    media_type=st.sampled_from(
        [
            *("application/json", "application/x-www-form-urlencoded", "text/plain", "", "a/b"),
            *("multipart/form-data", "multipart/form-data; boundary=a", "application/json; x=y"),
        ]
    ),
)
def test_any_bytes(
    small: TestClient, description: Description, path: str, content: bytes, media_type: str
) -> None:
    response = small.post(path, content=content, headers={"content-type": media_type})
    description.check(path, response)


@settings(suppress_health_check=list(HealthCheck))
@given(
    path=st.sampled_from(["/translate", "/detect"]),
    fields=st.lists(
        st.tuples(
            st.sampled_from(["q", "source", "target", "format", "alternatives", "api_key", "x"]),
            st.text(max_size=20) | st.sampled_from(["en", "fr", "auto", "html", "0", "3", "1e9"]),
        ),
        max_size=6,
    ),
    is_multipart=st.booleans(),
)
def test_any_form(
    small: TestClient,
    description: Description,
    path: str,
    fields: list[tuple[str, str]],
    is_multipart: bool,
) -> None:
    if is_multipart:
        parts = [
            f'--a\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields
        ]
        content = "".join([*parts, "--a--\r\n"]).encode()
        headers = {"content-type": "multipart/form-data; boundary=a"}
    else:
        content, headers = urlencode(fields).encode(), FORM
    description.check(path, small.post(path, content=content, headers=headers))


@settings(suppress_health_check=list(HealthCheck))
@given(name=st.text(max_size=20).map(str.encode) | st.binary(max_size=20))
def test_any_name_of_a_model(small: TestClient, name: bytes) -> None:
    assume(name not in (b"", b".", b"..") and b"/" not in name)  # these lead elsewhere
    for path, code in (("/models/", "unknown_model"), ("/v1/models/", "model_not_found")):
        response = small.get(path + quote(name, safe=""))
        error = response.json() if path == "/models/" else response.json()["error"]
        assert (response.status_code, error["code"]) == (404, code)


HUGE_TEXTS = {
    "a megabyte of one letter": "a" * 1_000_000,
    "a hundred thousand sentences": "Go on. " * 100_000,
    "as many characters as a document may have": "Go on. " * (320_000 // 7),
    "marks without letters": "\u0301" * 300_000,
    "right to left": "\u202e\u05d0\u05d1 " * 80_000,
    "nothing but NUL": "\0" * 300_000,
    "emoji": "a\N{GRINNING FACE}" * 100_000,
    "line breaks": "a\n" * 160_000,
    "tags": "a<b>" * 80_000,
    "protected": "a {a} " * 50_000,
    "numbers": "1. " * 100_000,
}
WAYS: dict[str, Any] = {
    "/generate": lambda text: {"prompt": text},
    "/translate": lambda text: {"text": text},
    "/translate in sentences": lambda text: {"text": text, "split": "sentences"},
    "/translate in LibreTranslate's": lambda text: {"q": text},
    "/translate of HTML": lambda text: {"q": text, "format": "html"},
    "/bleu": lambda text: {"hypotheses": [text], "references": [text]},
    "/v1/completions": lambda text: {"prompt": text},
    "/detect": lambda text: {"q": text},
    "/generate many": lambda text: {"prompt": list(text)},
    "/translate many": lambda text: {"text": list(text)},
    "/bleu many": lambda text: {"hypotheses": list(text), "references": list(text)},
    "/generate with such a stop string": lambda text: {"prompt": "a", "stop": text},
    "/generate with such a state": lambda text: {"state": text},
    "/translate with such a key": lambda text: {"q": "a", "api_key": text},
    "/translate with such a field": lambda text: {"text": "a", text: text},
    "/translate with such a model": lambda text: {"text": "a", "model": text},
}
HUGE_BODIES = {
    "deep lists": b"[" * 1_000_000,
    "deep objects": b'{"prompt":' * 100_000,
    "deep lists in a field": b'{"prompt":' + b"[" * 900 + b"]" * 900 + b"}",
    "one field again and again": b'{"prompt":"a"' + b',"prompt":"a"' * 100_000 + b"}",
    "many unknown fields": ("{" + ",".join(f'"{i}":0' for i in range(150_000)) + "}").encode(),
    "many items of a wrong kind": b'{"prompt":[' + b"0," * 900_000 + b"0]}",
    "many lists": b'{"references":[' + b"[0]," * 400_000 + b'"a"],"hypotheses":["a"]}',
    "many stop strings": b'{"prompt":"a","stop":[' + b'"",' * 500_000 + b'""]}',
    "a long number": b'{"prompt":"a","seed":' + b"9" * 1_000_000 + b"}",
    "a long fraction": b'{"prompt":"a","top_p":0.' + b"9" * 1_000_000 + b"}",
    "a long name": b'{"prompt":"a","' + b"a" * 1_000_000 + b'":1}',
    "white space": b" " * 1_900_000 + b'{"prompt":"a"}',
    "more than a body may have": b'{"prompt":"' + b"a" * 3_000_000 + b'"}',
}


@pytest.fixture(scope="module")
def patient(checkpoints_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server in a process of its own, whose memory can be looked at."""
    folder = tmp_path_factory.mktemp("hostile")
    server = Server(checkpoints_dir, folder, GATEHOUSE_REQUEST_TIMEOUT_SECONDS="5")
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


GROWTH_BYTES = 300 * 2**20
"""What all that is sent at once here may take, and the parts of it that are answered."""


@pytest.mark.slow
def test_huge_bodies_get_an_answer_within_bounds(patient: Server, description: Description) -> None:
    before = resident_bytes(patient.process.pid)
    for way, made_of in WAYS.items():
        path = way.partition(" ")[0]
        for name, text in HUGE_TEXTS.items():
            response = patient.client.post(path, json=made_of(text))
            description.check(path, response)
            assert len(response.content) < 4 * 2**20, (way, name)
    for content in HUGE_BODIES.values():
        for path in VALID:
            response = patient.client.post(path, content=content, headers=JSON)
            description.check(path, response)
    assert resident_bytes(patient.process.pid) - before < GROWTH_BYTES
    assert patient.metric("gatehouse_engine_restarts_total") == 0
