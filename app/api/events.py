"""The events of streamed answers, made from the service's."""

from fastapi.sse import format_sse_event
from pydantic import BaseModel, Field

from app.api.errors import ProblemResponse
from app.api.responses import (
    AlignmentAnswer,
    Answer,
    TimingsAnswer,
    TokenLogprob,
    UsageAnswer,
    state_fields,
)
from app.engine.request import FinishReason
from app.service.generation import GeneratedPiece, GeneratedText, GenerationEvent
from app.service.translation_result import FinishedTranslation, TranslatedPiece, TranslationEvent

TOKEN, FINISH, DONE, ERROR = "token", "finish", "done", "error"
"""Names of the events. Either `done` or `error` is the last."""

_PROMPT_INDEX = Field(description="Which prompt it continues.")
_INDEX = Field(description="Which of the prompt's outputs it is.")
_TEXT_INDEX = Field(description="Which text it translates.")
_NEW_TEXT = Field(
    description="The new text. Concatenated, the texts of all events are the output's."
)


class GenerateTokenEvent(Answer):
    """The event `token` of `POST /generate`: more of one output."""

    prompt_index: int = _PROMPT_INDEX
    index: int = _INDEX
    text: str = _NEW_TEXT
    token_logprobs: list[TokenLogprob] | None = Field(
        default=None, description="The tokens since the output's last event; only with logprobs."
    )


class GenerateFinishEvent(Answer):
    """The event `finish` of `POST /generate`: one output is complete."""

    prompt_index: int = _PROMPT_INDEX
    index: int = _INDEX
    finish_reason: FinishReason
    tokens: int
    logprob: float
    seed: int | None
    state: str | None = Field(default=None, description="Only with return_state.")
    pending_text: str | None = Field(default=None, description="Only with return_state.")


class GenerateDoneEvent(Answer):
    """The event `done` of `POST /generate`, the last: all outputs are complete."""

    model: str
    usage: UsageAnswer
    timings: TimingsAnswer


class TranslateTokenEvent(Answer):
    """The event `token` of `POST /translate`: more of one translation."""

    text_index: int = _TEXT_INDEX
    text: str = _NEW_TEXT


class TranslateFinishEvent(Answer):
    """The event `finish` of `POST /translate`: one translation is complete."""

    text_index: int = _TEXT_INDEX
    score: float
    tokens: int
    finish_reason: FinishReason
    alignment: AlignmentAnswer | None = Field(default=None, description="Only with alignments.")


class TranslateDoneEvent(Answer):
    """The event `done` of `POST /translate`, the last: all translations are complete."""

    model: str
    source: str
    target: str
    usage: UsageAnswer
    timings: TimingsAnswer


GENERATE_EVENTS: dict[str, type[BaseModel]] = {
    TOKEN: GenerateTokenEvent,
    FINISH: GenerateFinishEvent,
    DONE: GenerateDoneEvent,
}
TRANSLATE_EVENTS: dict[str, type[BaseModel]] = {
    TOKEN: TranslateTokenEvent,
    FINISH: TranslateFinishEvent,
    DONE: TranslateDoneEvent,
}


def encode_generation(event: GenerationEvent) -> bytes:
    """An event of a generation as it is sent."""
    if isinstance(event, GeneratedPiece):
        place = {"prompt_index": event.prompt_index, "index": event.index}
        if event.token_logprobs is None:
            return _encode(TOKEN, GenerateTokenEvent(**place, text=event.text))
        tokens = TokenLogprob.list_of(event.token_logprobs)
        return _encode(TOKEN, GenerateTokenEvent(**place, text=event.text, token_logprobs=tokens))
    if isinstance(event, GeneratedText):
        return _encode(
            FINISH,
            GenerateFinishEvent(
                prompt_index=event.prompt_index,
                index=event.index,
                finish_reason=event.finish_reason,
                tokens=event.tokens,
                logprob=event.logprob,
                seed=event.seed,
                **state_fields(event),
            ),
        )
    return _encode(
        DONE,
        GenerateDoneEvent(
            model=event.model,
            usage=UsageAnswer.of(event.usage),
            timings=TimingsAnswer.of(event.timings),
        ),
    )


def encode_translation(event: TranslationEvent) -> bytes:
    """An event of a translation as it is sent."""
    if isinstance(event, TranslatedPiece):
        return _encode(TOKEN, TranslateTokenEvent(text_index=event.text_index, text=event.text))
    if isinstance(event, FinishedTranslation):
        translation = event.translation
        finished = TranslateFinishEvent(
            text_index=event.text_index,
            score=translation.score,
            tokens=translation.tokens,
            finish_reason=translation.finish_reason,
        )
        if translation.alignment is not None:
            finished.alignment = AlignmentAnswer.of(translation.alignment)
        return _encode(FINISH, finished)
    return _encode(
        DONE,
        TranslateDoneEvent(
            model=event.model,
            source=event.source,
            target=event.target,
            usage=UsageAnswer.of(event.usage),
            timings=TimingsAnswer.of(event.timings),
        ),
    )


def encode_problem(answer: ProblemResponse) -> bytes:
    """An error as it is sent when a stream has begun: the last event."""
    return format_sse_event(event=ERROR, data_str=bytes(answer.body).decode())


def _encode(name: str, data: BaseModel) -> bytes:
    return format_sse_event(event=name, data_str=data.model_dump_json(exclude_unset=True))
