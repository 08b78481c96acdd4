"""What a checkpoint is measured on: what its card was measured on, or a person's own files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from models.checkpoint import CheckpointInfo
from models.checkpoint_schema import DataSource
from models.config import LanguageModelConfig
from models.preparation import PREPARATIONS
from training.corpora import read_cut
from training.parallel import ParallelCut, TestSentence
from training.preset import ParallelData, Preset, PresetError, TextData
from training.record import recorded_location
from training.running_text import read_parts
from training.scoring import ALL_FIGURES, figures_for
from training.sources import DataError, TextSource, read_source
from training.translation import longest_translation, measured_sentences, textbook_sentences


class EvaluationError(Exception):
    """A checkpoint cannot be measured as asked; the message says why."""


@dataclass(frozen=True)
class SentenceData:
    """Sentences for a translation model.

    Attributes:
        description: how many of what, in words.
        sources: the files that were read.
        sentences: with their references.
        figures: which to score: see :func:`training.scoring.score_sentences`.
        max_new_tokens: longest translation in tokens; None leaves each as many as the service
            would.
        is_cards: whether the card's figures were measured on the same.
        is_textbook: whether they are sentences of the training data, for the textbook's BLEU.
        moses_language: language of the references, where :mod:`training.moses` is to score, too.
    """

    description: str
    sources: tuple[DataSource, ...]
    sentences: tuple[TestSentence, ...]
    figures: tuple[str, ...]
    max_new_tokens: int | None = None
    is_cards: bool = False
    is_textbook: bool = False
    moses_language: str | None = None


@dataclass(frozen=True)
class PlainTexts:
    """Running texts for a language model.

    Attributes:
        description: how much of what, in words.
        sources: the files that were read.
        texts: as the model reads them, by the name of the figure that each gives.
        is_cards: whether the card's figures were measured on the same.
    """

    description: str
    sources: tuple[DataSource, ...]
    texts: Mapping[str, str]
    is_cards: bool = False


EvaluationData = SentenceData | PlainTexts


def read_card_data(info: CheckpointInfo, location: str | None, cache_dir: Path) -> EvaluationData:
    """Read the checkpoint's training data and cut them as its preset says.

    Args:
        info: the checkpoint.
        location: a path or URL of the data, or None for where the record says they were.
        cache_dir: where downloads are kept.

    Raises:
        DataError: the data cannot be read.
        EvaluationError: the checkpoint does not say what it was trained on.
    """
    data = _preset(info).data
    if isinstance(data, TextData):
        recorded, location = _recorded(info, data, location)
        return _read_text_parts(data, recorded[0], location, cache_dir)
    data = data.without_synthetic()
    recorded, location = _recorded(info, data, location)
    return _read_test_sentences(data, recorded, location, cache_dir)


def read_training_cut(info: CheckpointInfo, location: str | None, cache_dir: Path) -> ParallelCut:
    """Read a translation model's training data, cut as for its training; without synthetic pairs.

    Args and Raises are those of :func:`read_card_data`; a language model is an EvaluationError.
    """
    data = _preset(info).data
    if isinstance(data, TextData):
        raise EvaluationError(f"{info.name} is a language model: it has no sentence pairs")
    data = data.without_synthetic()
    return read_cut(data, _recorded(info, data, location)[1], cache_dir)[0]


def _recorded(
    info: CheckpointInfo, data: TextData | ParallelData, location: str | None
) -> tuple[Sequence[DataSource], str | None]:
    """The texts that a checkpoint was trained on, and where they are to be read."""
    recorded = info.training.data[: len(data.texts())]
    if not recorded:
        raise EvaluationError(f"{info.name}: its training.json names no data")
    if location is not None:
        return recorded, location
    try:
        return recorded, recorded_location(info.training, data)
    except PresetError as error:
        raise EvaluationError(str(error)) from error


def _preset(info: CheckpointInfo) -> Preset:
    kind = "--text" if isinstance(info.config, LanguageModelConfig) else "--source and --reference"
    if not info.training.preset:
        raise EvaluationError(
            f"{info.name}: its training.json holds no preset that says what to measure on: give "
            f"{kind}"
        )
    try:
        return Preset.model_validate(info.training.preset)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in ("preset", *first["loc"]))
        raise EvaluationError(
            f"{info.path / 'training.json'}: {key}: {first['msg']}: give {kind}"
        ) from error


def _read_text_parts(
    data: TextData, recorded: DataSource, location: str | None, cache_dir: Path
) -> PlainTexts:
    training, held_out, source = read_parts(data, location, cache_dir)
    parts = {"held_out_perplexity": held_out, "training_perplexity": training}
    texts = {name: text for name, text in parts.items() if text}
    sizes = [f"{len(training):,} characters that were trained on"]
    if held_out:
        sizes.insert(0, f"{len(held_out):,} held-out characters")
    return PlainTexts(
        description=f"{' and '.join(sizes)} of {source.name}",
        sources=(source,),
        texts=texts,
        is_cards=source.sha256 == recorded.sha256,
    )


def _read_test_sentences(
    data: ParallelData, recorded: Sequence[DataSource], location: str | None, cache_dir: Path
) -> SentenceData:
    cut, sources = read_cut(data, location, cache_dir)
    measured = measured_sentences(data, cut)
    sentences = measured or textbook_sentences(cut)
    what = "held-out sentences" if measured else "sentences that were trained on"
    return SentenceData(
        description=f"{len(sentences):,} {what} of {' and '.join(text.name for text in sources)}",
        sources=tuple(sources),
        sentences=sentences,
        figures=ALL_FIGURES,
        max_new_tokens=longest_translation(data),
        is_cards=[text.sha256 for text in sources] == [text.sha256 for text in recorded],
        is_textbook=not measured,
        moses_language=data.target_language if data.moses_bleu else None,
    )


def read_own_sentences(
    source_location: str, reference_locations: Sequence[str], cache_dir: Path
) -> SentenceData:
    """Read a test set of one sentence a line.

    A blank line in the second reference file or a later one means that the sentence has no
    further reference there.

    Args:
        source_location: path or URL of the sentences to translate.
        reference_locations: of their translations, at least one file.
        cache_dir: where downloads are kept.

    Raises:
        DataError: a file cannot be read, is empty or not UTF-8, the files differ in their
            number of lines, or a sentence has no reference.
    """
    sources, source = _read_lines(source_location, cache_dir)
    columns, files = [], [source]
    for location in reference_locations:
        lines, file = _read_lines(location, cache_dir)
        if len(lines) != len(sources):
            raise DataError(
                f"{location}: has {len(lines)} lines, but {source_location} has {len(sources)}: "
                f"line {min(len(lines), len(sources)) + 1} has no counterpart"
            )
        columns.append(lines)
        files.append(file)
    for number, line in enumerate(columns[0], 1):
        if not line.strip():
            raise DataError(
                f"{reference_locations[0]}: line {number} is blank: every sentence needs a "
                "reference"
            )
    sentences = tuple(
        TestSentence(text, (first, *(line for line in others if line.strip())))
        for text, first, *others in zip(sources, *columns, strict=True)
    )
    return SentenceData(
        description=f"{len(sentences):,} sentences of {source.name}",
        sources=tuple(files),
        sentences=sentences,
        figures=figures_for(sentences),
    )


def read_own_text(info: CheckpointInfo, location: str, cache_dir: Path) -> PlainTexts:
    """Read a whole text to measure the perplexity on.

    It is prepared as the training text was, so that the perplexities can be compared.

    Args:
        info: the checkpoint.
        location: path or URL.
        cache_dir: where downloads are kept.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or holds nothing that the model reads.
    """
    text, source = _read_file(location, cache_dir)
    prepared = PREPARATIONS[_preset(info).data.preparation](text) if info.training.preset else text
    if not info.tokenizers["text"].encode(prepared):
        raise DataError(f"{location}: holds nothing that the model's tokenizer reads")
    return PlainTexts(
        description=f"{len(prepared):,} characters of {source.name}",
        sources=(source,),
        texts={"perplexity": prepared},
    )


def unknown_texts(info: CheckpointInfo, data: EvaluationData) -> list[str]:
    """The distinct characters or words that the model's tokenizer does not know."""
    if isinstance(data, PlainTexts):
        tokenizer, texts = info.tokenizers["text"], list(data.texts.values())
    else:
        tokenizer, texts = info.tokenizers["source"], [s.source for s in data.sentences]
    return list(dict.fromkeys(part for text in texts for part in tokenizer.unknown(text)))


def may_have_seen(info: CheckpointInfo, baseline: CheckpointInfo) -> bool:
    """Whether a model may have been trained on the held-out sentences of another.

    It has not where both were trained on the same data with the same cut, from the beginning
    or from each other.
    """
    if info.training.initial_may_know_held_out:
        return True
    initial = info.training.initial
    if initial not in (None, baseline.training.initial):
        assert initial is not None
        if initial.fingerprint != baseline.fingerprint:
            return True
    return cut_of(info) is None or cut_of(info) != cut_of(baseline)


def cut_of(info: CheckpointInfo) -> tuple[object, ...] | None:
    """What decides which sentences or text a model was not trained on; None where unknown.

    Raises:
        EvaluationError: the checkpoint's preset cannot be read.
    """
    if not info.training.preset:
        return None
    data = _preset(info).data
    held_out = _held_out(data, info.training.data)
    return held_out if isinstance(data, TextData) else (*held_out, data.reverse)


def may_know_held_out(
    initial: CheckpointInfo, data: TextData | ParallelData, sources: Sequence[DataSource]
) -> bool:
    """Whether a checkpoint may have been trained on what a run that begins with it holds out.

    Args:
        initial: the checkpoint.
        data: of the run's preset. Both directions of sentence pairs hold out the same.
        sources: the texts that the run reads.
    """
    if initial.training.initial_may_know_held_out or not initial.training.preset:
        return True
    try:
        theirs = _preset(initial).data
    except EvaluationError:  # a preset of another version
        return True
    return _held_out(theirs, initial.training.data) != _held_out(data, sources)


def knows_validation(initial: CheckpointInfo, data: TextData | ParallelData) -> bool:
    """Whether a checkpoint of the same split was trained on pairs that choose the best weights.

    A larger share for validation takes in what a smaller one left to train on.
    """
    theirs = _preset(initial).data
    if not (isinstance(theirs, ParallelData) and isinstance(data, ParallelData)):
        return False
    return data.validation_share > theirs.validation_share


def _held_out(data: TextData | ParallelData, sources: Sequence[DataSource]) -> tuple[object, ...]:
    """What decides which part of some texts is not trained on."""
    if isinstance(data, TextData):
        text = tuple(source.sha256 for source in sources[:1])
        return (text, data.preparation, data.first_characters, data.held_out_share)
    # Synthetic pairs are never those of held-out sentences.
    texts = tuple(source.sha256 for source in sources[: len(data.without_synthetic().texts())])
    # The card is measured on the validation sentences where there are none for the test.
    validation_share = None if data.test_share else data.validation_share
    return (texts, data.preparation, data.first_pairs, data.test_share, validation_share)


def _read_lines(location: str, cache_dir: Path) -> tuple[list[str], DataSource]:
    text, source = _read_file(location, cache_dir)
    return text.removesuffix("\n").split("\n"), source


def _read_file(location: str, cache_dir: Path) -> tuple[str, DataSource]:
    if not location:
        raise DataError("the name of a file is empty")
    name = Path(location).name
    read = read_source(TextSource(name=name, location=location), cache_dir)
    if not read.text.strip():
        raise DataError(f"{location}: is empty")
    return read.text, DataSource(name=name, origin=name, sha256=read.sha256)
