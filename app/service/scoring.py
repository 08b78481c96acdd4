"""Scores of hypotheses against references: sacreBLEU's metrics and the textbook's BLEU."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, cast, overload

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_char import TokenizerChar
from sacrebleu.tokenizers.tokenizer_intl import TokenizerV14International
from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp
from sacrebleu.tokenizers.tokenizer_ter import TercomTokenizer
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from app.exceptions import DeadlineError, InvalidRequestError, QueueFullError
from app.service.limits import Limits
from models.evaluation import textbook_bleu

MetricName = Literal["bleu", "chrf", "ter", "textbook_bleu"]

MAX_TER_WORDS = 200
"""Longest text, in words, that TER compares: its search for shifted phrases takes about five
seconds for 200 words in the worst order, and grows with the square of their number."""


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """What to score and how.

    Attributes:
        hypotheses: texts to be scored.
        references: for each hypothesis one or more right texts.
        metrics: which scores.
        tokenize: BLEU's tokenizer.
        lowercase: whether case is ignored; TER always ignores it, as sacreBLEU's does unless
            told otherwise.
        smooth_method: BLEU's smoothing of orders without a match.
        sentence_level: whether every hypothesis gets its own score, too.
        textbook_max_order: longest n-gram of the textbook's BLEU.
    """

    hypotheses: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    metrics: tuple[MetricName, ...] = ("bleu",)
    tokenize: str = "13a"
    lowercase: bool = False
    smooth_method: str = "exp"
    sentence_level: bool = False
    textbook_max_order: int = 4


@dataclass(frozen=True, slots=True)
class MetricScore:
    """One metric's score of the whole set.

    Attributes:
        score: in percent, but for the textbook's BLEU, which goes from 0 to 1.
        signature: sacreBLEU's description of how it was computed, which belongs beside every
            published score.
        details: further numbers of the metric, by field name.
        sentences: each hypothesis' own score, where asked for.
        sentence_signature: likewise for them.
    """

    score: float
    signature: str | None = None
    details: dict[str, float | int | list[float]] = field(default_factory=dict)
    sentences: tuple[float, ...] | None = None
    sentence_signature: str | None = None


class _StoppedError(Exception):
    """Nobody waits for the scores any more."""


class _Interruptible(Sequence[str]):
    """A sequence that stops whoever walks over it once an event is set.

    A thread cannot be cancelled, but sacreBLEU walks over the hypotheses one by one.
    """

    def __init__(self, items: Sequence[str], stopped: threading.Event) -> None:
        self._items = items
        self._stopped = stopped

    def __iter__(self) -> Iterator[str]:
        for item in self._items:
            if self._stopped.is_set():
                raise _StoppedError
            yield item

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self._items[index]


class ScoringService:
    """Answers :class:`ScoringRequest`, one at a time in a thread of its own.

    Args:
        limits: what one request may ask for.
        queue_capacity: requests that may wait for the thread.
    """

    def __init__(self, limits: Limits, queue_capacity: int) -> None:
        self._limits = limits
        self._queue_capacity = queue_capacity
        self._waiting = 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="gatehouse-scoring")

    def close(self) -> None:
        """Let the thread end; what waits is dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def check(self, request: ScoringRequest) -> None:
        """Refuse what the limits refuse, before anything is translated for it.

        Raises:
            InvalidRequestError: the request cannot be served as it stands.
        """
        limits = self._limits
        if len(request.hypotheses) != len(request.references):
            raise InvalidRequestError(
                "references",
                f"{len(request.references)} entries for {len(request.hypotheses)} texts: "
                "there must be one for each",
            )
        limits.check_texts("hypotheses", request.hypotheses, limits.max_segments)
        for index, references in enumerate(request.references):
            limits.check_texts(f"references.{index}", references, limits.max_segments)
        if "ter" in request.metrics:
            for index, texts in enumerate(zip(request.hypotheses, request.references, strict=True)):
                longest = max(len(text.split()) for text in (texts[0], *texts[1]))
                if longest > MAX_TER_WORDS:
                    raise InvalidRequestError(
                        "metrics",
                        f"ter compares texts of up to {MAX_TER_WORDS} words; those at index "
                        f"{index} have {longest}",
                    )

    async def score(self, request: ScoringRequest) -> dict[MetricName, MetricScore]:
        """Compute every metric that is asked for.

        Raises:
            InvalidRequestError: the request cannot be served as it stands.
            QueueFullError: too many requests wait already.
            DeadlineError: it took too long.
        """
        self.check(request)
        if self._waiting >= self._queue_capacity:
            raise QueueFullError("too many requests wait to be scored", retry_after_seconds=1)
        self._waiting += 1
        stopped = threading.Event()
        try:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(self._limits.timeout_seconds):
                return await loop.run_in_executor(self._executor, compute_scores, request, stopped)
        except TimeoutError:
            raise DeadlineError(
                f"scoring took longer than the deadline of {self._limits.timeout_seconds:g} seconds"
            ) from None
        finally:
            stopped.set()
            self._waiting -= 1


def compute_scores(
    request: ScoringRequest, stopped: threading.Event | None = None
) -> dict[MetricName, MetricScore]:
    """Compute every metric that is asked for, here and now.

    Args:
        request: what to score; its lists have equal lengths.
        stopped: set by another thread to have the work end soon, without a result.
    """
    stopped = stopped or threading.Event()
    hypotheses = _Interruptible(request.hypotheses, stopped)
    try:
        return {metric: _METRICS[metric](request, hypotheses) for metric in request.metrics}
    except _StoppedError:
        return {}
    finally:
        _forget_texts()


def _forget_texts() -> None:
    """Empty sacreBLEU's caches, which keep up to 65,536 texts of past requests for ever."""
    for tokenizer in (
        Tokenizer13a,
        TokenizerChar,
        TokenizerRegexp,
        TokenizerV14International,
        TokenizerZh,
        TercomTokenizer,
    ):
        tokenizer.__call__.cache_clear()


def _bleu(request: ScoringRequest, hypotheses: Sequence[str]) -> MetricScore:
    def metric(effective_order: bool) -> BLEU:
        # `force` only silences a remark about tokenized input in the log.
        return BLEU(
            lowercase=request.lowercase,
            tokenize=request.tokenize,
            smooth_method=request.smooth_method,
            effective_order=effective_order,
            force=True,
        )

    corpus = metric(effective_order=False)
    score = corpus.corpus_score(hypotheses, _streams(request.references))
    details: dict[str, float | int | list[float]] = {
        "precisions": list(score.precisions),
        "brevity_penalty": score.bp,
        "hypothesis_length": score.sys_len,
        "reference_length": score.ref_len,
    }
    # A sentence of fewer than four words has no BLEU of order four: as the sacrebleu command
    # does, sentences are scored up to the order that they have.
    return _with_sentences(
        request,
        hypotheses,
        MetricScore(score.score, str(corpus.get_signature()), details),
        metric(effective_order=True),
    )


def _chrf(request: ScoringRequest, hypotheses: Sequence[str]) -> MetricScore:
    metric = CHRF(lowercase=request.lowercase)
    score = metric.corpus_score(hypotheses, _streams(request.references))
    return _with_sentences(
        request, hypotheses, MetricScore(score.score, str(metric.get_signature())), metric
    )


def _ter(request: ScoringRequest, hypotheses: Sequence[str]) -> MetricScore:
    metric = TER()
    score = metric.corpus_score(hypotheses, _streams(request.references))
    details: dict[str, float | int | list[float]] = {
        "edits": score.num_edits,
        "reference_length": score.ref_length,
    }
    return _with_sentences(
        request, hypotheses, MetricScore(score.score, str(metric.get_signature()), details), metric
    )


def _with_sentences(
    request: ScoringRequest,
    hypotheses: Sequence[str],
    corpus: MetricScore,
    metric: BLEU | CHRF | TER,
) -> MetricScore:
    if not request.sentence_level:
        return corpus
    sentences = tuple(
        metric.sentence_score(hypothesis, list(references)).score
        for hypothesis, references in zip(hypotheses, request.references, strict=True)
    )
    counts = {len(references) for references in request.references}
    # The signature of the metric speaks of the last sentence alone.
    signature = str(metric.get_signature())
    if len(counts) > 1:
        signature = signature.replace(f"nrefs:{len(request.references[-1])}", "nrefs:var", 1)
    return MetricScore(corpus.score, corpus.signature, corpus.details, sentences, signature)


def _textbook_bleu(request: ScoringRequest, hypotheses: Sequence[str]) -> MetricScore:
    """The mean over hypotheses of the best score against any of their references.

    The book defines the score of one pair; its tokens are what stands between spaces.
    """

    def words(text: str) -> list[str]:
        return (text.lower() if request.lowercase else text).split()

    sentences = tuple(
        max(
            textbook_bleu(words(hypothesis), words(reference), request.textbook_max_order)
            for reference in references
        )
        for hypothesis, references in zip(hypotheses, request.references, strict=True)
    )
    mean = sum(sentences) / len(sentences)
    return MetricScore(mean, sentences=sentences if request.sentence_level else None)


_METRICS: dict[MetricName, Callable[[ScoringRequest, Sequence[str]], MetricScore]] = {
    "bleu": _bleu,
    "chrf": _chrf,
    "ter": _ter,
    "textbook_bleu": _textbook_bleu,
}


def _streams(references: Sequence[Sequence[str]]) -> list[list[str]]:
    """Turn a list per hypothesis into sacreBLEU's lists per reference, None where one is short.

    sacreBLEU documents None for a reference that a segment lacks; its type hints leave it out.
    """
    most = max(len(entry) for entry in references)
    streams = [[entry[i] if i < len(entry) else None for entry in references] for i in range(most)]
    return cast(list[list[str]], streams)
