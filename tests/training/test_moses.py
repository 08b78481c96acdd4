"""BLEU of lower-cased text in Moses' tokens."""

import pytest

from training.moses import moses_bleu, moses_sentences


@pytest.mark.parametrize(
    ("language", "text", "tokens"),
    [
        ("en", "A man's dog, asleep.", "a man &apos;s dog , asleep ."),
        ("fr", "L'homme dort « ici ».", "l&apos; homme dort &quot; ici &quot; ."),
        ("de", "Ein Mann schläft, z.B. dort.", "ein mann schläft , z.b. dort ."),
        ("xx", "Who knows?", "who knows ?"),
    ],
)
def test_text_is_lower_cased_and_tokenized(language: str, text: str, tokens: str) -> None:
    assert moses_sentences([text], language) == [tokens]


def test_case_and_the_shape_of_quotes_do_not_count() -> None:
    references = ["The dog sleeps on the “red” sofa.", "A man eats."]
    assert moses_bleu(references, references, "en") == pytest.approx(100.0)
    other = ['the dog sleeps on the "red" sofa .', "A MAN eats."]
    assert moses_bleu(other, references, "en") == pytest.approx(100.0)
    assert 0 < moses_bleu(["The dog sleeps on a sofa.", "A man eats."], references, "en") < 100
    assert moses_bleu(["No word", "in common"], references, "en") == 0.0
