"""Languages, given or told by the names of files."""

import pytest

from training.languages import LanguageError, choose_languages


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.en", "train.fr"], ("en", "fr")),
        (["train.en.gz", "train.DE.txt"], ("en", "de")),
        (["corpus.en-fr.tsv"], ("en", "fr")),
        (["de-en.txt.gz"], ("de", "en")),
        (["europarl_pt-sv.tsv"], ("pt", "sv")),
    ],
)
def test_names_tell_the_languages(names: list[str], expected: tuple[str, str]) -> None:
    assert choose_languages(names) == expected


def test_what_is_given_counts_more_than_what_the_names_tell() -> None:
    assert choose_languages(["train.en", "train.fr"], "pt-BR", None) == ("pt-BR", "fr")
    assert choose_languages(["corpus.tsv"], "en", "fr") == ("en", "fr")


@pytest.mark.parametrize(
    ("names", "given", "complaint"),
    [
        (["corpus.tsv"], (None, None), "corpus.tsv: the name does not say .* give --from and --to"),
        (["corpus.tsv"], ("en", None), "give --from and --to"),
        (["a.src", "a.tgt"], (None, None), "a.src and a.tgt: the name"),
        (["en", "fr"], (None, None), "the name does not say"),
        (["a.xx-yy.tsv"], (None, None), "the name does not say"),
        (["a.tsv"], ("English", "fr"), "'English' is no language code"),
        (["a.tsv"], ("en", "f"), "'f' is no language code"),
        (["train.en", "valid.en"], (None, None), "source and target are both en"),
    ],
)
def test_what_is_not_known_is_asked_for(
    names: list[str], given: tuple[str | None, str | None], complaint: str
) -> None:
    with pytest.raises(LanguageError, match=complaint):
        choose_languages(names, *given)
