"""More sentence pairs from those that there are, by models of both directions.

A model that translates a training source, and one of the other direction that translates a
training target, give pairs that nobody wrote, and a model that is trained on all of them
together is better than either (Nguyen et al. 2020, "Data Diversification"): the first say in
other words what is known (sequence-level distillation, Kim & Rush 2016), the second are
back-translations (Sennrich et al. 2016), whose targets are what people wrote.
"""

from collections.abc import Callable, Iterable, Sequence

from training.parallel import Pair, ParallelCut, normalised_form

Translate = Callable[[Sequence[str]], list[str]]
"""Translations of texts, in their order."""


def without_held_out(pairs: Iterable[Pair], cut: ParallelCut) -> list[Pair]:
    """The pairs of which no side is held out by a cut, in their order.

    A model may write a test sentence without having seen it. Sides are compared in their
    :func:`training.parallel.normalised_form`, each with the sides in the same language.

    Args:
        pairs: in the direction of the cut.
        cut: whose validation and test sentences, with their references, nobody may train on.
    """
    held_out = (
        *cut.validation,
        *(Pair(s.source, reference) for s in cut.test for reference in s.references),
        *(Pair(reference, s.source) for s in cut.reverse_test for reference in s.references),
    )
    sources = {normalised_form(pair.source) for pair in held_out}
    targets = {normalised_form(pair.target) for pair in held_out}
    return [
        pair
        for pair in pairs
        if normalised_form(pair.source) not in sources
        and normalised_form(pair.target) not in targets
    ]


def diversify(cut: ParallelCut, forward: Translate, backward: Translate | None) -> list[Pair]:
    """Pairs that are not in the training data, each with one side that is.

    A model that writes pieces of words may write words that do not exist: pairs with a word
    that the training pairs do not have are left out.

    Args:
        cut: only its training pairs are translated.
        forward: from the source language to the target language.
        backward: the other way, or None for no back-translations.

    Returns:
        Pairs in the direction of the cut, each once: the translated sources in the order of the
        training data, then the translated targets.
    """
    sources = list(dict.fromkeys(pair.source for pair in cut.train))
    pairs = [Pair(*sides) for sides in zip(sources, _lines(forward(sources)), strict=True)]
    if backward is not None:
        targets = list(dict.fromkeys(pair.target for pair in cut.train))
        pairs += [Pair(*sides) for sides in zip(_lines(backward(targets)), targets, strict=True)]
    known = set(cut.train)
    source_words = _words(pair.source for pair in cut.train)
    target_words = _words(pair.target for pair in cut.train)
    new = [
        pair
        for pair in dict.fromkeys(pairs)
        if pair not in known
        and (pair.source and pair.target)
        and _words([pair.source]) <= source_words
        and _words([pair.target]) <= target_words
    ]
    return without_held_out(new, cut)


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in normalised_form(text).split()}


def _lines(texts: Iterable[str]) -> list[str]:
    """Texts without line ends and tabs, which would end a side in a file of pairs."""
    return [" ".join(text.split()) for text in texts]
