"""Translation of texts of any length: all their sentences in one batch, all or none admitted."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import cast

from app.catalog import Catalog
from app.exceptions import InvalidRequestError
from app.service.deadline import Deadline
from app.service.document_parts import Candidate, Plain
from app.service.documents import Document, DocumentReader
from app.service.limits import Limits
from app.service.protection import Protection
from app.service.translation import Translation, TranslationRequest, TranslationService
from app.service.translation_result import (
    FinishedTranslation,
    TranslatedPiece,
    TranslationEvent,
    TranslationHypothesis,
    TranslationResult,
    best_distinct,
)
from app.service.worker import Worker


class DocumentService:
    """Answers a :class:`TranslationRequest` whose texts are to be split.

    Args:
        catalog: the loaded models.
        translation: translates the sentences.
        limits: of the service.
    """

    def __init__(self, catalog: Catalog, translation: TranslationService, limits: Limits) -> None:
        self._catalog = catalog
        self._translation = translation
        self._limits = limits
        # Odd texts of the length that is allowed take seconds to be taken apart.
        self._reading = Worker("gatehouse-documents")

    def close(self) -> None:
        """Take no more requests, and end those whose turn has not come with a DrainingError."""
        self._reading.close()

    async def translate(self, request: TranslationRequest, deadline: Deadline) -> TranslationResult:
        """Translate every text.

        Raises:
            RequestError: the request cannot be served as it stands.
            UnavailableError: it cannot be served now.
            DeadlineError: it took too long.
        """
        read = await self.read(request, deadline)
        with self.start(read, deadline, stream=False) as translation:
            return await translation.result()

    async def read(self, request: TranslationRequest, deadline: Deadline) -> "ReadRequest":
        """Take every text apart.

        Args:
            request: what to translate.
            deadline: by when.

        Raises:
            RequestError: the request cannot be served as it stands.
            DrainingError: the service shuts down.
            DeadlineError: it took too long.
        """
        for field in ("alignments", "beam_trace"):
            if getattr(request, field):
                raise InvalidRequestError(
                    field, f"{field} cannot be combined with split: each is of one sentence"
                )
        model = self._catalog.for_translation(request.model, request.source, request.target)
        self._limits.check_document(request.field, request.texts)
        source, _ = cast(tuple[str, str], model.languages)
        protection = Protection(request.protect)
        reader = DocumentReader(source, protection, self._limits, request.field)

        def read() -> ReadRequest:
            documents = tuple(reader.read(text) for text in request.texts)
            sentences = replace(
                request,
                texts=tuple(reader.sources),
                aligned=frozenset(reader.aligned),
                # Of the hypotheses that a beam has anyway, another may have kept the spans.
                num_hypotheses=request.beam_size if reader.has_guarded else request.num_hypotheses,
            )
            return ReadRequest(request, documents, sentences)

        return await self._reading.run(read, deadline)

    @contextmanager
    def start(
        self, read: "ReadRequest", deadline: Deadline, *, stream: bool
    ) -> Iterator["DocumentTranslation"]:
        """Begin to translate every text; at the end drop what is not finished.

        Args:
            read: what to translate.
            deadline: by when.
            stream: whether the translations are wanted as they come.

        Raises:
            RequestError: the request cannot be served as it stands.
            UnavailableError: it cannot be served now.
        """
        with self._translation.start(
            read.sentences, deadline, stream=stream, max_texts=self._limits.max_decodings
        ) as translation:
            yield DocumentTranslation(read.request, read.documents, translation)


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A request whose texts are taken apart.

    Attributes:
        request: of the client.
        documents: its texts.
        sentences: what is to be translated for them.
    """

    request: TranslationRequest
    documents: tuple[Document, ...]
    sentences: TranslationRequest


class DocumentTranslation:
    """One request under way: await its result, or walk over its events.

    Args:
        request: of the client.
        documents: its texts, taken apart.
        sentences: translates their sources.
    """

    def __init__(
        self,
        request: TranslationRequest,
        documents: Sequence[Document],
        sentences: Translation,
    ) -> None:
        self._request = request
        self._documents = documents
        self._sentences = sentences

    async def result(self) -> TranslationResult:
        """The hypotheses of every text when they are complete.

        Raises:
            UnavailableError: the engine failed or shuts down.
            DeadlineError: it took too long.
        """
        return self._put_together(await self._sentences.collect())

    async def events(self) -> AsyncGenerator[TranslationEvent, None]:
        """The translations as they come, each text from its beginning to its end.

        Raises:
            UnavailableError: the engine failed or shuts down.
            DeadlineError: it took too long.
        """
        waiting: dict[int, list[str]] = {}
        finished: dict[int, list[Candidate]] = {}
        tellers = [
            _Teller(text_index, document, waiting, finished)
            for text_index, document in enumerate(self._documents)
        ]
        teller_of = {
            source: teller
            for teller, document in zip(tellers, self._documents, strict=True)
            for part in document.parts
            for source in part.sources
        }
        for teller in tellers:
            for piece in teller.tell():
                yield piece
        # Closed here, and not whenever Python comes to it: a stream may be given up at any moment.
        async with aclosing(self._sentences.parts()) as parts:
            async for event in parts:
                source = event.text_index
                if isinstance(event, TranslatedPiece):
                    waiting.setdefault(source, []).append(event.text)
                else:
                    finished[source] = [_candidate(event.translation, self._request)]
                for piece in teller_of[source].tell():
                    yield piece
        result = await self.result()
        for text_index, (best, *_) in enumerate(result.translations):
            yield FinishedTranslation(text_index, best)
        yield result

    def _put_together(self, sentences: TranslationResult) -> TranslationResult:
        found = [
            [_candidate(hypothesis, self._request) for hypothesis in hypotheses]
            for hypotheses in sentences.translations
        ]
        translations = tuple(
            tuple(
                TranslationHypothesis(
                    text=candidate.text,
                    score=candidate.score(self._request.length_penalty),
                    tokens=candidate.tokens,
                    finish_reason=candidate.finish_reason,
                    alignment=None,
                )
                for candidate in best_distinct(
                    document.candidates(found.__getitem__), self._request.num_hypotheses
                )
            )
            for document in self._documents
        )
        output_tokens = sum(h.tokens for hypotheses in translations for h in hypotheses)
        usage = self._sentences.count(output_tokens)
        return replace(sentences, translations=translations, usage=usage)


class _Teller:
    """Tells the translation of one text in its order, as far as it is known.

    Args:
        text_index: which text.
        document: the text.
        waiting: pieces by source text that nobody was told yet.
        finished: translations by source text that are complete.
    """

    def __init__(
        self,
        text_index: int,
        document: Document,
        waiting: dict[int, list[str]],
        finished: dict[int, list[Candidate]],
    ) -> None:
        self._text_index = text_index
        self._parts = list(reversed(document.parts))
        self._waiting = waiting
        self._finished = finished

    def tell(self) -> Iterator[TranslatedPiece]:
        """What is known now and was not told before."""
        while self._parts:
            part = self._parts[-1]
            complete = all(source in self._finished for source in part.sources)
            if isinstance(part, Plain):
                text = "".join(self._waiting.pop(part.source, ()))
            else:
                text = part.candidates(self._finished.__getitem__)[0].text if complete else ""
            if text:
                yield TranslatedPiece(self._text_index, text)
            if not complete:
                return
            self._parts.pop()


def _candidate(hypothesis: TranslationHypothesis, request: TranslationRequest) -> Candidate:
    logprob = hypothesis.score * hypothesis.tokens**request.length_penalty
    return Candidate(
        hypothesis.text,
        logprob,
        hypothesis.tokens,
        hypothesis.finish_reason,
        hypothesis.alignment,
    )
