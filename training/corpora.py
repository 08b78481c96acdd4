"""Reading the sentence pairs of a preset: a tab file or aligned files, cut or given apart.

What is wrong with a person's files is told with the file's name and the line.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from models.checkpoint_schema import DataSource
from models.preparation import PREPARATIONS
from training.diversification import without_held_out
from training.parallel import (
    Pair,
    ParallelCut,
    cut_pairs,
    normalised_form,
    parse_tab_pairs,
    read_aligned,
)
from training.preset import ParallelData
from training.sources import DataError, TextSource, file_name, is_folder, read_data

LOGGER = logging.getLogger("training")
MAX_SENTENCE_CHARACTERS = 10_000
"""Far above any sentence: a longer line is a document, or a file whose lines were joined."""


def read_cut(
    data: ParallelData, data_location: str | None, cache_dir: Path
) -> tuple[ParallelCut, list[DataSource]]:
    """Read the sentence pairs of a preset and cut them into training, validation and test.

    Its synthetic pairs are no part of that: see :func:`read_synthetic`.

    Args:
        data: the preset's.
        data_location: other sentence pairs to read instead, or None: a file, or a folder with
            files called as the preset's.
        cache_dir: where downloads are kept.

    Returns:
        The cut, and the texts that were read, in the order of :meth:`ParallelData.texts` but
        for the synthetic pairs.

    Raises:
        DataError: a text cannot be read, the pairs cannot be used, or they are too few to cut.
    """
    texts = data.without_synthetic().texts()
    if data_location is not None and len(texts) > 1 and not is_folder(data_location):
        names = ", ".join(file_name(text.location) for text in texts)
        raise DataError(f"{data_location}: give a folder with the files {names}")
    pairs, sources = _read_pairs(data, data.source, data.target, data_location, cache_dir)
    cut = _cut(pairs[: data.first_pairs], data, sources[0].name)
    if data.validation_source is not None:
        validation, validation_sources = _read_pairs(
            data, data.validation_source, data.validation_target, data_location, cache_dir
        )
        _tell_of_known_pairs(validation, cut, validation_sources[0].name)
        cut = dataclasses.replace(cut, validation=tuple(validation))
        sources += validation_sources
    return cut.reversed() if data.reverse else cut, sources


def read_synthetic(
    data: ParallelData, cut: ParallelCut, cache_dir: Path
) -> tuple[list[Pair], list[DataSource]]:
    """Read the synthetic pairs of a preset, those left out of which a side is held out.

    Args:
        data: the preset's.
        cut: of its own pairs, in the model's direction.
        cache_dir: where downloads are kept.

    Returns:
        The pairs, and the text that was read; nothing where the preset has none.

    Raises:
        DataError: the text cannot be read, or holds no pair that may be trained on.
    """
    if data.synthetic is None:
        return [], []
    pairs, sources = _read_pairs(data, data.synthetic, None, None, cache_dir)
    fit = without_held_out(pairs, cut)
    if not fit:
        raise DataError(f"{sources[0].name}: every pair has a side that is held out")
    LOGGER.info(
        "%s: %d synthetic pairs; left out %d of which a side is held out",
        *(sources[0].name, len(fit), len(pairs) - len(fit)),
    )
    return fit, sources


def _tell_of_known_pairs(validation: Sequence[Pair], cut: ParallelCut, name: str) -> None:
    sources = {normalised_form(pair.source) for pair in cut.train}
    targets = {normalised_form(pair.target) for pair in cut.train}
    known = sum(
        normalised_form(pair.source) in sources or normalised_form(pair.target) in targets
        for pair in validation
    )
    if known:
        LOGGER.warning(
            "%s: of %d validation pairs, %d have a side that is in the training data, too",
            name,
            len(validation),
            known,
        )


def _read_pairs(
    data: ParallelData,
    source: TextSource,
    target: TextSource | None,
    location: str | None,
    cache_dir: Path,
) -> tuple[list[Pair], list[DataSource]]:
    """Read one set of pairs, prepared, without those that lack a side."""
    text, record = read_data(source, location, cache_dir)
    records, target_text = [record], None
    if target is not None:
        target_text, target_record = read_data(target, location, cache_dir)
        records.append(target_record)
    names = [record.name for record in records]
    try:
        pairs = parse_tab_pairs(text) if target_text is None else read_aligned(text, target_text)
    except DataError as error:
        raise DataError(f"{' and '.join(names)}: {error}") from error
    _require_sentences(pairs, names)
    pairs = _without_incomplete(pairs, names)
    if len(records) > 1 and records[0].sha256 == records[1].sha256:
        raise DataError(
            f"{names[0]} and {names[1]} hold the same text: one must be the other's translation"
        )
    prepare = PREPARATIONS[data.preparation]
    return [Pair(prepare(pair.source), prepare(pair.target)) for pair in pairs], records


def _require_sentences(pairs: Sequence[Pair], names: Sequence[str]) -> None:
    """Refuse a line that can be no sentence."""
    for number, pair in enumerate(pairs, 1):
        for side, name in ((pair.source, names[0]), (pair.target, names[-1])):
            if len(side) > MAX_SENTENCE_CHARACTERS:
                raise DataError(
                    f"{name}: line {number} has a side of {len(side):,} characters, and a sentence "
                    f"may have {MAX_SENTENCE_CHARACTERS:,}: split it, one sentence and its "
                    "translation on each line"
                )


def _without_incomplete(pairs: Sequence[Pair], names: Sequence[str]) -> list[Pair]:
    """Drop pairs with an empty side, and say how many; blank lines of both sides need no word."""
    whole = [pair for pair in pairs if pair.source and pair.target]
    if not whole:
        raise DataError(f"{' and '.join(names)}: holds no sentence pair")
    lines = [
        number for number, pair in enumerate(pairs, 1) if bool(pair.source) != bool(pair.target)
    ]
    if lines:
        LOGGER.warning(
            "%s: dropped %d %s, the first at line %d",
            " and ".join(names),
            len(lines),
            "pair with an empty side" if len(lines) == 1 else "pairs with an empty side",
            lines[0],
        )
    return whole


def _cut(pairs: Sequence[Pair], data: ParallelData, name: str) -> ParallelCut:
    if not data.test_share and not data.validation_share:
        return ParallelCut(tuple(pairs), (), (), ())
    cut = cut_pairs(pairs, data.test_share, data.validation_share)
    parts = {
        "train": (cut.train, True),
        "validate": (cut.validation, bool(data.validation_share)),
        "test": (cut.test, bool(data.test_share)),
    }
    for purpose, (part, is_wanted) in parts.items():
        if is_wanted and not part:
            raise DataError(
                f"{name}: {len(pairs)} sentence pairs are too few: the cut leaves none to "
                f"{purpose} on; give more, or change data.validation_share and data.test_share"
            )
    return cut
