"""The body of ``POST /v1/completions``, and its way into the service's own request.

Every parameter of OpenAI's reference is known here by name: what cannot be done is refused, and
never ignored.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from app.api.body import StrictBody
from app.api.fields import (
    NOT_ALMOST_ZERO,
    MaxNewTokens,
    ModelName,
    OneOrManyStops,
    OneOrManyTexts,
)
from app.api.requests import given_or_drawn, listed
from app.engine.request import MAX_ROWS_PER_REQUEST, DecodingParams
from app.exceptions import InvalidRequestError
from app.service.generation import GenerationRequest
from app.service.limits import Limits
from models.decoding.params import MAX_SEED, MIN_TEMPERATURE

_FIELDS = {"max_new_tokens": "max_tokens"}
"""Parameters of this dialect by the name that the service knows them by."""

DEFAULT_MAX_TOKENS = 16
"""What OpenAI's reference says that a completion has at most when a request names no number."""


@contextmanager
def own_parameter_names() -> Iterator[None]:
    """Have what the service refuses named as it is named in this dialect.

    Raises:
        InvalidRequestError: what it raised, with the parameter's name.
    """
    try:
        yield
    except InvalidRequestError as error:
        field = _FIELDS.get(error.field, error.field)
        raise InvalidRequestError(field, error.reason) from None


def _refuse_token_ids(value: Any) -> Any:
    if isinstance(value, list) and any(isinstance(item, int | list) for item in value):
        raise ValueError("token ids are not taken: send text, or a list of texts")
    return value


def _require_neutral(value: Any, info: ValidationInfo) -> None:
    """Let through only what asks for nothing: null, 0, an empty text or an empty object."""
    if isinstance(value, bool) or (value is not None and value not in (0, "", {})):
        raise ValueError(f"{info.field_name} is not supported: leave it out")


_Unsupported = Annotated[None, BeforeValidator(_require_neutral)]
_Outputs = Annotated[int, Field(ge=1, le=MAX_ROWS_PER_REQUEST)]


class StreamOptions(StrictBody):
    """How to stream."""

    include_usage: bool | None = Field(
        default=None, description="Whether a last chunk without choices reports the usage."
    )


class CompletionBody(StrictBody):
    """What to complete: the body of ``POST /v1/completions``."""

    model: ModelName | None = Field(
        default=None, description="A model of GET /v1/models; null: the default one of /generate."
    )
    prompt: Annotated[OneOrManyTexts, BeforeValidator(_refuse_token_ids)] = Field(
        description="Text to complete, or a list of texts. Token ids are refused."
    )
    best_of: _Outputs | None = Field(
        default=None,
        description="How many completions to sample per prompt; the n with the highest "
        "log-probability per token are returned. null: n.",
    )
    echo: bool | None = Field(default=None, description="Whether texts begin with their prompt.")
    frequency_penalty: _Unsupported = Field(default=None, description="Not supported: 0 or null.")
    logit_bias: _Unsupported = Field(default=None, description="Not supported: {} or null.")
    logprobs: int | None = Field(
        default=None,
        ge=0,
        description="0: return each token with its log-probability. More, which would ask for "
        "the most likely alternatives, is refused.",
    )
    max_tokens: MaxNewTokens | None = Field(
        default=None, description=f"Tokens to write at most; null: {DEFAULT_MAX_TOKENS}."
    )
    n: _Outputs | None = Field(
        default=None, description="Completions for each prompt; null: 1. Above 1 with sampling."
    )
    presence_penalty: _Unsupported = Field(default=None, description="Not supported: 0 or null.")
    seed: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="Completion i of each prompt is sampled with seed + i; null: a random one.",
    )
    stop: OneOrManyStops | None = Field(
        default=None, description="Strings that end a completion, which is cut before the first."
    )
    stream: bool | None = Field(default=None, description="Whether to stream the answer in chunks.")
    stream_options: StreamOptions | None = Field(
        default=None, description="How to stream; only with stream."
    )
    suffix: _Unsupported = Field(default=None, description="Not supported: null.")
    temperature: Annotated[float, Field(ge=0, le=2), NOT_ALMOST_ZERO] | None = Field(
        default=None,
        description="0 is greedy; otherwise logits are divided by it before sampling (at least "
        f"{MIN_TEMPERATURE}). null: 1.",
    )
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Sample among the fewest tokens that together have this probability; null: 1.",
    )
    user: str | None = Field(
        default=None, description="Who is asking. Accepted but ignored; it is not even logged."
    )

    @field_validator("logprobs")
    @classmethod
    def _no_alternatives(cls, value: int | None) -> int | None:
        if value:
            raise ValueError(
                "above 0 is not supported: only the tokens of the completion have "
                "log-probabilities, for which 0 asks, and not their alternatives"
            )
        return value

    def to_request(self, limits: Limits) -> GenerationRequest:
        """Give every parameter its value.

        Args:
            limits: of the service.

        Raises:
            InvalidRequestError: two fields contradict each other.
        """
        temperature = 1.0 if self.temperature is None else self.temperature
        self._check(temperature)
        return GenerationRequest(
            prompts=listed(self.prompt),
            model=self.model,
            params=DecodingParams(
                max_new_tokens=self.max_tokens or min(DEFAULT_MAX_TOKENS, limits.max_new_tokens),
                temperature=temperature,
                top_p=self.top_p or 1.0,
                seed=given_or_drawn(self.seed),
                num_outputs=self.num_drawn,
            ),
            stop=() if self.stop is None else listed(self.stop),
            echo=bool(self.echo),
            logprobs=self.logprobs is not None,
        )

    @property
    def num_completions(self) -> int:
        """Completions of each prompt in the answer."""
        return self.n or 1

    @property
    def num_drawn(self) -> int:
        """Completions of each prompt that are made, of which the best are answered."""
        return self.best_of or self.num_completions

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def _check(self, temperature: float) -> None:
        drawn_field = "n" if self.best_of is None else "best_of"
        for field, broken, reason in (
            (
                "best_of",
                self.num_drawn < self.num_completions,
                f"best_of ({self.num_drawn}) is below n ({self.num_completions})",
            ),
            (
                "best_of",
                bool(self.stream) and self.num_drawn > self.num_completions,
                "best_of above n cannot be combined with stream: which are the best is known at "
                "the end",
            ),
            (
                drawn_field,
                temperature == 0 and self.num_drawn > 1,
                f"greedy decoding (temperature 0) has one completion, not {self.num_drawn}: give "
                "a temperature",
            ),
            (
                "logprobs",
                bool(self.echo) and self.logprobs is not None,
                "logprobs cannot be combined with echo: the tokens of a prompt have no "
                "log-probabilities here",
            ),
            (
                "stream_options",
                self.stream_options is not None and not self.stream,
                "stream_options is only for stream",
            ),
        ):
            if broken:
                raise InvalidRequestError(field, reason)
