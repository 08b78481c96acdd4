"""The pictures are those that the script draws, and can be read on any background."""

import re
from xml.etree import ElementTree

import pytest

from docs.pictures.__main__ import IMAGES, pictures

DRAWN = pictures()


def test_the_files_are_what_the_script_draws() -> None:
    assert {path.name: path.read_text(encoding="utf-8") for path in IMAGES.iterdir()} == DRAWN


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_has_words_for_who_cannot_see_it_and_only_colours_with_a_dark_form(
    name: str,
) -> None:
    text = DRAWN[name]
    root = ElementTree.fromstring(text)
    title = root.find("{http://www.w3.org/2000/svg}title")
    assert title is not None
    assert len(title.text or "") > 40
    style, _, drawing = text.partition("</style>")
    light, _, dark = style.partition("prefers-color-scheme: dark")
    colours = set(re.findall(r"(--\w+):", light))
    assert set(re.findall(r"var\((--\w+)\)", drawing)) <= colours
    assert all(
        paint == "none" or paint.startswith("var(")
        for paint in re.findall(r'(?:fill|stroke)="([^"]*)"', drawing)
    )
    assert set(re.findall(r"(--\w+):", dark)) == colours


def _luminance(colour: str) -> float:
    """As WCAG 2 defines it."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("form", [0, 1], ids=["light", "dark"])
def test_every_colour_has_enough_contrast_on_its_ground(form: int) -> None:
    style = DRAWN["gru.svg"].partition("</style>")[0].split("prefers-color-scheme: dark")[form]
    colours = dict(re.findall(r"(--\w+): (#\w+)", style))
    for ground in ("--panel", "--box"):
        for name in colours.keys() - {"--panel", "--box", "--edge"}:
            darker, lighter = sorted((_luminance(colours[name]), _luminance(colours[ground])))
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, f"{name} on {ground}"


def test_nothing_is_written_outside_a_picture() -> None:
    for name, text in DRAWN.items():
        root = ElementTree.fromstring(text)
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        for part in root.iter("{http://www.w3.org/2000/svg}text"):
            assert 0 < float(part.attrib["x"]) < width, name
            assert 0 < float(part.attrib["y"]) < height, name
