"""The server's answers as types; ``docs/api.md`` says what each field means.

Fields that a newer server adds are ignored.
"""

from typing import Literal

import msgspec

FinishReason = Literal["end", "stop", "length"]


class Usage(msgspec.Struct, frozen=True):
    """Tokens read and written."""

    input_tokens: int
    output_tokens: int


class Timings(msgspec.Struct, frozen=True):
    """How long it took, in milliseconds."""

    queue_ms: float
    first_token_ms: float
    total_ms: float


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token and the model's own log-probability (natural) of it.

    ``text_offset`` is where its text begins, in characters behind the prompt.
    """

    token: str
    logprob: float
    text_offset: int = 0


class Output(msgspec.Struct, frozen=True):
    """A text that a language model wrote behind a prompt."""

    prompt_index: int
    index: int
    text: str
    finish_reason: FinishReason
    tokens: int
    logprob: float
    seed: int | None = None
    token_logprobs: list[TokenLogprob] | None = None
    state: str | None = None
    pending_text: str | None = None


class GenerateAnswer(msgspec.Struct, frozen=True):
    """The answer of ``POST /generate``."""

    model: str
    outputs: list[Output]
    usage: Usage
    timings: Timings


class Alignment(msgspec.Struct, frozen=True):
    """Attention weights: a row for each target token, a column for each source token."""

    source_tokens: list[str]
    target_tokens: list[str]
    weights: list[list[float]]


class Hypothesis(msgspec.Struct, frozen=True):
    """One translation of a text."""

    text: str
    score: float
    tokens: int
    finish_reason: FinishReason
    alignment: Alignment | None = None


class Candidate(msgspec.Struct, frozen=True):
    """A continuation that a search kept at a step; ``parent`` is its place in the step before."""

    parent: int | None
    token: str
    logprob: float
    score: float
    finish_reason: FinishReason | None


class Translation(Hypothesis, frozen=True):
    """The best translation of a text, with ``num_hypotheses`` the others."""

    hypotheses: list[Hypothesis] | None = None
    beam_trace: list[list[Candidate]] | None = None


class TranslateAnswer(msgspec.Struct, frozen=True):
    """The answer of ``POST /translate``."""

    model: str
    source: str
    target: str
    translations: list[Translation]
    usage: Usage
    timings: Timings


class Score(msgspec.Struct, frozen=True):
    """One metric of ``POST /bleu``."""

    score: float
    signature: str | None = None
    precisions: list[float] | None = None
    brevity_penalty: float | None = None
    hypothesis_length: int | None = None
    reference_length: float | None = None
    edits: int | None = None
    sentences: list[float] | None = None
    sentence_signature: str | None = None


class BleuAnswer(msgspec.Struct, frozen=True):
    """The answer of ``POST /bleu``; the last fields only where sources were translated."""

    scores: dict[str, Score]
    hypotheses: list[str] | None = None
    model: str | None = None
    source: str | None = None
    target: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None


class Languages(msgspec.Struct, frozen=True):
    """Direction of a translation model."""

    source: str
    target: str


class Quality(msgspec.Struct, frozen=True):
    """Figures of a model's card, and how they were measured."""

    metrics: dict[str, float]
    note: str


class Data(msgspec.Struct, frozen=True):
    """A text that a model was trained on."""

    name: str
    origin: str


class Model(msgspec.Struct, frozen=True):
    """A loaded model: an entry of ``GET /models``."""

    name: str
    kind: Literal["language_model", "seq2seq"]
    tasks: list[str]
    default_for: list[str]
    languages: Languages | None
    parameters: int
    precision: str
    device: str
    fingerprint: str
    quality: Quality
    licence: str
    vocabulary_size: int
    source_vocabulary_size: int | None
    tokenizer: str
    data: list[Data]
    attribution: str | None
    created: str
    load_seconds: float


class Models(msgspec.Struct, frozen=True):
    """The answer of ``GET /models``."""

    models: list[Model]


class TextEvent(msgspec.Struct, frozen=True):
    """A piece of text of a stream.

    ``prompt_index`` and ``index`` tell whose it is in a stream of ``/generate``, and
    ``text_index`` in one of ``/translate``.
    """

    text: str
    prompt_index: int = 0
    index: int = 0
    text_index: int = 0
    token_logprobs: list[TokenLogprob] | None = None


class FinishEvent(msgspec.Struct, frozen=True):
    """One text of a stream is complete."""

    finish_reason: FinishReason
    tokens: int
    prompt_index: int = 0
    index: int = 0
    text_index: int = 0
    logprob: float | None = None
    score: float | None = None
    seed: int | None = None
    state: str | None = None
    pending_text: str | None = None
    alignment: Alignment | None = None


class DoneEvent(msgspec.Struct, frozen=True):
    """A stream's last event."""

    model: str
    usage: Usage
    timings: Timings
    source: str | None = None
    target: str | None = None


StreamEvent = TextEvent | FinishEvent | DoneEvent
