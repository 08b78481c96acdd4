"""Reading sentence pairs and cutting a test set that training never sees."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.preparation import normalise_spaces
from training.parallel import (
    Pair,
    TestSentence,
    cut_pairs,
    first_targets,
    group_references,
    normalised_form,
    parse_tab_pairs,
    read_aligned,
)
from training.sources import DataError

# Few words, so that sentences collide in many ways: case, punctuation, either side.
_words = st.sampled_from(["go", "Go", "on", "ÉTÉ", "été", "a", "b", "c", "d"])
_sides = st.builds(
    lambda words, end: " ".join(words) + end,
    st.lists(_words, min_size=1, max_size=2),
    st.sampled_from(["", ".", "!", "\u202f!", " ?"]),
)
pair_lists = st.lists(st.builds(Pair, _sides, _sides), max_size=60)
shares = st.sampled_from([0.0, 0.1, 0.3, 0.45])


# Reading


def test_columns_are_read_and_extra_ones_ignored() -> None:
    text = "Go.\tVa !\tCC-BY 2.0\n\n  Hi. \t Salut.\r\nRun!\tCours\u202f!"
    assert parse_tab_pairs(text) == [
        Pair("Go.", "Va !"),
        Pair("", ""),
        Pair("Hi.", "Salut."),
        Pair("Run!", "Cours\u202f!"),
    ]


def test_only_newlines_end_a_line() -> None:
    assert parse_tab_pairs("a\u2028b\x0bc\tx\x85y") == [Pair("a\u2028b\x0bc", "x\x85y")]


def test_a_line_without_a_tab_is_named() -> None:
    with pytest.raises(DataError, match=r"line 3 has no tab .* 'no tab here'"):
        parse_tab_pairs("a\tb\n\nno tab here\n")


def test_the_index_of_a_pair_tells_its_line_whatever_is_empty() -> None:
    expected = [Pair("a", ""), Pair("", "b"), Pair("", ""), Pair("c", "d")]
    assert parse_tab_pairs("a\t\n\tb\n\nc\td\n") == expected
    assert read_aligned("a\n\n\nc\n", "\nb\n \nd") == expected
    assert parse_tab_pairs("") == read_aligned("", "") == []


def test_aligned_texts_are_paired_by_line() -> None:
    expected = [Pair("a", "x"), Pair("b\u2028b", "y")]
    assert read_aligned("a\nb\u2028b\n", "x\ny") == expected


def test_unequal_line_counts_are_named() -> None:
    with pytest.raises(DataError, match="the source has 3 lines and the target 2"):
        read_aligned("a\nb\nc\n", "x\ny\n")


# Normalised form


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Go.", "go"),
        ("  GO !! ", "go"),
        ("Va\u202f!", "va"),
        ("Va\u00a0!", "va"),
        ("I'm  not -- really -- cold.", "i m not really cold"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("e\u0301te\u0301", "été"),
        ("ﬁn", "fin"),
        ("snake_case", "snake case"),
        ("?!", "?!"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_normalised_forms(sentence: str, expected: str) -> None:
    assert normalised_form(sentence) == expected


@given(st.text())
def test_plain_spaces_do_not_change_the_form(text: str) -> None:
    assert normalised_form(normalise_spaces(text)) == normalised_form(text)


# The cut


def test_references_are_gathered_in_order_without_repetitions() -> None:
    pairs = [Pair("a", "y"), Pair("b", "z"), Pair("a", "x"), Pair("a", "y")]
    assert group_references(pairs) == (
        TestSentence("a", ("y", "x")),
        TestSentence("b", ("z",)),
    )


@given(pair_lists, shares, shares)
def test_nothing_leaks(pairs: list[Pair], test_share: float, validation_share: float) -> None:
    cut = cut_pairs(pairs, test_share, validation_share)
    test_sources = {normalised_form(item.source) for item in cut.test}
    test_targets = {normalised_form(text) for item in cut.test for text in item.references}
    # The other direction has references of its own.
    test_sources |= {normalised_form(text) for item in cut.reverse_test for text in item.references}
    validation_sources = {normalised_form(pair.source) for pair in cut.validation}
    validation_targets = {normalised_form(pair.target) for pair in cut.validation}
    for pair in cut.train:
        assert normalised_form(pair.source) not in test_sources | validation_sources
        assert normalised_form(pair.target) not in test_targets | validation_targets
    assert not test_sources & validation_sources
    assert not test_targets & validation_targets


@given(pair_lists, shares, shares)
def test_test_sentences_keep_every_reference(
    pairs: list[Pair], test_share: float, validation_share: float
) -> None:
    cut = cut_pairs(pairs, test_share, validation_share)
    for item in cut.test:
        expected = [pair.target for pair in pairs if pair.source == item.source]
        assert item.references == tuple(dict.fromkeys(expected))
    for item in cut.reverse_test:
        expected = [pair.source for pair in pairs if pair.target == item.source]
        assert item.references == tuple(dict.fromkeys(expected))
    targets = {text for item in cut.test for text in item.references}
    assert {item.source for item in cut.reverse_test} == targets
    assert len(cut.reverse_test) == len(targets)


@given(pair_lists, shares, shares, st.randoms(use_true_random=False))
def test_the_cut_does_not_depend_on_the_order(
    pairs: list[Pair], test_share: float, validation_share: float, shuffler: random.Random
) -> None:
    cut = cut_pairs(pairs, test_share, validation_share)
    shuffled = list(pairs)
    shuffler.shuffle(shuffled)
    other = cut_pairs(shuffled, test_share, validation_share)
    assert set(cut.train) == set(other.train)
    assert set(cut.validation) == set(other.validation)

    def by_source(items: tuple[TestSentence, ...]) -> dict[str, set[str]]:
        return {item.source: set(item.references) for item in items}

    assert by_source(cut.test) == by_source(other.test)
    assert by_source(cut.reverse_test) == by_source(other.reverse_test)


@given(pair_lists, pair_lists, shares)
def test_more_pairs_keep_the_test_sentences(
    pairs: list[Pair], more: list[Pair], test_share: float
) -> None:
    before = {item.source for item in cut_pairs(pairs, test_share).test}
    after = {item.source for item in cut_pairs(pairs + more, test_share).test}
    sources = {pair.source for pair in pairs}
    assert before == after & sources


@given(pair_lists, shares)
def test_a_pair_leaves_only_for_a_shared_side(pairs: list[Pair], test_share: float) -> None:
    cut = cut_pairs(pairs, test_share, 0.0)
    test_pairs = {pair for pair in pairs if pair.source in {item.source for item in cut.test}}
    targets = {normalised_form(pair.target) for pair in test_pairs}
    sources = {normalised_form(pair.source) for pair in test_pairs}
    sources |= {normalised_form(p.source) for p in pairs if normalised_form(p.target) in targets}
    assert cut.validation == ()
    assert set(cut.train) == {
        pair
        for pair in pairs
        if normalised_form(pair.source) not in sources
        and normalised_form(pair.target) not in targets
    }


def _numbered_pairs(count: int) -> list[Pair]:
    return [Pair(f"sentence {number}", f"phrase {number}") for number in range(count)]


def test_shares_are_met_and_order_and_repetitions_handled() -> None:
    pairs = _numbered_pairs(5000)
    cut = cut_pairs(pairs + pairs, 0.1, 0.2)
    assert 400 < len(cut.test) < 600
    assert 850 < len(cut.validation) < 1150
    assert len(cut.train) + len(cut.validation) + len(cut.test) == 5000
    kept = set(cut.train)
    assert list(cut.train) == [pair for pair in pairs if pair in kept]


def test_the_choice_is_pinned() -> None:
    """A change of the hash would move sentences between sets of models already trained."""
    cut = cut_pairs(_numbered_pairs(100), 0.05, 0.05)
    assert [item.source for item in cut.test] == [
        "sentence 9",
        "sentence 16",
        "sentence 38",
        "sentence 40",
        "sentence 61",
        "sentence 78",
        "sentence 96",
    ]
    assert [pair.source for pair in cut.validation] == [
        "sentence 14",
        "sentence 28",
        "sentence 52",
        "sentence 80",
        "sentence 94",
    ]


def test_another_salt_makes_another_choice() -> None:
    pairs = _numbered_pairs(1000)
    assert cut_pairs(pairs, 0.1).test == cut_pairs(pairs, 0.1).test
    assert cut_pairs(pairs, 0.1).test != cut_pairs(pairs, 0.1, salt="other").test


@pytest.mark.parametrize(
    ("test_share", "validation_share"),
    [(-0.1, 0.1), (0.1, -0.1), (0.5, 0.5), (1.0, 0.0), (float("nan"), 0.1)],
)
def test_impossible_shares_are_refused(test_share: float, validation_share: float) -> None:
    with pytest.raises(ValueError, match="shares of test and validation"):
        cut_pairs([], test_share, validation_share)


def test_no_pairs_give_an_empty_cut() -> None:
    cut = cut_pairs([])
    assert (cut.train, cut.validation, cut.test, cut.reverse_test) == ((), (), (), ())


def test_the_reversed_cut_is_the_same_cut_the_other_way() -> None:
    pairs = [Pair(f"source {number % 70}", f"target {number}") for number in range(200)]
    cut = cut_pairs(pairs, 0.1, 0.1)
    other = cut.reversed()
    assert [(pair.target, pair.source) for pair in other.train] == [
        (pair.source, pair.target) for pair in cut.train
    ]
    assert [pair.source for pair in other.validation] == [pair.target for pair in cut.validation]
    assert other.test == cut.reverse_test
    assert other.test[0].source.startswith("target")
    assert other.reversed() == cut


# Fewer translations of a source


@given(pair_lists, st.integers(1, 3))
def test_each_source_keeps_its_first_targets(pairs: list[Pair], limit: int) -> None:
    kept = group_references(first_targets(pairs, limit))
    assert kept == tuple(
        TestSentence(sentence.source, sentence.references[:limit])
        for sentence in group_references(pairs)
    )


def test_pairs_that_are_kept_keep_their_order_and_repetitions() -> None:
    pairs = [Pair("b", "x"), Pair("a", "x"), Pair("b", "y"), Pair("b", "x"), Pair("a", "z")]
    assert first_targets(pairs, 1) == [Pair("b", "x"), Pair("a", "x"), Pair("b", "x")]
    assert first_targets(pairs, None) == pairs
