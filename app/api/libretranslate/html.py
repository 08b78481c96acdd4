"""HTML as text to translate, and back.

A page is cut into tags and text by the rules of HTML's tokenizer, and not parsed into a tree:
what is not translated comes through to the letter, broken pages too, in time that grows with
their length. (The standard library's parser, and so BeautifulSoup over it, takes a minute for 40
kB of ``<a <a <a``.)
"""

import enum
import html
import itertools
import re
from collections.abc import Iterator

from app.exceptions import InvalidRequestError
from app.service.protection import (
    CLOSING_STAND_INS,
    OPENING_STAND_INS,
    POINT_STAND_INS,
    STAND_INS_OF_NAMES,
)

_INLINE = frozenset(
    re.findall(
        r"\w+",
        "a abbr acronym b bdi bdo big cite data del dfn em font i img ins label mark q s small "
        "span strike strong sub sup time tt u wbr code kbd math samp var",
    )
)
"""Elements that stand within a sentence; all others end one."""
_KEPT = frozenset(
    re.findall(r"\w+", "code kbd math noscript pre samp script style svg template textarea var")
)
"""Elements whose content is not translated."""
_RAW = frozenset({"script", "style", "textarea"})
"""Those of them in which there are no tags but their own end."""
_VOID = frozenset(
    re.findall(r"\w+", "area base br col embed hr img input link meta source track wbr")
)
# Possessive throughout, and what does not end reaches to the end: no character is read twice.
_MARKUP = re.compile(
    r"<!--(?:.*?-->|.*\Z)"
    r"|<[!?][^>]*+(?:>|\Z)"
    r"|<(?P<end>/?)(?P<name>[A-Za-z][^\s/>]*+)"
    r"""(?:[^>"']++|"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z))*+(?:>|\Z)""",
    re.DOTALL,
)
_ATTRIBUTE = re.compile(
    r"""([^\s"'>/=]++)(?:\s*+=\s*+(?:"([^"]*+)"?+|'([^']*+)'?+|([^\s"'>]++)))?+"""
)
_SPACES = " \t\r\n\f"
_SPACES_RUN = re.compile(f"[{_SPACES}]+")


class _Role(enum.Enum):
    """What a tag within a sentence does there."""

    OPENING = enum.auto()
    CLOSING = enum.auto()
    POINT = enum.auto()
    """It has no content."""
    NAME = enum.auto()
    """It is a whole element that stands where a noun could."""


_STAND_INS = {
    _Role.OPENING: OPENING_STAND_INS,
    _Role.CLOSING: CLOSING_STAND_INS,
    _Role.POINT: POINT_STAND_INS,
    _Role.NAME: STAND_INS_OF_NAMES,
}


class HtmlDocument:
    """A page or a part of one, valid or not.

    Args:
        source: the HTML.

    Attributes:
        text: what is to be translated: each run of text and of tags that stand within sentences
            on a line of its own, with a private-use character for each tag, which
            :mod:`app.service.protection` keeps.

    Raises:
        InvalidRequestError: it has more tags than there are private-use characters left.
    """

    def __init__(self, source: str) -> None:
        in_use = set(source)
        self._free = {
            role: (c for c in map(chr, stand_ins) if c not in in_use)
            for role, stand_ins in _STAND_INS.items()
        }
        self._between = f"\n{self._take(_Role.POINT)}\n"
        self._tags: dict[str, str] = {}
        # What stands before each text, and behind the last one, to the letter.
        self._around = [""]
        texts = []
        for is_run, group in itertools.groupby(_parts(source), key=lambda part: part.is_in_run):
            parts = list(group)
            if not is_run or not any(part.has_words for part in parts):
                self._around[-1] += "".join(part.source for part in parts)
                continue
            before, text, after = self._run(parts)
            self._around[-1] += before
            self._around.append(after)
            texts.append(text)
        self.text = self._between.join(texts)

    def with_text(self, translation: str) -> str:
        """The page with another text.

        Args:
            translation: of :attr:`text`, with the private-use characters in it.
        """
        texts = translation.split(self._between) if len(self._around) > 1 else []
        written = [
            "".join(self._tags.get(character, character) for character in _escape(text))
            for text in texts
        ]
        together = itertools.zip_longest(self._around, written, fillvalue="")
        return "".join(itertools.chain.from_iterable(together))

    def _run(self, parts: "list[_Part]") -> tuple[str, str, str]:
        """The white space before a run, its text, and the white space behind it."""
        first, last = (part.source if part.is_text else "" for part in (parts[0], parts[-1]))
        before = first[: len(first) - len(first.lstrip(_SPACES))]
        after = last[len(last.rstrip(_SPACES)) :]
        text = "".join(
            html.unescape(part.source) if part.is_text else self._stand_in(part) for part in parts
        )
        return before, _SPACES_RUN.sub(" ", text).strip(" "), after

    def _stand_in(self, part: "_Part") -> str:
        character = self._take(part.role)
        self._tags[character] = part.source
        return character

    def _take(self, role: _Role) -> str:
        """A private-use character that stands nowhere yet."""
        character = next(self._free[role], None)
        if character is None:
            raise InvalidRequestError("q", "there are too many tags or private-use characters")
        return character


class _Part:
    """A piece of a page.

    Args:
        source: as it is written.
        is_text: whether it is text, and no tag or the like.
        is_in_run: whether it stands within sentences.
        role: of a tag within a sentence.
    """

    def __init__(
        self,
        source: str,
        *,
        is_text: bool = False,
        is_in_run: bool = True,
        role: _Role = _Role.POINT,
    ) -> None:
        self.source = source
        self.is_text = is_text
        self.is_in_run = is_in_run
        self.role = role

    @property
    def has_words(self) -> bool:
        """Whether there is something to translate."""
        return self.is_text and any(map(str.isalpha, html.unescape(self.source)))


def _parts(source: str) -> Iterator[_Part]:
    """A page in pieces: together they are the page."""
    begin = 0
    while markup := _MARKUP.search(source, begin):
        if markup.start() > begin:
            yield _Part(source[begin : markup.start()], is_text=True)
        begin = markup.end()
        if markup["name"] is None:
            yield _Part(markup[0], is_in_run=markup[0].startswith("<!--"))
            continue
        name = markup["name"].lower()
        is_in_run = name in _INLINE
        if not markup["end"] and _is_kept(name, markup[0]):
            begin = _end_of(source, name, begin)
            kept = source[markup.start() : begin]
            yield _Part(kept, is_in_run=is_in_run, role=_Role.NAME)
        else:
            yield _Part(markup[0], is_in_run=is_in_run, role=_role_of(name, markup))
    if begin < len(source):
        yield _Part(source[begin:], is_text=True)


def _role_of(name: str, tag: re.Match[str]) -> _Role:
    if tag["end"]:
        return _Role.CLOSING
    return _Role.POINT if name in _VOID or tag[0].endswith("/>") else _Role.OPENING


def _is_kept(name: str, tag: str) -> bool:
    if name in _VOID or (tag.endswith("/>") and name not in _RAW):
        return False
    return name in _KEPT or any(map(_forbids_translation, _ATTRIBUTE.finditer(tag, len(name) + 1)))


def _forbids_translation(attribute: re.Match[str]) -> bool:
    """HTML standard, section 3.2.6.5, and the class that web pages use for the same."""
    name, *values = attribute.groups(default="")
    value = "".join(values).lower()
    if name.lower() == "translate":
        return value == "no"
    return name.lower() == "class" and "notranslate" in value.split()


def _end_of(source: str, name: str, begin: int) -> int:
    """Where an element ends whose start tag ends at a place; the page's end where it does not."""
    if name in _RAW:
        end = re.compile(rf"</{name}(?:>|[\s/][^>]*+>?)", re.IGNORECASE).search(source, begin)
        return len(source) if end is None else end.end()
    depth = 1
    for markup in _MARKUP.finditer(source, begin):
        if markup["name"] is not None and markup["name"].lower() == name:
            if markup["end"]:
                depth -= 1
            elif not markup[0].endswith("/>"):
                depth += 1
            if depth == 0:
                return markup.end()
    return len(source)


def _escape(text: str) -> str:
    return html.escape(text, quote=False).replace("\N{NO-BREAK SPACE}", "&nbsp;")
