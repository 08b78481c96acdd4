"""The answers of the OpenAI dialect, and the chunks of its streams."""

import secrets
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from fastapi.sse import format_sse_event
from pydantic import BaseModel, Field

from app.api.errors import ProblemResponse
from app.api.openai.errors import openai_error_body
from app.api.openai.requests import CompletionBody
from app.api.responses import Answer
from app.catalog import ServedModel
from app.engine.request import FinishReason
from app.service.decoding import Usage
from app.service.generation import (
    GeneratedPiece,
    GeneratedText,
    GenerationEvent,
    GenerationResult,
    TokenLogprobs,
)

DONE = "[DONE]"
"""What stands in a stream's last event instead of a chunk."""

_FINISH_REASONS: dict[FinishReason, Literal["stop", "length"]] = {
    FinishReason.END: "stop",
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
}


class CompletionLogprobs(Answer):
    """The tokens of a completion, position by position."""

    text_offset: list[int] = Field(description="Where each token's text begins in the text.")
    token_logprobs: list[float] = Field(description="The model's own log-probability of each.")
    tokens: list[str] = Field(description="Each token as text.")
    top_logprobs: None = Field(description="Always null: alternatives are not computed.")

    @classmethod
    def of(cls, tokens: TokenLogprobs) -> "CompletionLogprobs":
        """Copy from the service's."""
        return cls(
            text_offset=[token.text_offset for token in tokens],
            token_logprobs=[token.logprob for token in tokens],
            tokens=[token.token for token in tokens],
            top_logprobs=None,
        )


class CompletionChoice(Answer):
    """One completion of one prompt, or a piece of it."""

    finish_reason: Literal["stop", "length"] | None = Field(
        description="stop: the model ended the text or a stop string occurred; length: "
        "max_tokens; null in a stream: more follows."
    )
    index: int = Field(description="Completion j of prompt i has the index i * n + j.")
    logprobs: CompletionLogprobs | None = Field(description="null unless requested.")
    text: str


class CompletionUsage(Answer):
    """Tokens read and written."""

    completion_tokens: int = Field(
        description="Tokens generated, including those that best_of dropped."
    )
    prompt_tokens: int = Field(description="Tokens that the model read, including special ones.")
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> "CompletionUsage":
        """Copy from the service's."""
        return cls(
            completion_tokens=usage.output_tokens,
            prompt_tokens=usage.input_tokens,
            total_tokens=usage.input_tokens + usage.output_tokens,
        )


class CompletionAnswer(Answer):
    """The answer of ``POST /v1/completions``, and with ``stream`` each of its chunks."""

    id: str
    choices: list[CompletionChoice] = Field(description="By prompt, then by completion.")
    created: int = Field(description="When the answer was created, in seconds since 1970.")
    model: str
    object: Literal["text_completion"]
    system_fingerprint: str = Field(
        description="Precision, device and weights: the same ones give the same text for a seed."
    )
    usage: CompletionUsage | None = Field(
        default=None, description="In a stream only with include_usage, and then in the last chunk."
    )


class OpenAIModel(Answer):
    """A model that completes."""

    id: str = Field(description="The name to use in requests.")
    created: int = Field(description="When it was trained, in seconds since 1970; 0: unknown.")
    object: Literal["model"]
    owned_by: str = Field(description="Always gatehouse.")

    @classmethod
    def of(cls, model: ServedModel) -> "OpenAIModel":
        """Describe a loaded model."""
        created_seconds = _seconds_since_1970(model.info.training.created)
        return cls(id=model.name, created=created_seconds, object="model", owned_by="gatehouse")


class OpenAIModels(Answer):
    """All models that complete."""

    data: list[OpenAIModel]
    object: Literal["list"]


class CompletionWriter:
    """Gives the service's answers to one request the form of this dialect.

    Args:
        body: the request.
        model: who answers it.
    """

    def __init__(self, body: CompletionBody, model: ServedModel) -> None:
        self._body = body
        self._model = model
        self._id = f"cmpl-{secrets.token_hex(16)}"
        self._created_seconds = int(time.time())

    def answer(self, result: GenerationResult) -> CompletionAnswer:
        """The whole answer: of each prompt the n best completions, or all in their order."""
        of_prompts: defaultdict[int, list[GeneratedText]] = defaultdict(list)
        for output in result.outputs:
            of_prompts[output.prompt_index].append(output)
        kept = [
            output
            for prompt_index in sorted(of_prompts)
            for output in best_of(of_prompts[prompt_index], self._body.num_completions)
        ]
        choices = [
            CompletionChoice(
                finish_reason=_FINISH_REASONS[output.finish_reason],
                index=index,
                logprobs=_logprobs(output.token_logprobs),
                text=output.text,
            )
            for index, output in enumerate(kept)
        ]
        answer = self._chunk(choices)
        answer.usage = CompletionUsage.of(result.usage)
        return answer

    def encode(self, event: GenerationEvent) -> bytes:
        """What a stream sends for an event; behind the last one it says that it is done."""
        if isinstance(event, GenerationResult):
            usage = b""
            if self._body.includes_usage:
                last = self._chunk([])
                last.usage = CompletionUsage.of(event.usage)
                usage = _encode(last)
            return usage + format_sse_event(data_str=DONE)
        choice = CompletionChoice(
            finish_reason=None,
            index=event.prompt_index * self._body.num_completions + event.index,
            logprobs=None,
            text="",
        )
        if isinstance(event, GeneratedPiece):
            choice.text, choice.logprobs = event.text, _logprobs(event.token_logprobs)
        else:
            choice.finish_reason = _FINISH_REASONS[event.finish_reason]
        chunk = self._chunk([choice])
        if self._body.includes_usage:
            chunk.usage = None
        return _encode(chunk)

    def _chunk(self, choices: list[CompletionChoice]) -> CompletionAnswer:
        model = self._model
        return CompletionAnswer(
            id=self._id,
            choices=choices,
            created=self._created_seconds,
            model=model.name,
            object="text_completion",
            system_fingerprint=f"{model.precision}-{model.device}-{model.info.fingerprint[:16]}",
        )


def best_of(outputs: Sequence[GeneratedText], count: int) -> list[GeneratedText]:
    """The outputs with the highest log-probability per token, best first.

    All of them keep their order where all are wanted.

    Args:
        outputs: of one prompt.
        count: how many of them.
    """
    if len(outputs) <= count:
        return list(outputs)
    return sorted(outputs, key=lambda output: -output.logprob / max(1, output.tokens))[:count]


def encode_openai_error(answer: ProblemResponse) -> bytes:
    """An error as it is sent when a stream has begun: the last event."""
    return _encode(openai_error_body(answer))


def _seconds_since_1970(date: str) -> int:
    """The moment of an ISO 8601 date; 0 where a checkpoint, which may write anything, has none."""
    try:
        moment = datetime.fromisoformat(date)
    except ValueError:
        return 0
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _logprobs(tokens: TokenLogprobs | None) -> CompletionLogprobs | None:
    return None if tokens is None else CompletionLogprobs.of(tokens)


def _encode(data: BaseModel) -> bytes:
    return format_sse_event(data_str=data.model_dump_json(exclude_unset=True))
