"""Languages are detected among those of the loaded models."""

import asyncio

import pytest

from app.service.detection import DetectedLanguage, LanguageDetector


def detect(text: str, *languages: str) -> list[DetectedLanguage]:
    return asyncio.run(LanguageDetector(languages).detect(text))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("I am cold, and he is happy.", "en"),
        ("J'ai froid, et il est content.", "fr"),
        ("Mir ist kalt, und er ist glücklich.", "de"),
        ("J'ai froid. " * 5_000, "fr"),
    ],
)
def test_sentences(text: str, language: str) -> None:
    found = detect(text, "en", "fr", "de")
    assert found[0].language == language
    assert sorted(each.language for each in found) == ["de", "en", "fr"]
    assert sum(each.confidence for each in found) == pytest.approx(1, abs=1e-5)
    assert [each.confidence for each in found] == sorted(
        (each.confidence for each in found), reverse=True
    )


def test_only_languages_that_are_served_are_detected() -> None:
    assert {each.language for each in detect("Mir ist kalt.", "en", "fr")} == {"en", "fr"}


def test_a_text_that_says_nothing_could_be_in_any_language() -> None:
    assert {each.confidence for each in detect("", "en", "fr")} == {0.5}


def test_languages_that_the_detector_does_not_know_are_left_out() -> None:
    assert [each.language for each in detect("go", "en", "abc", "en-GB")] == ["en"]
    assert detect("go", "abc") == []
