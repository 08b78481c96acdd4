"""Translation: source texts in, target texts out."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from app.catalog import Catalog, ServedModel
from app.engine.request import (
    DecodeRequest,
    DecodingParams,
    FinishReason,
    GeneratedToken,
    TokenEvent,
)
from app.exceptions import UnsupportedModelError
from app.metrics import Metrics
from app.service.decoding import Decoder, Timings, Usage
from app.service.limits import Limits
from models.decoding.params import normalised_score
from models.tokenizers import EOS_ID

_TOKENS_PER_SOURCE_TOKEN, _SPARE_TOKENS = 3, 16


@dataclass(frozen=True, slots=True)
class TranslationRequest:
    """What to translate.

    Attributes:
        texts: source texts; a blank one has the empty translation, without decoding.
        model: name of a translation model, or None for one that fits the languages.
        source: source language, or None for the model's.
        target: target language, or None for the model's.
        beam_size: width of the beam search; 1 is greedy.
        length_penalty: alpha of the score.
        num_hypotheses: hypotheses to return for each text, at most ``beam_size``.
        max_new_tokens: longest translation, ``<eos>`` included; None means three times the
            source's tokens and 16 more, within the service's limit.
        alignments: whether attention weights are wanted.
        field: the field that the texts came in, for error messages.
    """

    texts: tuple[str, ...]
    model: str | None = None
    source: str | None = None
    target: str | None = None
    beam_size: int = 4
    length_penalty: float = 0.75
    num_hypotheses: int = 1
    max_new_tokens: int | None = None
    alignments: bool = False
    field: str = "text"


@dataclass(frozen=True, slots=True)
class Alignment:
    """Which source tokens the model looked at while it wrote.

    Attributes:
        source_tokens: with ``<eos>``.
        target_tokens: with ``<eos>`` where it was generated.
        weights: for each target token, one weight per source token; each row sums to 1.
    """

    source_tokens: tuple[str, ...]
    target_tokens: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class TranslationHypothesis:
    """One translation of one text.

    Attributes:
        text: the translation.
        score: log-probability divided by ``tokens ** length_penalty``.
        tokens: tokens generated, ``<eos>`` included.
        finish_reason: why it ended.
        alignment: where asked for.
    """

    text: str
    score: float
    tokens: int
    finish_reason: FinishReason
    alignment: Alignment | None


@dataclass(frozen=True, slots=True)
class TranslationResult:
    """The hypotheses of each text, best first, at least one each."""

    model: str
    source: str
    target: str
    translations: tuple[tuple[TranslationHypothesis, ...], ...]
    usage: Usage
    timings: Timings


@dataclass(slots=True)
class _Output:
    tokens: list[GeneratedToken] = field(default_factory=list)
    finish_reason: FinishReason = FinishReason.LENGTH

    def add(self, event: TokenEvent) -> None:
        self.tokens.append(event.token)
        self.finish_reason = event.finish_reason or self.finish_reason


class TranslationService:
    """Answers :class:`TranslationRequest`."""

    def __init__(
        self, catalog: Catalog, decoder: Decoder, limits: Limits, metrics: Metrics
    ) -> None:
        self._catalog = catalog
        self._decoder = decoder
        self._limits = limits
        self._metrics = metrics

    async def translate(self, request: TranslationRequest) -> TranslationResult:
        """Translate every text.

        Raises:
            RequestError: the request cannot be served as it stands.
            UnavailableError: it cannot be served now.
            DeadlineError: it took too long.
        """
        model = self._catalog.for_translation(request.model, request.source, request.target)
        if request.alignments and not model.has_attention:
            raise UnsupportedModelError(f"{model.name} has no attention: it cannot give alignments")
        self._limits.check_texts(request.field, request.texts)
        if request.max_new_tokens is not None:
            self._limits.check_new_tokens(request.max_new_tokens)
        # Blank texts stay None: there is nothing to decode.
        plan = [self._plan(model, request, text) for text in request.texts]
        requests = [decode for decode in plan if decode is not None]
        outputs: dict[int, dict[int, _Output]] = {d.request_id: {} for d in requests}
        decoding = self._decoder.start(model.name, requests)
        if requests:
            async with aclosing(decoding.tokens()) as tokens:
                async for event in tokens:
                    hypotheses = outputs[event.request_id]
                    hypotheses.setdefault(event.output_index, _Output()).add(event)
        translations = tuple(
            (_blank(request),)
            if decode is None
            else _finish(model, request, decode, outputs[decode.request_id])
            for decode in plan
        )
        usage = Usage(
            input_tokens=sum(len(decode.prompt) for decode in requests),
            output_tokens=sum(h.tokens for hypotheses in translations for h in hypotheses),
        )
        self._metrics.output_tokens.labels(model.name).inc(usage.output_tokens)
        source, target = model.languages or ("", "")
        return TranslationResult(
            model.name, source, target, translations, usage, decoding.timings()
        )

    def _plan(
        self, model: ServedModel, request: TranslationRequest, text: str
    ) -> DecodeRequest | None:
        if not text.strip():
            return None
        prompt = [*model.source_tokenizer.encode(text), EOS_ID]
        max_new_tokens = request.max_new_tokens or min(
            self._limits.max_new_tokens, _TOKENS_PER_SOURCE_TOKEN * len(prompt) + _SPARE_TOKENS
        )
        params = DecodingParams(
            max_new_tokens=max_new_tokens,
            beam_size=request.beam_size,
            num_outputs=request.num_hypotheses,
            length_penalty=request.length_penalty,
            return_attention=request.alignments,
        )
        return self._decoder.request(model.name, prompt, params)


def _blank(request: TranslationRequest) -> TranslationHypothesis:
    alignment = Alignment((), (), ()) if request.alignments else None
    return TranslationHypothesis("", 0.0, 0, FinishReason.END, alignment)


def _finish(
    model: ServedModel,
    request: TranslationRequest,
    decode: DecodeRequest,
    outputs: dict[int, _Output],
) -> tuple[TranslationHypothesis, ...]:
    if not outputs:
        raise RuntimeError("the engine ended a request without an output")
    return tuple(
        TranslationHypothesis(
            text=model.target_tokenizer.decode([token.token for token in output.tokens]),
            score=normalised_score(
                sum((token.logprob for token in output.tokens), start=0.0),
                len(output.tokens),
                request.length_penalty,
            ),
            tokens=len(output.tokens),
            finish_reason=output.finish_reason,
            alignment=_align(model, decode, output.tokens) if request.alignments else None,
        )
        for _, output in sorted(outputs.items())
    )


def _align(
    model: ServedModel, decode: DecodeRequest, tokens: Sequence[GeneratedToken]
) -> Alignment:
    return Alignment(
        source_tokens=tuple(model.source_tokenizer.token(token) for token in decode.prompt),
        target_tokens=tuple(model.target_tokenizer.token(token.token) for token in tokens),
        weights=tuple(token.attention or () for token in tokens),
    )
