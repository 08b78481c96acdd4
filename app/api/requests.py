"""The bodies of requests for new text, and their way into the service's own frozen requests.

Ranges of single fields stand in the schema. Rules over several fields are checked on the way
into the service, and name the field at fault.
"""

import secrets
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from app.api.body import StrictBody
from app.api.fields import (
    NOT_ALMOST_ZERO,
    NOT_DOCUMENTS,
    BeamSize,
    Language,
    LengthPenalty,
    MaxNewTokens,
    ModelName,
    OneOrManyDocuments,
    OneOrManyStates,
    OneOrManyStops,
    OneOrManyTexts,
    Protected,
    TimeoutSeconds,
)
from app.engine.request import DEFAULT_LENGTH_PENALTY, MAX_ROWS_PER_REQUEST, DecodingParams
from app.exceptions import InvalidRequestError
from app.service.generation import GenerationRequest
from app.service.limits import Limits
from app.service.translation import DEFAULT_BEAM_SIZE, TranslationRequest
from models.decoding.params import MAX_SEED, MIN_REPETITION_PENALTY, MIN_TEMPERATURE

_DRAWN_SEED_BITS = 32


def _given(field: str) -> dict[str, Any]:
    """JSON schema of a body that has a field, with a value."""
    return {"required": [field], "properties": {field: {"not": {"type": "null"}}}}


class GenerateBody(StrictBody):
    """What to generate: the body of ``POST /generate``."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [_given("prompt"), _given("state")]})

    prompt: OneOrManyTexts | None = Field(
        default=None,
        description="Text to continue, or a list of texts. An empty one starts from nothing. "
        "Prompt i of a list is answered as it would be alone. It may be omitted only if state is "
        "given.",
    )
    state: OneOrManyStates | None = Field(
        default=None,
        description="State of an earlier output to continue from, or a list of states; a prompt "
        "is then appended to it. A single state is used for all prompts, a single prompt for all "
        "states.",
    )
    return_state: bool = Field(
        default=False,
        description="Whether to return the state of each output, for a later request to continue "
        "from.",
    )
    model: ModelName | None = Field(
        default=None, description="A language model of GET /models; null: the default one."
    )
    max_new_tokens: MaxNewTokens | None = Field(
        default=None,
        description="Maximum number of tokens to generate; null: the service's default.",
    )
    temperature: Annotated[float, Field(ge=0, le=10), NOT_ALMOST_ZERO] | None = Field(
        default=None,
        description="0 is greedy; otherwise logits are divided by it before sampling (at least "
        f"{MIN_TEMPERATURE}). null: 1, or 0 with a beam.",
    )
    top_k: int = Field(
        default=0, ge=0, le=1_000_000, description="Sample among the k most probable; 0: all."
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Sample among the fewest tokens that together have this probability; 1: all.",
    )
    repetition_penalty: float = Field(
        default=1.0,
        ge=MIN_REPETITION_PENALTY,
        le=10,
        description="Above 1 makes tokens of the prompt and output less likely to be repeated.",
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="Output i is sampled with seed + i, and reports it; the same seed gives the "
        "same output. null: a random one for the request. It has no effect without sampling.",
    )
    stop: OneOrManyStops | None = Field(
        default=None, description="Strings that end an output, which is cut before the first."
    )
    n: int = Field(
        default=1,
        ge=1,
        le=MAX_ROWS_PER_REQUEST,
        description="Number of outputs per prompt: samples, or the best hypotheses of a beam, "
        "which may find fewer different ones.",
    )
    beam_size: BeamSize = Field(
        default=1,
        description="Above 1: beam search, without temperature, top_k, top_p, "
        "repetition_penalty and stop.",
    )
    length_penalty: LengthPenalty = Field(
        default=DEFAULT_LENGTH_PENALTY,
        description="Beams are ranked by log-probability / tokens ** length_penalty.",
    )
    logprobs: bool = Field(
        default=False, description="Whether to return each token with its log-probability."
    )
    echo: bool = Field(default=False, description="Whether texts begin with their prompt.")
    stream: bool = Field(
        default=False,
        description="Whether to answer with events, one for each piece of text as it comes; only "
        "without a beam.",
    )
    timeout_seconds: TimeoutSeconds | None = Field(
        default=None, description="Time for the whole answer; null: the service's limit."
    )

    def to_request(self, limits: Limits) -> GenerationRequest:
        """Give every parameter its value.

        Raises:
            InvalidRequestError: two fields contradict each other.
        """
        if self.prompt is None and self.state is None:
            raise InvalidRequestError("prompt", "Field required, unless there is a state")
        self._check_beam()
        default_temperature = 1.0 if self.beam_size == 1 else 0.0
        temperature = default_temperature if self.temperature is None else self.temperature
        if self.beam_size == 1 and temperature == 0 and self.n > 1:
            raise InvalidRequestError(
                "n",
                "greedy decoding (temperature 0 with beam_size 1) has one output, not "
                f"{self.n}: give a temperature or a beam_size",
            )
        return GenerationRequest(
            prompts=() if self.prompt is None else listed(self.prompt),
            model=self.model,
            params=DecodingParams(
                max_new_tokens=self.max_new_tokens
                or min(limits.default_max_new_tokens, limits.max_new_tokens),
                temperature=temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                repetition_penalty=self.repetition_penalty,
                seed=given_or_drawn(self.seed),
                num_outputs=self.n,
                beam_size=self.beam_size,
                length_penalty=self.length_penalty,
            ),
            stop=() if self.stop is None else listed(self.stop),
            echo=self.echo,
            logprobs=self.logprobs,
            timeout_seconds=self.timeout_seconds,
            states=() if self.state is None else listed(self.state),
            keeps_seed=self.seed is None,
            return_state=self.return_state,
        )

    def _check_beam(self) -> None:
        if self.beam_size == 1:
            return
        _check_stream(self.stream, self.beam_size)
        for name, differs in (
            ("temperature", bool(self.temperature)),
            ("top_k", self.top_k != 0),
            ("top_p", self.top_p != 1.0),
            ("repetition_penalty", self.repetition_penalty != 1.0),
            ("stop", bool(self.stop)),
        ):
            if differs:
                raise InvalidRequestError(
                    name, f"{name} cannot be combined with beam_size {self.beam_size} (above 1)"
                )
        if self.n > self.beam_size:
            raise InvalidRequestError(
                "n", f"n ({self.n}) is above beam_size ({self.beam_size}): a beam has no more"
            )


class TranslateBody(StrictBody):
    """What to translate: the body of ``POST /translate``."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"split": {"const": "sentences"}}, "required": ["split"]},
            "else": {"properties": {"text": NOT_DOCUMENTS}},
        }
    )

    text: OneOrManyDocuments = Field(
        description="Text to translate, or a list of texts. A blank one gets an empty "
        "translation, and so does one of which the model's tokenizer keeps nothing."
    )
    source: Language | None = Field(
        default=None, description="Source language, as GET /models shows it; null: the model's."
    )
    target: Language | None = Field(
        default=None, description="Target language, as GET /models shows it; null: the model's."
    )
    model: ModelName | None = Field(
        default=None,
        description="A translation model of GET /models; null: one that matches source and target.",
    )
    beam_size: BeamSize | None = Field(
        default=None,
        description="Width of the beam search; 1 is greedy. null: "
        f"{DEFAULT_BEAM_SIZE}, or 1 with stream.",
    )
    length_penalty: LengthPenalty = Field(
        default=DEFAULT_LENGTH_PENALTY,
        description="Hypotheses are ranked by log-probability / tokens ** length_penalty.",
    )
    num_hypotheses: int | None = Field(
        default=None,
        ge=1,
        le=MAX_ROWS_PER_REQUEST,
        description="How many hypotheses to return per text, best first; at most beam_size. The "
        "beam may find fewer: those that read the same count once.",
    )
    max_new_tokens: MaxNewTokens | None = Field(
        default=None,
        description="Maximum number of tokens per translation; null: 3 times the source's tokens "
        "plus 16, within the service's limit.",
    )
    alignments: bool = Field(
        default=False,
        description="Whether to return the attention weights between source and target tokens, "
        "whose number the service limits.",
    )
    beam_trace: bool = Field(
        default=False,
        description="Whether to return the search step by step: the candidates that each step "
        "kept, whose number the service limits. Not with stream.",
    )
    split: Literal["none", "sentences"] = Field(
        default="none",
        description="sentences: for texts of any length, translated a sentence at a time; "
        "addresses, placeholders, numbers, tags and emoji are kept. none: each text is one "
        "sentence.",
    )
    protect: Protected = Field(
        default=[],
        description="With split: further strings to keep unchanged.",
    )
    stream: bool = Field(
        default=False,
        description="Whether to answer with events, one for each piece of text as it comes; only "
        "without a beam, so that there is one hypothesis.",
    )
    timeout_seconds: TimeoutSeconds | None = Field(
        default=None, description="Time for the whole answer; null: the service's limit."
    )

    def to_request(self) -> TranslationRequest:
        """Give every parameter its value.

        Raises:
            InvalidRequestError: two fields contradict each other.
        """
        beam_size = self.beam_size or (1 if self.stream else DEFAULT_BEAM_SIZE)
        _check_stream(self.stream, beam_size)
        if self.stream and self.num_hypotheses is not None:
            raise InvalidRequestError(
                "num_hypotheses", "a stream has one hypothesis of each text, and no list of them"
            )
        if self.stream and self.beam_trace:
            raise InvalidRequestError(
                "beam_trace", "a stream shows each token as it is chosen, and has no trace"
            )
        if self.num_hypotheses is not None and self.num_hypotheses > beam_size:
            raise InvalidRequestError(
                "num_hypotheses",
                f"num_hypotheses ({self.num_hypotheses}) is above beam_size "
                f"({beam_size}): a beam has no more",
            )
        if self.split == "none" and self.protect:
            raise InvalidRequestError("protect", "protect is only for split: sentences")
        return TranslationRequest(
            texts=listed(self.text),
            model=self.model,
            source=self.source,
            target=self.target,
            beam_size=beam_size,
            length_penalty=self.length_penalty,
            num_hypotheses=self.num_hypotheses or 1,
            max_new_tokens=self.max_new_tokens,
            alignments=self.alignments,
            beam_trace=self.beam_trace,
            split=self.split == "sentences",
            protect=tuple(self.protect),
            timeout_seconds=self.timeout_seconds,
        )


def given_or_drawn(seed: int | None) -> int:
    """The seed of a request; one is drawn for a request that names none."""
    return secrets.randbits(_DRAWN_SEED_BITS) if seed is None else seed


def listed(value: str | list[str]) -> tuple[str, ...]:
    """A field that is one text or several, as several."""
    return (value,) if isinstance(value, str) else tuple(value)


def _check_stream(stream: bool, beam_size: int) -> None:
    if stream and beam_size > 1:
        raise InvalidRequestError(
            "beam_size",
            f"beam_size {beam_size} (above 1) cannot be combined with stream: a beam search knows "
            "no word of its answer before its end",
        )
