"""Scores of hypotheses against references: sacreBLEU's metrics and the textbook's BLEU."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast, overload

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_char import TokenizerChar
from sacrebleu.tokenizers.tokenizer_intl import TokenizerV14International
from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp
from sacrebleu.tokenizers.tokenizer_ter import TercomTokenizer
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from app.exceptions import DrainingError, InvalidRequestError, QueueFullError
from app.service.deadline import Deadline
from app.service.limits import Limits
from models.evaluation import textbook_bleu

MetricName = Literal["bleu", "chrf", "ter", "textbook_bleu"]

Item = TypeVar("Item")

MAX_TER_WORDS = 200
"""Longest text, in words, that TER compares: its search for shifted phrases takes about five
seconds for 200 words in the worst order, and grows with the square of their number."""

MAX_TER_WORDS_TIMES_REFERENCES = 800
"""Most words of the longest text times references of one hypothesis: TER searches anew for
each reference."""


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
        timeout_seconds: time for the whole request, or None for the service's limit.
    """

    hypotheses: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    metrics: tuple[MetricName, ...] = ("bleu",)
    tokenize: str = "13a"
    lowercase: bool = False
    smooth_method: str = "exp"
    sentence_level: bool = False
    textbook_max_order: int = 4
    timeout_seconds: float | None = None


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


class _Interruptible(Sequence[Item]):
    """A sequence that stops whoever walks over it once an event is set.

    A thread cannot be cancelled, but sacreBLEU walks over the hypotheses one by one, over the
    streams of references before, and TER over the references of each hypothesis.
    """

    def __init__(self, items: Sequence[Item], stopped: threading.Event) -> None:
        self._items = items
        self._stopped = stopped

    def __iter__(self) -> Iterator[Item]:
        for item in self._items:
            if self._stopped.is_set():
                raise _StoppedError
            yield item

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        return self._items[index]


class _InterruptibleTer(TER):
    """TER that can be stopped between two references of one hypothesis, too."""

    def __init__(self, stopped: threading.Event) -> None:
        super().__init__()
        self._stopped = stopped

    def _extract_reference_info(self, refs: Sequence[str]) -> dict[str, Any]:
        info = super()._extract_reference_info(refs)
        return {"ref_words": _Interruptible(info["ref_words"], self._stopped)}


class ScoringService:
    """Answers :class:`ScoringRequest`, one at a time in a thread of its own.

    A request holds its place until the thread is done with it, even where nobody waits any
    more, so that what the thread still has to work off is bounded.

    Args:
        limits: what one request may ask for.
        queue_capacity: requests that may wait for the thread or be in it.
    """

    def __init__(self, limits: Limits, queue_capacity: int) -> None:
        self._limits = limits
        self._places = threading.BoundedSemaphore(queue_capacity)
        self._closed = False
        self._on_close: set[asyncio.Future[None]] = set()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="gatehouse-scoring")

    def close(self) -> None:
        """Take no more, end what waits or runs with a DrainingError, and let the thread end."""
        self._closed = True
        for cut_off in self._on_close:
            if not cut_off.done():
                cut_off.set_result(None)
        self._executor.shutdown(wait=False, cancel_futures=True)

    def check(self, request: ScoringRequest) -> None:
        """Refuse what the limits refuse.

        Raises:
            InvalidRequestError: the request cannot be served as it stands.
        """
        self._limits.check_texts("hypotheses", request.hypotheses, self._limits.max_segments)
        self.check_references(request, len(request.hypotheses))
        self.check_for_ter(request)

    def check_references(self, request: ScoringRequest, texts: int) -> None:
        """Refuse references that the limits refuse, whatever the hypotheses will be.

        Raises:
            InvalidRequestError: the request cannot be served as it stands.
        """
        if texts != len(request.references):
            raise InvalidRequestError(
                "references",
                f"{len(request.references)} entries for {texts} texts: there must be one for each",
            )
        for index, references in enumerate(request.references):
            self._limits.check_texts(f"references.{index}", references, self._limits.max_segments)
            if "ter" in request.metrics:
                _check_ter(index, references, len(references))

    def check_for_ter(self, request: ScoringRequest) -> None:
        """Refuse hypotheses that are too long for TER, where it is asked for.

        Raises:
            InvalidRequestError: one is.
        """
        if "ter" in request.metrics:
            for index, texts in enumerate(zip(request.hypotheses, request.references, strict=True)):
                _check_ter(index, texts[:1], len(texts[1]))

    async def score(
        self, request: ScoringRequest, deadline: Deadline
    ) -> dict[MetricName, MetricScore]:
        """Compute every metric that is asked for, of a request that was checked.

        Raises:
            QueueFullError: too many requests wait already.
            DrainingError: the service shuts down.
            DeadlineError: it took too long.
        """
        if self._closed:
            raise DrainingError("the service is shutting down and takes no more requests")
        if not self._places.acquire(blocking=False):
            raise QueueFullError("too many requests wait to be scored", retry_after_seconds=1)
        stopped = threading.Event()
        work = self._executor.submit(compute_scores, request, stopped)
        work.add_done_callback(lambda _: self._places.release())
        answer = asyncio.wrap_future(work)
        cut_off = asyncio.get_running_loop().create_future()
        self._on_close.add(cut_off)
        try:
            await asyncio.wait(
                (answer, cut_off),
                timeout=deadline.remaining_seconds(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if cut_off.done():
                raise DrainingError("the service shut down before the request was finished")
            if not answer.done():
                raise deadline.error()
            return answer.result()
        finally:
            stopped.set()
            self._on_close.discard(cut_off)
            answer.cancel()


def _check_ter(index: int, texts: Sequence[str], references: int) -> None:
    longest = max(len(text.split()) for text in texts)
    if longest > MAX_TER_WORDS or longest * references > MAX_TER_WORDS_TIMES_REFERENCES:
        raise InvalidRequestError(
            "metrics",
            f"ter compares texts of up to {MAX_TER_WORDS} words, and of up to "
            f"{MAX_TER_WORDS_TIMES_REFERENCES} words times references; at index {index} there are "
            f"{longest} words and {references} references",
        )


def compute_scores(
    request: ScoringRequest, stopped: threading.Event | None = None
) -> dict[MetricName, MetricScore]:
    """Compute every metric that is asked for, here and now.

    Args:
        request: what to score; its lists have equal lengths.
        stopped: set by another thread to have the work end soon, without a result.
    """
    stopped = stopped or threading.Event()
    try:
        return {metric: _METRICS[metric](request, stopped) for metric in request.metrics}
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


def _bleu(request: ScoringRequest, stopped: threading.Event) -> MetricScore:
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
    score = corpus.corpus_score(*_corpus(request, stopped))
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
        stopped,
        MetricScore(score.score, str(corpus.get_signature()), details),
        metric(effective_order=True),
    )


def _chrf(request: ScoringRequest, stopped: threading.Event) -> MetricScore:
    metric = CHRF(lowercase=request.lowercase)
    score = metric.corpus_score(*_corpus(request, stopped))
    return _with_sentences(
        request, stopped, MetricScore(score.score, str(metric.get_signature())), metric
    )


def _ter(request: ScoringRequest, stopped: threading.Event) -> MetricScore:
    metric = _InterruptibleTer(stopped)
    score = metric.corpus_score(*_corpus(request, stopped))
    details: dict[str, float | int | list[float]] = {
        "edits": score.num_edits,
        "reference_length": score.ref_length,
    }
    return _with_sentences(
        request, stopped, MetricScore(score.score, str(metric.get_signature()), details), metric
    )


def _with_sentences(
    request: ScoringRequest,
    stopped: threading.Event,
    corpus: MetricScore,
    metric: BLEU | CHRF | TER,
) -> MetricScore:
    if not request.sentence_level:
        return corpus
    sentences = tuple(
        metric.sentence_score(hypothesis, list(references)).score
        for hypothesis, references in _pairs(request, stopped)
    )
    counts = {len(references) for references in request.references}
    # The signature of the metric speaks of the last sentence alone.
    signature = str(metric.get_signature())
    if len(counts) > 1:
        signature = signature.replace(f"nrefs:{len(request.references[-1])}", "nrefs:var", 1)
    return MetricScore(corpus.score, corpus.signature, corpus.details, sentences, signature)


def _textbook_bleu(request: ScoringRequest, stopped: threading.Event) -> MetricScore:
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
        for hypothesis, references in _pairs(request, stopped)
    )
    mean = sum(sentences) / len(sentences)
    return MetricScore(mean, sentences=sentences if request.sentence_level else None)


_METRICS: dict[MetricName, Callable[[ScoringRequest, threading.Event], MetricScore]] = {
    "bleu": _bleu,
    "chrf": _chrf,
    "ter": _ter,
    "textbook_bleu": _textbook_bleu,
}


def _pairs(
    request: ScoringRequest, stopped: threading.Event
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each hypothesis with its references, until the work is stopped."""
    return zip(_Interruptible(request.hypotheses, stopped), request.references, strict=True)


def _corpus(
    request: ScoringRequest, stopped: threading.Event
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Hypotheses and streams of references as sacreBLEU takes them, until the work is stopped.

    A stream has one reference of each hypothesis, None where a hypothesis has fewer. sacreBLEU
    documents that None; its type hints leave it out.
    """
    most = max(len(entry) for entry in request.references)
    streams = [
        [entry[i] if i < len(entry) else None for entry in request.references] for i in range(most)
    ]
    return _Interruptible(request.hypotheses, stopped), [
        _Interruptible(stream, stopped) for stream in cast(list[list[str]], streams)
    ]
