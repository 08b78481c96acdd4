"""An engine that does as a test tells it, and services over it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from app.catalog import Catalog, ServedModel
from app.engine.request import (
    DecodeRequest,
    EndEvent,
    EndReason,
    EngineStats,
    Event,
    FinishReason,
    TokensEvent,
)
from app.exceptions import DrainingError
from app.metrics import Metrics
from app.service.service import Service
from app.settings import Settings
from models.checkpoint import CheckpointInfo
from models.checkpoint_schema import Languages
from models.config import LanguageModelConfig, Seq2SeqConfig
from models.tokenizers import EOS_ID, Tokenizer
from tests.app.conftest import training_record

Script = Callable[[DecodeRequest], AsyncIterator[Event]]


class ScriptedEngine:
    """Runs the same script for every request, one after another.

    Args:
        script: gives a request's events.
        obeys: whether a request that is cancelled ends then, or as its script will have it.

    Attributes:
        submitted: every request.
        cancelled: ids of those that it was told to drop, in order.
        refusal: what it raises when something is submitted.
    """

    def __init__(self, script: Script, *, obeys: bool = True) -> None:
        self._script = script
        self._obeys = obeys
        self.submitted: list[DecodeRequest] = []
        self.cancelled: list[int] = []
        self.refusal: Exception | None = None

    def submit(
        self, requests: Sequence[DecodeRequest], until_seconds: float | None = None
    ) -> AsyncIterator[Event]:
        if self.refusal is not None:
            raise self.refusal
        self.submitted += requests
        return self._events(requests, until_seconds)

    async def _events(
        self, requests: Sequence[DecodeRequest], until_seconds: float | None
    ) -> AsyncIterator[Event]:
        for request in requests:
            events = aiter(self._script(request))
            while True:
                async with asyncio.timeout_at(until_seconds):
                    event = await anext(events, None)
                if event is None:
                    break
                yield event
                is_end = isinstance(event, EndEvent)
                if self._obeys and request.request_id in self.cancelled and not is_end:
                    yield end(request, EndReason.CANCELLED)
                    break

    def cancel(self, request_ids: Iterable[int]) -> None:
        self.cancelled.extend(request_ids)

    def stats(self) -> EngineStats:
        return EngineStats(0, 0, {}, 1, 0, 0, 0, 0, 0, 0.0)

    async def close(self) -> None:
        self.refusal = DrainingError("the engine takes no more requests")
        self.cancel(request.request_id for request in self.submitted)


def token(
    request: DecodeRequest, token_id: int = 7, reason: FinishReason | None = None, output: int = 0
) -> TokensEvent:
    return TokensEvent(request.request_id, output, (token_id,), (-0.5,), reason)


def end(request: DecodeRequest, reason: EndReason = EndReason.FINISHED) -> EndEvent:
    return EndEvent(request.request_id, reason, 0.25, 0.5, "secret detail")


def answering(*outputs: Sequence[int], pause_seconds: float = 0.0) -> Script:
    """A script that writes these tokens, those of all outputs in turn where they are streamed."""

    async def script(request: DecodeRequest) -> AsyncIterator[Event]:
        written = outputs[: request.params.num_outputs]
        if request.params.seed:  # output i of a request that was taken apart
            written = outputs[request.params.seed :][: request.params.num_outputs]
        events = [each for i, tokens in enumerate(written) for each in _events(request, i, tokens)]
        for event in sorted(events, key=lambda event: event[0]):
            await asyncio.sleep(pause_seconds)
            yield event[1]
        yield end(request)

    return script


def _events(
    request: DecodeRequest, output: int, tokens: Sequence[int]
) -> list[tuple[int, TokensEvent]]:
    reason = FinishReason.END if tokens[-1] == EOS_ID else FinishReason.LENGTH
    logprobs = tuple(-0.5 - 0.125 * position for position in range(len(tokens)))
    attention = None
    if request.params.return_attention:
        attention = tuple((1.0,) + (0.0,) * (len(request.prompt) - 1) for _ in tokens)
    if not request.stream:
        return [
            (
                0,
                TokensEvent(request.request_id, output, tuple(tokens), logprobs, reason, attention),
            )
        ]
    return [
        (
            position,
            TokensEvent(
                request.request_id,
                output,
                (token_id,),
                (logprobs[position],),
                reason if position == len(tokens) - 1 else None,
                attention and attention[position : position + 1],
            ),
        )
        for position, token_id in enumerate(tokens)
    ]


def language_model(name: str, tokenizer: Tokenizer) -> ServedModel:
    config = LanguageModelConfig(vocabulary_size=tokenizer.vocabulary_size, hidden_size=8)
    return _served(name, config, {"text": tokenizer}, None)


def translator(name: str, source: Tokenizer, target: Tokenizer) -> ServedModel:
    config = Seq2SeqConfig(
        source_vocabulary_size=source.vocabulary_size,
        target_vocabulary_size=target.vocabulary_size,
        embedding_size=8,
        hidden_size=8,
        decoder="attention",
    )
    languages = Languages(source="en", target="fr")
    return _served(name, config, {"source": source, "target": target}, languages)


def _served(
    name: str,
    config: LanguageModelConfig | Seq2SeqConfig,
    tokenizers: dict[str, Tokenizer],
    languages: Languages | None,
) -> ServedModel:
    record = training_record(name)
    info = CheckpointInfo(Path(), name, config, languages, tokenizers, record, "0" * 64, 0)
    return ServedModel(info, "cpu", "float32", 0.0)


def make_service(
    engine: Any, models: Sequence[ServedModel], metrics: Metrics | None = None, **settings: Any
) -> Service:
    return Service(Settings(**settings), Catalog(models), engine, metrics or Metrics())
