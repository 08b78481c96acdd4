"""Languages are detected among those of the loaded models."""

import asyncio

import pytest

from app.service.detection import MAX_CHARACTERS_READ, DetectedLanguage, LanguageDetector


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
    shown = [round(each.confidence, 3) for each in found]
    assert shown == sorted(shown, reverse=True)


def test_the_beginning_of_a_long_text_decides() -> None:
    beginning = ("J'ai froid, et il est content. " * 100)[:MAX_CHARACTERS_READ]
    rest = "I am cold, and he is happy. " * 1_000
    assert detect(beginning + rest, "en", "fr") == detect(beginning, "en", "fr")
    assert detect(rest, "en", "fr")[0].language == "en"


def test_only_languages_that_are_served_are_detected() -> None:
    assert {each.language for each in detect("Mir ist kalt.", "en", "fr")} == {"en", "fr"}


def test_a_text_that_says_nothing_could_be_in_any_language() -> None:
    assert {each.confidence for each in detect("", "en", "fr")} == {0.5}


def test_languages_that_the_detector_does_not_know_are_left_out() -> None:
    assert [each.language for each in detect("go", "en", "abc", "en-GB")] == ["en"]
    assert detect("go", "abc") == []


@pytest.mark.parametrize("text", ["", "go", "Paris", "12"])
def test_among_languages_that_are_as_likely_the_order_that_was_given_decides(text: str) -> None:
    for languages in (("fr", "en"), ("en", "fr")):
        found = detect(text, *languages)
        assert {each.confidence for each in found} == {0.5}
        assert [each.language for each in found] == list(languages)


def test_a_difference_that_nobody_is_shown_decides_nothing() -> None:
    for languages in (("fr", "en"), ("en", "fr")):
        assert detect("J'ai froid, et il est content.", *languages)[0].language == "fr"


def test_nor_does_one_between_two_that_look_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    class Identifier:
        def rank(self, text: str) -> list[tuple[str, float]]:
            return [("en", 0.40004), ("fr", 0.39996), ("de", 0.2)]

    monkeypatch.setattr(LanguageDetector, "_identifier", Identifier())
    for languages in (("de", "fr", "en"), ("en", "fr", "de")):
        found = [each.language for each in detect("any", *languages)]
        assert found == [*(each for each in languages if each != "de"), "de"]
