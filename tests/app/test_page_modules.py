"""What the page computes itself, held against those who compute it elsewhere."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from sacrebleu.metrics.bleu import BLEU

from tests.app.browser import open_page
from tests.app.conftest import Server

pytestmark = pytest.mark.browser

Call = Callable[..., Any]

TEXTS = [
    "Il est content.",
    "J'ai 3,5 ans, et 1.000 idées; n'est-ce pas ?",
    "&quot;Non&quot; &amp;lt; &amp; <b>oui</b>",
    "à 10-12 ans -- 5.-- (voilà) {x} [y] `z` a/b",
    "  Où   est\tla gare ?  ",
    "100€ «bonjour» … 漢字、かな",
    "a<skipped>b",
    "",
]


@pytest.fixture(scope="module")
def page(browser: Browser, server: Server) -> Iterator[Page]:
    with open_page(browser, server.address) as opened:
        yield opened.page


@pytest.fixture(scope="module")
def call(page: Page) -> Call:
    """Calls a function that a module of the page exports."""

    def call(module: str, name: str, *arguments: Any) -> Any:
        return page.evaluate(
            """async ([module, name, ...given]) => {
              const exported = await import(`/static/${module}.js`);
              return exported[name](...given);
            }""",
            [module, name, *arguments],
        )

    return call


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [
        ("13a", BLEU(tokenize="13a").tokenizer),
        ("intl", BLEU(tokenize="intl").tokenizer),
        ("char", BLEU(tokenize="char").tokenizer),
        ("none", BLEU(tokenize="none").tokenizer),
    ],
    ids=["13a", "intl", "char", "none"],
)
def test_texts_are_cut_as_sacrebleu_cuts_them(
    call: Call, text: str, name: str, tokenizer: Callable[[str], str]
) -> None:
    assert call("ngrams", "tokenize", text, name) == tokenizer(text.strip()).split()


def test_ngrams_count_as_often_as_a_reference_has_them(call: Call) -> None:
    found = call("ngrams", "matchNgrams", list("aabab"), [list("abx"), list("aa")], False)
    # "a" twice (second reference), "b" once; "aa" and "ab" once each, no longer ones.
    assert found["matched"] == [3, 2, 0, 0]
    assert found["total"] == [5, 4, 3, 2]
    assert found["longest"] == [2, 2, 2, 0, 0]
    assert found["begins"] == [0, 0, 1, -1, -1]


def test_case_counts_unless_it_is_ignored(call: Call) -> None:
    for ignores_case, matched in ((False, 0), (True, 1)):
        found = call("ngrams", "matchNgrams", ["Il"], [["il"]], ignores_case)
        assert found["matched"][0] == matched
        place = call("ngrams", "findNgram", ["Il"], ["x", "il"], ignores_case)
        assert place == (1 if ignores_case else -1)


METRICS = """\
# HELP x_total Counts.
# TYPE x_total counter
x_total{model="a \\"b\\"",outcome="ok"} 3.0
x_total{model="c",outcome="ok"} 4.5
y 1e-05
z_bucket{le="0.1",model="a"} 2.0
z_bucket{le="+Inf",model="a"} 4.0
z_bucket{le="0.1",model="b"} 1.0
z_bucket{le="+Inf",model="b"} 1.0
"""


def test_metrics_are_read(page: Page) -> None:
    found = page.evaluate(
        """async (text) => {
          const { parseMetrics, total, buckets } = await import("/static/prometheus.js");
          const metrics = parseMetrics(text);
          return {
            total: total(metrics, "x_total"),
            label: metrics.get("x_total")[0].labels.model,
            small: total(metrics, "y"),
            missing: total(metrics, "nope"),
            buckets: [...buckets(metrics, "z")].map(([bound, count]) => [String(bound), count]),
          };
        }""",
        METRICS,
    )
    assert found == {
        "total": 7.5,
        "label": 'a "b"',
        "small": 1e-5,
        "missing": 0,
        "buckets": [["0.1", 3], ["Infinity", 5]],
    }


@pytest.mark.parametrize(
    ("later", "quantile", "expected"),
    [
        ([10, 10, 10], 0.5, 0.5),  # all in the first bucket, up to 1: its middle
        ([0, 10, 10], 0.5, 2.0),  # all between 1 and 3
        ([4, 8, 10], 0.95, 3.0),  # beyond the last bound: the bound
        ([5, 10, 10], 0.75, 2.0),
        ([0, 0, 0], 0.5, None),
    ],
)
def test_quantiles_are_even_within_a_bucket(
    page: Page, later: list[int], quantile: float, expected: float | None
) -> None:
    found = page.evaluate(
        """async ([later, quantile]) => {
          const { quantileBetween } = await import("/static/prometheus.js");
          const bounds = [1, 3, Infinity];
          const earlier = new Map(bounds.map((bound) => [bound, 7]));
          const counted = new Map(bounds.map((bound, at) => [bound, later[at] + 7]));
          return quantileBetween(earlier, counted, quantile);
        }""",
        [later, quantile],
    )
    assert found == expected


def test_texts_are_cut_into_sentences_and_nothing_is_lost(call: Call) -> None:
    text = "I am cold.  Where is he?\n\nNo idea\nEnd.  "
    sentences = call("sentences", "cutSentences", text, "en")
    assert [sentence["text"] for sentence in sentences] == [
        "I am cold.",
        "Where is he?",
        "No idea",
        "End.",
    ]
    assert "".join(sentence["text"] + sentence["space"] for sentence in sentences) == text
    assert call("sentences", "cutSentences", " \n ", "") == []


def test_events_are_read_however_they_are_cut(page: Page) -> None:
    text = ': ping\n\nevent: token\ndata: {"text":"é"}\n\n'
    text += 'event: done\r\ndata: {"a":\r\ndata: 1}\r\n\r\n'
    for size in (1, 3, 1000):
        found = page.evaluate(
            """async ([bytes, size]) => {
              const { readEvents } = await import("/static/events.js");
              const body = new ReadableStream({
                start(controller) {
                  for (let at = 0; at < bytes.length; at += size) {
                    controller.enqueue(new Uint8Array(bytes.slice(at, at + size)));
                  }
                  controller.close();
                },
              });
              const found = [];
              for await (const event of readEvents(body)) found.push(event);
              return found;
            }""",
            [list(text.encode()), size],
        )
        assert found == [
            {"event": "token", "data": {"text": "é"}},
            {"event": "done", "data": {"a": 1}},
        ]


@pytest.mark.parametrize(
    ("part", "words"),
    [(1, "100 %"), (0.123, "12 %"), (0.0312, "3.1 %"), (0.0004, "below 0.1 %"), (0, "below 0.1 %")],
)
def test_probabilities_in_words(call: Call, part: float, words: str) -> None:
    assert call("dom", "percent", part) == words


@pytest.mark.parametrize(
    ("token", "are_pieces", "words"),
    [
        ("\N{LOWER ONE EIGHTH BLOCK}gare", True, "gare"),
        ("ment", True, "-ment"),
        (".", True, "."),
        ("<eos>", True, "end"),
        (" ", False, "\N{OPEN BOX}"),
        ("gare", False, "gare"),
    ],
)
def test_tokens_in_words(call: Call, token: str, are_pieces: bool, words: str) -> None:
    assert call("tokens", "shownToken", token, are_pieces) == words


def test_the_ways_through_a_search(call: Call) -> None:
    def kept(parent: int | None, score: float, reason: str | None = None) -> dict[str, Any]:
        return {"parent": parent, "score": score, "finish_reason": reason}

    trace = [
        [kept(None, -1), kept(None, -2)],
        [kept(1, -1), kept(0, -2, "end")],
        [kept(0, -2, "end"), kept(0, -1.5, "length")],
    ]
    assert call("beam_tree", "completeIn", trace) == [[2, 1], [1, 1], [2, 0]]
    assert call("beam_tree", "pathTo", trace, 2, 1) == [1, 0, 1]
    # A hypothesis that reads like a better one is not told: the third may be the second.
    assert [call("beam_tree", "rankOf", trace, score) for score in (-1.5, -2.0, -1.9)] == [0, 1, 1]


def test_an_event_may_hold_what_other_formats_end_lines_with(call: Call) -> None:
    text = "a\u2028b\u2029c\x85d"
    block = f'event: token\ndata: {{"text":"{text}"}}'
    assert call("events", "parseEvent", block) == {"event": "token", "data": {"text": text}}
