"""Measuring a checkpoint: its translations' scores, or its perplexity, in any precision."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from models.checkpoint import CheckpointInfo
from models.checkpoint_model import Model, load_model
from models.language_model import LanguageModel
from models.precision import Precision, set_precision, use_threads
from models.seq2seq import Seq2Seq
from training.decoding import translate_texts
from training.evaluation_data import EvaluationData, EvaluationError, PlainTexts, SentenceData
from training.language_modelling import text_perplexity
from training.scoring import (
    MOSES_FIGURE,
    Difference,
    Score,
    mean_textbook_bleu,
    paired_bootstrap,
    score_by_moses,
    score_sentences,
)
from training.translation import TEXTBOOK_FIGURE

Advance = Callable[[str, int], object]
"""Told what is being done, and how many sentences or tokens of it are done since the last call."""

PERPLEXITY_DECIMALS = TEXTBOOK_DECIMALS = 4


@dataclass(frozen=True, slots=True)
class DecodingSettings:
    """How sentences are translated.

    Attributes:
        beam_sizes: widths of the beam search; 1 is greedy.
        length_penalty: alpha of the beam's score.
    """

    beam_sizes: tuple[int, ...] = (1, 4)
    length_penalty: float = 0.75


@dataclass(frozen=True)
class Measurement:
    """A checkpoint's figures in one precision.

    Attributes:
        precision: what was computed in.
        figures: by name, called as on the model's card.
        seconds: how long it took, scoring included.
        translations: of every sentence, by beam size.
    """

    precision: Precision
    figures: dict[str, Score]
    seconds: float
    translations: dict[int, list[str]] = field(default_factory=dict)


def beam_name(beam_size: int) -> str:
    """How figures call a beam size: ``greedy`` or ``beam4``."""
    return "greedy" if beam_size == 1 else f"beam{beam_size}"


def amount_of_work(info: CheckpointInfo, data: EvaluationData, settings: DecodingSettings) -> int:
    """Sentences or tokens that one :func:`measure` will report in all."""
    if isinstance(data, SentenceData):
        return len(data.sentences) * len(settings.beam_sizes)
    return sum(len(info.tokenizers["text"].encode(text)) for text in data.texts.values())


def measure(
    info: CheckpointInfo,
    data: EvaluationData,
    precision: Precision,
    settings: DecodingSettings,
    device: torch.device,
    advance: Advance = lambda what, count: None,
) -> Measurement:
    """Measure a checkpoint's weights, as they are stored, in one precision.

    Args:
        info: the checkpoint.
        data: sentences for a translation model, texts for a language model.
        precision: one that the device computes in.
        settings: of the translation.
        device: where to compute.
        advance: hears of the progress.

    Raises:
        ArithmeticError: the model's probabilities are not numbers.
        CheckpointError: the weights are damaged.
        EvaluationError: the data are for the other kind of model.
    """
    model = set_precision(load_model(info, device), precision)
    threads = torch.get_num_threads()
    use_threads(threads, precision)
    try:
        return _measure(info, model, data, precision, settings, advance)
    finally:
        use_threads(threads, "float32")


def _measure(
    info: CheckpointInfo,
    model: Model,
    data: EvaluationData,
    precision: Precision,
    settings: DecodingSettings,
    advance: Advance,
) -> Measurement:
    began = time.perf_counter()
    translations: dict[int, list[str]] = {}
    if isinstance(model, LanguageModel):
        if not isinstance(data, PlainTexts):
            raise EvaluationError(f"{info.name} is a language model: it translates no sentences")
        figures = _measure_texts(info, model, data, precision, advance)
    else:
        if not isinstance(data, SentenceData):
            raise EvaluationError(f"{info.name} is a translation model: it reads no running text")
        figures = {}
        for beam_size in settings.beam_sizes:
            report = functools.partial(advance, f"{precision} {beam_name(beam_size)}", 1)
            translations[beam_size] = _translate(info, model, data, beam_size, settings, report)
            figures |= _score(translations[beam_size], data, beam_size)
    return Measurement(precision, figures, time.perf_counter() - began, translations)


def compare(baseline: Measurement, other: Measurement, data: SentenceData) -> dict[str, Difference]:
    """Test the differences of two models' translations for significance.

    Args:
        baseline: the first model's, in some precision.
        other: the second's, with the same beam sizes.
        data: the sentences of both.

    Returns:
        A difference for each figure of sacreBLEU.
    """
    differences: dict[str, Difference] = {}
    for beam_size, hypotheses in baseline.translations.items():
        found = paired_bootstrap(
            hypotheses, other.translations[beam_size], data.sentences, data.figures
        )
        differences |= {f"{beam_name(beam_size)}_{name}": found[name] for name in found}
    return differences


def deviations(measurement: Measurement, card: dict[str, float]) -> list[str]:
    """What differs between the figures measured and those of the card, one sentence each."""
    found = measurement.figures
    common = [name for name in found if name in card]
    if not common:
        return ["the card has none of the figures that were measured"]
    return [
        f"{name} is {found[name].rounded:g}, and {card[name]:g} on the card"
        for name in common
        if found[name].rounded != card[name]
    ]


def _measure_texts(
    info: CheckpointInfo,
    model: LanguageModel,
    data: PlainTexts,
    precision: Precision,
    advance: Advance,
) -> dict[str, Score]:
    tokenizer = info.tokenizers["text"]
    return {
        name: Score(
            text_perplexity(model, tokenizer, text, functools.partial(advance, precision)),
            decimals=PERPLEXITY_DECIMALS,
        )
        for name, text in data.texts.items()
    }


def _translate(
    info: CheckpointInfo,
    model: Seq2Seq,
    data: SentenceData,
    beam_size: int,
    settings: DecodingSettings,
    on_translation: Callable[[], object],
) -> list[str]:
    return translate_texts(
        model,
        info.tokenizers,
        [sentence.source for sentence in data.sentences],
        beam_size=beam_size,
        length_penalty=settings.length_penalty,
        max_new_tokens=data.max_new_tokens,
        on_translation=on_translation,
    )


def _score(hypotheses: Sequence[str], data: SentenceData, beam_size: int) -> dict[str, Score]:
    name = beam_name(beam_size)
    if data.is_textbook:
        value = mean_textbook_bleu(hypotheses, data.sentences, k=2)
        # The card's figure is the greedy one.
        figure = TEXTBOOK_FIGURE if beam_size == 1 else f"{name}_{TEXTBOOK_FIGURE}"
        return {figure: Score(value, decimals=TEXTBOOK_DECIMALS)}
    scores = score_sentences(hypotheses, data.sentences, data.figures)
    if data.moses_language:
        scores[MOSES_FIGURE] = score_by_moses(hypotheses, data.sentences, data.moses_language)
    return {f"{name}_{figure}": score for figure, score in scores.items()}
