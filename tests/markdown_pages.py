"""Reads the project's pages: their code blocks, their links, and what links can point at."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
_PARSER = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        page: the file, relative to the project's folder.
        line: of its opening fence, from 1.
        section: title of the second-level heading above it; empty in front of the first.
        language: behind the opening fence.
        text: without the fences.
        follows_block: whether nothing stands between it and the block before.
    """

    page: str
    line: int
    section: str
    language: str
    text: str
    follows_block: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every Markdown file of the project, but those of the models."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("gatehouse_client/*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in order."""
    found, section, before = [], "", None
    tokens = _tokens(page)
    for token, inside in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and token.tag in ("h1", "h2"):
            assert inside is not None
            section = inside.content if token.tag == "h2" else ""
        if token.type == "fence":
            assert token.map is not None
            follows = before is not None and before.type == "fence"
            language, text = token.info.strip(), token.content.rstrip("\n")
            found.append(Block(page, token.map[0] + 1, section, language, text, follows))
        before = token
    return found


def links(page: str) -> list[str]:
    """Where the links and pictures of a page lead, as they are written."""
    return [
        str(token.attrs[name])
        for top in _tokens(page)
        for token in top.children or ()
        for name in ("href", "src")
        if name in token.attrs
    ]


def anchors(page: str) -> set[str]:
    """What can stand behind ``#`` in a link to a page: its headings as GitHub names them."""
    tokens = _tokens(page)
    seen: Counter[str] = Counter()
    found = set()
    for token, inside in pairwise(tokens):
        if token.type == "heading_open":
            name = re.sub(r"[^\w\- ]", "", "".join(_words(inside)).lower()).replace(" ", "-")
            found.add(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
    return found


def _words(inline: Token) -> Iterator[str]:
    for token in inline.children or ():
        if token.type in ("text", "code_inline"):
            yield token.content


def _tokens(page: str) -> list[Token]:
    return _PARSER.parse((ROOT / page).read_text(encoding="utf-8"))
