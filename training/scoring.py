"""Scores of translations by sacreBLEU, with signatures, and the significance of differences.

A figure is named after its metric and references: ``bleu_first_reference`` scores against the
first reference of each sentence, ``bleu_all_references`` against all that it has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.significance import PairedTest, Result

from models.evaluation import textbook_bleu
from training.moses import moses_bleu
from training.parallel import TestSentence

CARD_FIGURES = ("bleu_all_references", "bleu_first_reference", "chrf_first_reference")
"""The figures of a model card."""
MOSES_FIGURE = "bleu_moses"
"""BLEU against the first reference as papers on Multi30k give it: see :mod:`training.moses`."""
BOOTSTRAP_SAMPLES = 1000

_METRICS: Mapping[str, Callable[[], Metric]] = {
    # `force` only silences a remark about tokenized text.
    "bleu": lambda: BLEU(force=True),
    "chrf": CHRF,
    "ter": TER,
}

ALL_FIGURES = tuple(
    f"{metric}_{references}"
    for references in ("first_reference", "all_references")
    for metric in _METRICS
)
"""Every metric against the first reference, then every metric against all."""


@dataclass(frozen=True, slots=True)
class Score:
    """A figure of a model.

    Attributes:
        value: in percent, but for perplexity and the textbook's BLEU.
        signature: sacreBLEU's description of how it was computed, or None for what sacreBLEU
            did not compute.
        decimals: digits behind the point that are published.
    """

    value: float
    signature: str | None = None
    decimals: int = 2

    @property
    def rounded(self) -> float:
        """The value as it is published."""
        return round(self.value, self.decimals)


@dataclass(frozen=True, slots=True)
class SystemScore:
    """One of two models in a paired bootstrap test.

    Attributes:
        value: score of the whole test set, in percent.
        mean: mean score of the resampled test sets.
        interval: half the width of its 95 % confidence interval.
    """

    value: float
    mean: float
    interval: float


@dataclass(frozen=True, slots=True)
class Difference:
    """What a paired bootstrap test says of two models.

    Attributes:
        baseline: the first model.
        other: the second.
        p_value: how probable so large a difference would be by chance; None where the two
            translate every sentence alike, for which sacreBLEU's formula gives nonsense.
        signature: sacreBLEU's description of metric and test.
    """

    baseline: SystemScore
    other: SystemScore
    p_value: float | None
    signature: str


def figures_for(sentences: Sequence[TestSentence]) -> tuple[str, ...]:
    """Every figure, but for those of all references where no sentence has more than one."""
    has_several = any(len(sentence.references) > 1 for sentence in sentences)
    return ALL_FIGURES if has_several else ALL_FIGURES[: len(_METRICS)]


def score_sentences(
    hypotheses: Sequence[str], sentences: Sequence[TestSentence], figures: Sequence[str]
) -> dict[str, Score]:
    """Score the translations of some sentences.

    Args:
        hypotheses: one for each sentence.
        sentences: at least one.
        figures: which: see :func:`figures_for`.
    """
    scores = {}
    for figure in figures:
        metric, references = _metric_and_references(figure, sentences)
        value = float(metric.corpus_score(hypotheses, references).score)
        scores[figure] = Score(value, str(metric.get_signature()))
    return scores


def paired_bootstrap(
    baseline: Sequence[str],
    other: Sequence[str],
    sentences: Sequence[TestSentence],
    figures: Sequence[str],
) -> dict[str, Difference]:
    """Test whether two models differ: sacreBLEU's paired bootstrap resampling (Koehn 2004).

    Args:
        baseline: the first model's translations.
        other: the second's.
        sentences: at least one.
        figures: by which scores to compare.
    """
    is_same = list(baseline) == list(other)
    differences = {}
    for figure in figures:
        metric, references = _metric_and_references(figure, sentences)
        systems = [("baseline", baseline), ("other", other)]
        test = PairedTest(
            systems, {figure: metric}, references, test_type="bs", n_samples=BOOTSTRAP_SAMPLES
        )
        # Under sacreBLEU's own name of the metric, beside the systems' names.
        signatures, results = test()
        ((name, signature),) = signatures.items()
        one, two = cast(list[Result], results[name])
        differences[figure] = Difference(
            baseline=_system_score(one),
            other=_system_score(two),
            p_value=None if is_same or two.p_value is None else float(two.p_value),
            signature=str(signature),
        )
    return differences


def score_by_moses(
    hypotheses: Sequence[str], sentences: Sequence[TestSentence], language: str
) -> Score:
    """Score the translations of some sentences by :data:`MOSES_FIGURE`.

    Args:
        hypotheses: one for each sentence.
        sentences: at least one.
        language: ISO 639-1 code of the translations.
    """
    return Score(moses_bleu(hypotheses, [s.references[0] for s in sentences], language))


def mean_textbook_bleu(
    hypotheses: Sequence[str], sentences: Sequence[TestSentence], k: int
) -> float:
    """Mean of the textbook's BLEU, each hypothesis against its best reference, 0 to 1.

    Args:
        hypotheses: one for each sentence.
        sentences: at least one.
        k: longest n-gram to match.
    """
    scores = [
        max(textbook_bleu(text.split(), reference.split(), k) for reference in s.references)
        for text, s in zip(hypotheses, sentences, strict=True)
    ]
    return sum(scores) / len(scores)


def _metric_and_references(
    figure: str, sentences: Sequence[TestSentence]
) -> tuple[Metric, Sequence[Sequence[str]]]:
    """A fresh metric, since one keeps the number of references it last saw."""
    name, _, kind = figure.partition("_")
    metric = _METRICS[name]()
    if kind == "first_reference":
        return metric, [[sentence.references[0] for sentence in sentences]]
    most = max(len(sentence.references) for sentence in sentences)
    # sacreBLEU wants one stream for each reference index; None fills the gaps.
    streams = [
        [s.references[i] if i < len(s.references) else None for s in sentences] for i in range(most)
    ]
    return metric, cast(Sequence[Sequence[str]], streams)


def _system_score(result: Result) -> SystemScore:
    assert result.mean is not None
    assert result.ci is not None
    return SystemScore(float(result.score), float(result.mean), float(result.ci))
