"""Pairs that models make: what is translated, what is kept, and what must not be."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from training.diversification import Translate, diversify, without_held_out
from training.parallel import Pair, ParallelCut, TestSentence, cut_pairs, normalised_form

CUT = ParallelCut(
    train=(Pair("a cat", "un chat"), Pair("a cat", "le chat"), Pair("a dog", "un chien")),
    validation=(Pair("no dog", "pas de chien"),),
    test=(TestSentence("my cat", ("mon chat", "ma chatte")),),
    reverse_test=(
        TestSentence("mon chat", ("my cat", "that cat of mine")),
        TestSentence("ma chatte", ("my cat",)),
    ),
)


def _by(table: dict[str, str], asked: list[str]) -> Translate:
    def translate(texts: Sequence[str]) -> list[str]:
        asked.extend(texts)
        return [table[text] for text in texts]

    return translate


def test_each_side_is_translated_once_and_what_is_new_is_kept() -> None:
    forward: list[str] = []
    backward: list[str] = []
    found = diversify(
        CUT,
        _by({"a cat": "un chien", "a dog": "un chien"}, forward),
        _by({"un chat": "a cat", "le chat": "a dog", "un chien": " a\tcat\n"}, backward),
    )
    assert forward == ["a cat", "a dog"]
    assert backward == ["un chat", "le chat", "un chien"]
    # The others are in the data, or came before.
    assert found == [Pair("a cat", "un chien"), Pair("a dog", "le chat")]


def test_without_a_model_of_the_other_direction() -> None:
    found = diversify(CUT, _by({"a cat": "le chien", "a dog": "le chat"}, []), None)
    assert found == [Pair("a cat", "le chien"), Pair("a dog", "le chat")]


def test_invented_words_and_empty_translations_are_left_out() -> None:
    forward = _by({"a cat": "un chachat", "a dog": ""}, [])
    backward = _by({"un chat": "Dog!", "le chat": "a kitty", "un chien": "?"}, [])
    found = diversify(CUT, forward, backward)
    # A sign alone is a word of its own, which the data do not have.
    assert found == [Pair("Dog!", "un chat")]


def test_held_out_sides_are_left_out_in_either_language() -> None:
    pairs = [
        Pair("My cat!", "un chat"),
        Pair("a cat", "Mon chat."),
        Pair("a cat", "ma chatte"),
        Pair("that cat of mine", "le chat"),
        Pair("no dog", "un chien"),
        Pair("a dog", "pas de chien"),
        Pair("mon chat", "my cat"),
        Pair("the cat", "le chat"),
    ]
    # A French sentence on the English side is not one that is held out there.
    assert without_held_out(pairs, CUT) == [Pair("mon chat", "my cat"), Pair("the cat", "le chat")]


SENTENCES = st.sampled_from([f"{word} {number}" for word in "abc" for number in range(5)])


@given(
    st.lists(st.builds(Pair, SENTENCES, SENTENCES), max_size=30),
    st.lists(st.builds(Pair, SENTENCES, SENTENCES), max_size=30),
)
def test_nothing_leaks_in_either_direction(pairs: list[Pair], made: list[Pair]) -> None:
    cut = cut_pairs(pairs, 0.3, 0.2)
    for direction in (cut, cut.reversed()):
        kept = without_held_out(made, direction)
        sources = {normalised_form(pair.source) for pair in kept}
        targets = {normalised_form(pair.target) for pair in kept}
        for sentence in direction.test:
            assert normalised_form(sentence.source) not in sources
            assert targets.isdisjoint(map(normalised_form, sentence.references))
        for sentence in direction.reverse_test:
            assert normalised_form(sentence.source) not in targets
            assert sources.isdisjoint(map(normalised_form, sentence.references))
        for pair in direction.validation:
            assert normalised_form(pair.source) not in sources
            assert normalised_form(pair.target) not in targets
