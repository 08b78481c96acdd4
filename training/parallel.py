"""Sentence pairs, and a test set cut from them that training never sees.

Collections of sentence pairs repeat themselves: one sentence has many translations, on
lines of their own, and the same sentence returns with another punctuation. A cut by line
would leave most test sentences in the training data, so the cut is by sentence.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from training.sources import DataError

DEFAULT_SHARE = 0.013
"""About 1,500 of the 117,000 English sentences of the Tatoeba export of 2019-04-07."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A sentence and one translation of it."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class TestSentence:
    """A sentence and every translation of it that the data give, without repetitions."""

    __test__ = False  # its name would make pytest collect it

    source: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class ParallelCut:
    """Pairs to train on, and sentences to measure on that are not among them.

    Attributes:
        train: the pairs of which neither side is a validation or a test sentence's.
        validation: the pairs of the validation sentences, or those of files of their own;
            :func:`group_references` makes test sentences of the former.
        test: the test sentences, source to target.
        reverse_test: the test sentences of the other direction, target to source: every
            distinct target side in ``test``, with every source side in the data.
    """

    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    test: tuple[TestSentence, ...]
    reverse_test: tuple[TestSentence, ...]

    def reversed(self) -> "ParallelCut":
        """The same cut for the other direction: nothing changes its part."""
        return ParallelCut(
            train=tuple(map(_exchanged, self.train)),
            validation=tuple(map(_exchanged, self.validation)),
            test=self.reverse_test,
            reverse_test=self.test,
        )


def parse_tab_pairs(text: str) -> list[Pair]:
    r"""Read lines of ``source TAB target``; further columns are ignored.

    White space around each side is dropped. Lines end at ``\n`` only: U+2028 and the like stay
    inside a sentence.

    Returns:
        One pair for each line, so that the index of a pair tells its line; a blank line is a
        pair of empty sides.

    Raises:
        DataError: a line has no tab; the message says which.
    """
    pairs = []
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            pairs.append(Pair("", ""))
            continue
        columns = line.split("\t")
        if len(columns) < 2:
            raise DataError(f"line {number} has no tab between two sentences: {line[:60]!r}")
        pairs.append(Pair(columns[0].strip(), columns[1].strip()))
    return pairs


def read_aligned(source_text: str, target_text: str) -> list[Pair]:
    """Pair two texts line by line; white space around each side is dropped.

    Returns:
        One pair for each line, so that the index of a pair tells its line.

    Raises:
        DataError: the texts have different numbers of lines.
    """
    sources, targets = _lines(source_text), _lines(target_text)
    if len(sources) != len(targets):
        raise DataError(
            f"the two texts are not aligned: the source has {len(sources)} lines and the "
            f"target {len(targets)}, and each line must be the translation of the other's"
        )
    return [
        Pair(source.strip(), target.strip())
        for source, target in zip(sources, targets, strict=True)
    ]


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []


def normalised_form(sentence: str) -> str:
    """Give the form in which two sentences count as the same one.

    NFKC, case folded, every run of punctuation, symbols and spaces one space, none at the
    ends. A sentence without a letter or a digit keeps its signs.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", sentence).casefold())
    return re.sub(r"[\W_]+", " ", folded).strip() or " ".join(folded.split())


def group_references(pairs: Iterable[Pair]) -> tuple[TestSentence, ...]:
    """Gather the distinct translations of each distinct source, in the order of the pairs."""
    references: dict[str, dict[str, None]] = {}
    for pair in pairs:
        references.setdefault(pair.source, {})[pair.target] = None
    return tuple(TestSentence(source, tuple(found)) for source, found in references.items())


def first_targets(pairs: Sequence[Pair], limit: int | None) -> Sequence[Pair]:
    """Of each source's distinct targets the first ``limit``, in the order of the pairs.

    Args:
        pairs: repetitions of a pair that is kept are kept, too.
        limit: at least 1; None keeps all pairs.
    """
    if limit is None:
        return pairs
    kept = {
        Pair(sentence.source, target)
        for sentence in group_references(pairs)
        for target in sentence.references[:limit]
    }
    return [pair for pair in pairs if pair in kept]


def cut_pairs(
    pairs: Sequence[Pair],
    test_share: float = DEFAULT_SHARE,
    validation_share: float = DEFAULT_SHARE,
    salt: str = "",
) -> ParallelCut:
    """Cut test and validation sentences from pairs.

    A source sentence is a test sentence if a hash of its :func:`normalised_form` is below a
    threshold. That depends on the sentence alone: neither on the order of the pairs nor on
    what other pairs there are, so a longer edition of the data keeps its test set. Every
    pair whose normalised source *or* target side is a sentence or a reference of the test,
    in either direction, then leaves the rest. The validation sentences are cut from the
    rest by the same rule.

    Sides differing in any character are different test sentences: apply
    :func:`models.preparation.normalise_spaces` and the like before the cut. The choice is not
    changed by that, since the normalised form has plain spaces only.

    Args:
        pairs: all pairs; exact repetitions are used once.
        test_share: share of the distinct normalised source sentences to test on.
        validation_share: share of them to validate on.
        salt: another salt makes another choice.

    Returns:
        The cut; everything in it keeps the order of the pairs.

    Raises:
        ValueError: the shares are negative or leave nothing to train on.
    """
    if min(test_share, validation_share) < 0 or not test_share + validation_share < 1:
        raise ValueError(
            "the shares of test and validation sentences must be 0 or more and below 1 "
            f"together, not {test_share} and {validation_share}"
        )
    pairs = list(dict.fromkeys(pairs))
    forms = {side: normalised_form(side) for pair in pairs for side in (pair.source, pair.target)}
    places = {form: _place(form, salt) for form in {forms[pair.source] for pair in pairs}}

    test, rest = _divide(pairs, forms, places, test_share)
    validation, train = _divide(rest, forms, places, test_share + validation_share)
    tested_targets = {pair.target for pair in test}
    return ParallelCut(
        train=tuple(train),
        validation=tuple(validation),
        test=group_references(test),
        reverse_test=group_references(
            _exchanged(pair) for pair in pairs if pair.target in tested_targets
        ),
    )


def _exchanged(pair: Pair) -> Pair:
    return Pair(pair.target, pair.source)


def _place(form: str, salt: str) -> float:
    """Hash a form to a number of [0, 1)."""
    digest = hashlib.sha256(f"{salt}\0{form}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def _divide(
    pairs: Sequence[Pair], forms: dict[str, str], places: dict[str, float], threshold: float
) -> tuple[list[Pair], list[Pair]]:
    """Take the pairs whose source is below the threshold, and those that share no side.

    The taken targets have other sources, too: references of the other direction, which
    must not be trained on either.
    """
    taken = [pair for pair in pairs if places[forms[pair.source]] < threshold]
    targets = {forms[pair.target] for pair in taken}
    sources = {forms[pair.source] for pair in pairs if forms[pair.target] in targets}
    rest = [
        pair
        for pair in pairs
        if forms[pair.source] not in sources and forms[pair.target] not in targets
    ]
    return taken, rest
