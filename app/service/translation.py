"""Translation: source texts in, target texts out."""

from collections.abc import AsyncGenerator, Iterator, Sequence, Set
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace

from app.catalog import Catalog, ServedModel
from app.engine.request import (
    DEFAULT_LENGTH_PENALTY,
    DecodeRequest,
    DecodingParams,
    FinishReason,
)
from app.exceptions import UnsupportedModelError
from app.service.deadline import Deadline
from app.service.decoding import Decoder, Decoding, Usage
from app.service.limits import Limits
from app.service.outputs import Output, Outputs
from app.service.translation_result import (
    Alignment,
    FinishedTranslation,
    TracedCandidate,
    TracedSearch,
    TranslatedPiece,
    TranslationEvent,
    TranslationHypothesis,
    TranslationResult,
    best_distinct,
)
from models.decoding.params import default_translation_length, normalised_score
from models.tokenizers import source_prompt

DEFAULT_BEAM_SIZE = 4
"""Width of the beam search of a request that names none."""


@dataclass(frozen=True, slots=True)
class TranslationRequest:
    """What to translate.

    Attributes:
        texts: source texts; a blank one (white space, or nothing that the model's tokenizer
            keeps) has the empty translation, without decoding.
        model: name of a translation model, or None for one that fits the languages.
        source: source language, or None for the model's.
        target: target language, or None for the model's.
        beam_size: width of the beam search; 1 is greedy.
        length_penalty: alpha of the score.
        num_hypotheses: hypotheses to return for each text, at most ``beam_size``; fewer where
            the beam finds fewer that read differently.
        max_new_tokens: longest translation, ``<eos>`` included; None means three times the
            source's tokens and 16 more, within the service's limit.
        alignments: whether attention weights are wanted.
        aligned: numbers of texts whose weights are wanted where the model has them, and as far
            as the service's limit goes; nobody is refused for them.
        beam_trace: whether it is wanted how each search went.
        split: whether texts are longer than a sentence: see :mod:`app.service.documents`.
        protect: with ``split``, strings that must come through as they are.
        field: the field that the texts came in, for error messages.
        timeout_seconds: time for the whole request, or None for the service's limit.
    """

    texts: tuple[str, ...]
    model: str | None = None
    source: str | None = None
    target: str | None = None
    beam_size: int = DEFAULT_BEAM_SIZE
    length_penalty: float = DEFAULT_LENGTH_PENALTY
    num_hypotheses: int = 1
    max_new_tokens: int | None = None
    alignments: bool = False
    aligned: frozenset[int] = frozenset()
    beam_trace: bool = False
    split: bool = False
    protect: tuple[str, ...] = ()
    field: str = "text"
    timeout_seconds: float | None = None


class TranslationService:
    """Answers :class:`TranslationRequest`."""

    def __init__(self, catalog: Catalog, decoder: Decoder, limits: Limits) -> None:
        self._catalog = catalog
        self._decoder = decoder
        self._limits = limits

    async def translate(self, request: TranslationRequest, deadline: Deadline) -> TranslationResult:
        """Translate every text.

        Raises:
            RequestError: the request cannot be served as it stands.
            UnavailableError: it cannot be served now.
            DeadlineError: it took too long.
        """
        with self.start(request, deadline, stream=False) as translation:
            return await translation.result()

    @contextmanager
    def start(
        self,
        request: TranslationRequest,
        deadline: Deadline,
        *,
        stream: bool,
        max_texts: int | None = None,
    ) -> Iterator["Translation"]:
        """Begin to translate every text; at the end drop what is not finished.

        Args:
            request: what to translate.
            deadline: by when.
            stream: whether tokens are wanted as they come; those of a beam come at its end.
            max_texts: how many texts there may be; None means the service's limit.

        Raises:
            RequestError: the request cannot be served as it stands.
            UnavailableError: it cannot be served now.
        """
        model = self._catalog.for_translation(request.model, request.source, request.target)
        if request.alignments and not model.has_attention:
            raise UnsupportedModelError(f"{model.name} has no attention: it cannot give alignments")
        self._limits.check_texts(request.field, request.texts, max_texts)
        if request.max_new_tokens is not None:
            self._limits.check_new_tokens(request.max_new_tokens)
        plan = [self._plan(model, request, text, deadline, stream) for text in request.texts]
        decodes = [decode for decode in plan if decode is not None]
        if request.alignments:
            self._limits.check_alignment_cells(sum(map(_alignment_cells, decodes)))
        elif request.aligned and model.has_attention:
            plan = self._with_alignments(plan, request.aligned)
            decodes = [decode for decode in plan if decode is not None]
        if request.beam_trace:
            self._limits.check_beam_trace_candidates(sum(map(_trace_candidates, decodes)))
        with self._decoder.start(model.name, decodes, deadline) as decoding:
            yield Translation(request, model, plan, decoding)

    def _plan(
        self,
        model: ServedModel,
        request: TranslationRequest,
        text: str,
        deadline: Deadline,
        stream: bool,
    ) -> DecodeRequest | None:
        """What to decode for a text; None for a blank one: there is nothing to decode."""
        prompt = source_prompt(model.source_tokenizer, text)
        if not prompt:
            return None
        max_new_tokens = request.max_new_tokens or min(
            self._limits.max_new_tokens, default_translation_length(len(prompt))
        )
        # A text may be written in several tokenizations: others are to take the place of those.
        wants_spares = request.num_hypotheses > 1
        params = DecodingParams(
            max_new_tokens=max_new_tokens,
            beam_size=request.beam_size,
            num_outputs=request.beam_size if wants_spares else request.num_hypotheses,
            length_penalty=request.length_penalty,
            return_attention=request.alignments,
            return_beam_trace=request.beam_trace,
        )
        return self._decoder.request(
            model.name, prompt, params, deadline, stream=stream, revision=model.revision
        )

    def _with_alignments(
        self, plan: Sequence[DecodeRequest | None], aligned: Set[int]
    ) -> list[DecodeRequest | None]:
        """Have the weights of some texts returned, as many as the limit allows."""
        left = self._limits.max_alignment_cells
        planned = list(plan)
        for index in sorted(aligned):
            decode = planned[index]
            if decode is not None and _alignment_cells(decode) <= left:
                left -= _alignment_cells(decode)
                params = replace(decode.params, return_attention=True)
                planned[index] = replace(decode, params=params)
        return planned


class Translation:
    """One request under way: await its result, or walk over its events."""

    def __init__(
        self,
        request: TranslationRequest,
        model: ServedModel,
        plan: Sequence[DecodeRequest | None],
        decoding: Decoding,
    ) -> None:
        self._request = request
        self._model = model
        self._plan = plan
        self._decoding = decoding
        self._outputs = Outputs(decoding, model.target_tokenizer, continues_prompt=False)

    async def result(self) -> TranslationResult:
        """The hypotheses of every text when they are complete.

        Raises:
            UnavailableError: the engine failed or shuts down.
            DeadlineError: it took too long.
        """
        result = await self.collect()
        output_tokens = sum(h.tokens for hypotheses in result.translations for h in hypotheses)
        return replace(result, usage=self.count(output_tokens))

    def count(self, output_tokens: int) -> Usage:
        """See :meth:`app.service.decoding.Decoding.count`."""
        return self._decoding.count(output_tokens)

    async def collect(self) -> TranslationResult:
        """As :meth:`result`, for who makes another answer of it, and counts that one's tokens.

        The usage has no output tokens yet.
        """
        await self._outputs.complete()
        translations = tuple(
            (self._blank(),)
            if decode is None
            else best_distinct(
                (self._finished(decode, output) for output in self._outputs.of(decode.request_id)),
                self._request.num_hypotheses,
            )
            for decode in self._plan
        )
        source, target = self._model.languages or ("", "")
        return TranslationResult(
            self._model.name,
            source,
            target,
            translations,
            Usage(self._decoding.input_tokens, 0),
            self._decoding.timings(),
            tuple(map(self._traced, self._plan)) if self._request.beam_trace else (),
        )

    async def events(self) -> AsyncGenerator[TranslationEvent, None]:
        """The translations as they come, and the result.

        Raises:
            UnavailableError: the engine failed or shuts down.
            DeadlineError: it took too long.
        """
        # Closed here, and not whenever Python comes to it: a stream may be given up at any moment.
        async with aclosing(self.parts()) as parts:
            async for part in parts:
                yield part
        yield await self.result()

    async def parts(self) -> AsyncGenerator[TranslatedPiece | FinishedTranslation, None]:
        """As :meth:`events`, without the result."""
        places: dict[int, tuple[int, DecodeRequest]] = {}
        for text_index, decode in enumerate(self._plan):
            if decode is None:
                yield FinishedTranslation(text_index, self._blank())
            else:
                places[decode.request_id] = text_index, decode
        async for event in self._decoding:
            output, text = self._outputs.add(event)
            text_index, decode = places[event.request_id]
            if text:
                yield TranslatedPiece(text_index, text)
            if output.finish_reason is not None:
                yield FinishedTranslation(text_index, self._finished(decode, output))

    def _blank(self) -> TranslationHypothesis:
        alignment = Alignment((), (), ()) if self._request.alignments else None
        return TranslationHypothesis("", 0.0, 0, FinishReason.END, alignment)

    def _finished(self, decode: DecodeRequest, output: Output) -> TranslationHypothesis:
        assert output.finish_reason is not None
        params = decode.params
        return TranslationHypothesis(
            text=output.text,
            score=normalised_score(output.logprob, len(output.tokens), params.length_penalty),
            tokens=len(output.tokens),
            finish_reason=output.finish_reason,
            alignment=self._align(decode, output) if params.return_attention else None,
        )

    def _traced(self, decode: DecodeRequest | None) -> TracedSearch:
        if decode is None:
            return ()
        token = self._model.target_tokenizer.token
        return tuple(
            tuple(
                TracedCandidate(c.parent, token(c.token), c.logprob, c.score, c.finish_reason)
                for c in step
            )
            for step in self._decoding.beam_traces[decode.request_id]
        )

    def _align(self, decode: DecodeRequest, output: Output) -> Alignment:
        return Alignment(
            source_tokens=tuple(map(self._model.source_tokenizer.token, decode.prompt)),
            target_tokens=tuple(map(self._model.target_tokenizer.token, output.tokens)),
            weights=tuple(output.attention),
        )


def _alignment_cells(decode: DecodeRequest) -> int:
    """Attention weights of a request whose hypotheses all grow to their full length."""
    return decode.params.num_outputs * decode.params.max_new_tokens * len(decode.prompt)


def _trace_candidates(decode: DecodeRequest) -> int:
    """Candidates that a request's search keeps if it grows to its full length."""
    return decode.params.beam_size * decode.params.max_new_tokens
