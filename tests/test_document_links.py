"""Every page is found from docs/README.md, and no link in a page leads nowhere."""

from pathlib import PurePosixPath

import pytest

from tests.markdown_pages import ROOT, anchors, links, pages

INDEX = "docs/README.md"


def destinations(page: str) -> list[tuple[str, str]]:
    """Files that a page links to, relative to the project's folder, and the anchors in them."""
    found = []
    for link in links(page):
        if link.partition(":")[0] in ("http", "https", "mailto"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        resolved = target.resolve()
        assert resolved.is_relative_to(ROOT.resolve()), f"{link} leads out of the project"
        found.append((str(resolved.relative_to(ROOT.resolve())), anchor))
    return found


@pytest.mark.parametrize("page", pages())
def test_links_lead_to_what_is_there(page: str) -> None:
    for target, anchor in destinations(page):
        assert (ROOT / target).exists(), target
        if anchor:
            assert PurePosixPath(target).suffix == ".md", f"{target}#{anchor}"
            assert anchor in anchors(target), f"{target}#{anchor}"


def test_the_index_names_every_page() -> None:
    wanted = {page for page in pages() if page.startswith("docs/")} - {INDEX}
    assert wanted <= {target for target, _ in destinations(INDEX)}


def test_every_picture_is_shown_somewhere() -> None:
    shown = {target for page in pages() for target, _ in destinations(page)}
    folders = [ROOT / "docs" / name for name in ("charts", "images", "screenshots")]
    there = {str(path.relative_to(ROOT)) for folder in folders for path in folder.iterdir()}
    assert there
    assert there <= shown
