"""HTML comes through a translation: tags, attributes, and what is not for readers."""

import time
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.libretranslate.html import HtmlDocument
from app.exceptions import InvalidRequestError
from app.service.protection import CLOSING_STAND_INS, OPENING_STAND_INS, POINT_STAND_INS


def lines(source: str) -> list[str]:
    return [line for line in HtmlDocument(source).text.split("\n") if any(map(str.isalpha, line))]


def test_blocks_are_lines_and_tags_within_them_are_single_characters() -> None:
    source = (
        "<h1>Title</h1><p>One <b>two</b>\n three.</p>four<br>five<ul><li>six</li></ul>"
        '<img alt="seven"> &amp; eight <!-- nine -->'
    )
    assert [len(line) for line in lines(source)] == [5, 16, 4, 4, 3, 11]
    assert lines("<p>One <b>two</b>\n  thr<img>ee.</p>")[0] == (
        f"One {chr(OPENING_STAND_INS[0])}two{chr(CLOSING_STAND_INS[0])} "
        f"thr{chr(POINT_STAND_INS[1])}ee."
    )


@pytest.mark.parametrize(
    "source",
    [
        "<script>if (a < b) go()</script>",
        "<style>p { color: red }</style>",
        "<pre>a  b</pre>",
        "<textarea>words</textarea>",
        '<p translate="no">words<p>more</p></p>',
        "<p translate = no>words</p>",
        '<p class="x notranslate">words <b>more</b></p>',
        "<!-- words -->",
        "<p>42</p>",
    ],
)
def test_what_is_not_for_readers_is_not_translated(source: str) -> None:
    document = HtmlDocument(source)
    assert document.text == ""
    assert document.with_text("") == source


@pytest.mark.parametrize(
    "source",
    [
        '<p title="do not translate=no please">words</p>',
        '<p class="my-notranslate-x">words</p>',
        '<p data-x=" class=notranslate">words</p>',
        '<p data-translate="no">words</p>',
        '<p translate="nobody" class=notranslated>words</p>',
        "<p translate class>words</p>",
    ],
)
def test_what_only_looks_like_it_is_for_readers(source: str) -> None:
    assert HtmlDocument(source).text == "words"


@pytest.mark.parametrize(
    "attributes",
    ["TRANSLATE=NO", "class='a\nnotranslate'", 'x="y"translate=no', "class=notranslate id=a"],
)
def test_ways_to_write_that_something_is_not_translated(attributes: str) -> None:
    assert HtmlDocument(f"<p {attributes}>words</p>").text == ""


def test_code_within_a_sentence_stays_and_so_does_its_escaping() -> None:
    document = HtmlDocument("<p>Use <code>a &lt; b</code> now &amp; &lt;b&gt;.</p>")
    [line] = document.text.split("\n")
    assert line.endswith("now & <b>.")
    assert len(line) == len("Use x now & <b>.")
    assert document.with_text(line.replace("Use", "<Utilise>")) == (
        "<p>&lt;Utilise&gt; <code>a &lt; b</code> now &amp; &lt;b&gt;.</p>"
    )


def test_attributes_keep_their_order_and_their_values() -> None:
    source = '<p id="b" class="z a" data-x="1 &amp; 2" alt="Hi"><a href="?a=1&amp;b=2">link</a></p>'
    document = HtmlDocument(source)
    assert document.with_text(document.text) == source


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("AT&T", "AT&amp;T"),
        ("go &amp", "go &amp;"),
        ("a < b", "a &lt; b"),
        ("caf&eacute;&nbsp;x", "café&nbsp;x"),
        ("<p>open <i>ends", "<p>open <i>ends"),
        ("<a><div>block</div></a>", "<a><div>block</div></a>"),
        ("plain", "plain"),
        (" \n<p>  a\n b </p>\n", " \n<p>  a b </p>\n"),
        ("<!DOCTYPE html><title>t</title>", "<!DOCTYPE html><title>t</title>"),
        ("\U000f0000 <b>a</b>", "\U000f0000 <b>a</b>"),
        ("a <b x='>", "a <b x='>"),
        ("a <!-- b", "a <!-- b"),
        ("<code>a<code>b</code>c</code> word", "<code>a<code>b</code>c</code> word"),
        ("<SCRIPT>a<b</Script > word", "<SCRIPT>a<b</Script > word"),
        ("<svg/>word<br/>word", "<svg/>word<br/>word"),
    ],
)
def test_odd_pages(source: str, expected: str) -> None:
    document = HtmlDocument(source)
    assert document.with_text(document.text) == expected


TAGS = [
    "<p>",
    "</p>",
    "<b>",
    "</b>",
    "<a|href='x'>",
    "</a>",
    "<br>",
    "<ul>",
    "<li>",
    "</ul>",
    "</i>",
    "<img|src=x>",
    "<div>",
]
OTHERS = ["word ", "two. ", "\n", " ", "&amp;", "&lt;", "<code>x</code>", "<!-- c -->", "42", "é"]
ODD = ["&", "<script>a<b</script>", "<", ">", '"', "\U000f0001"]
FRAGMENTS = st.lists(
    st.sampled_from([*(tag.replace("|", " ") for tag in TAGS), *OTHERS, *ODD]), max_size=15
).map("".join)


class _Shape(HTMLParser):
    """Tags as they are written and, between them, text without white space."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[Any] = [""]
        self.feed(source + "\n")
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, self.get_starttag_text()), ""]

    def handle_endtag(self, tag: str) -> None:
        self.found += [(tag, None), ""]

    def handle_data(self, data: str) -> None:
        self.found[-1] += "".join(data.split())


def shape(source: str) -> list[Any]:
    return _Shape(source).found


@given(FRAGMENTS)
def test_the_same_text_gives_the_same_page(source: str) -> None:
    document = HtmlDocument(source)
    assert shape(document.with_text(document.text)) == shape(source)


@given(FRAGMENTS)
def test_no_translation_can_add_or_lose_a_tag(source: str) -> None:
    document = HtmlDocument(source)
    changed = "".join(
        "<i>&amp;" if character.isalpha() else character for character in document.text
    )
    before, after = shape(source), shape(document.with_text(changed))
    assert [x for x in after if isinstance(x, tuple)] == [x for x in before if isinstance(x, tuple)]


def test_too_many_tags_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="too many"):
        HtmlDocument("a<b></b>" * 40_000)


@pytest.mark.parametrize(
    "part", ["<", "<!--", "<a ", "<a b='", "</a", "&", "<?", "<code>", "a<br>", "<b x=' translate="]
)
def test_no_page_takes_long(part: str) -> None:
    started_at = time.process_time()
    document = HtmlDocument(part * (100_000 // len(part)))
    document.with_text(document.text)
    # The standard library's parser would take minutes.
    assert time.process_time() - started_at < 10
