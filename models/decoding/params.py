"""What a decoding request asks for and what it gets back: plain frozen data, no tensors.

These types travel unchanged from the service to the decoder, so that no part of the way
keeps a second copy of a parameter.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

MIN_TEMPERATURE = 0.01
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100.0
"""Beyond these bounds logits leave the range of float32."""
REPETITION_WINDOW = 256
"""Tokens at the end of a text that a repetition penalty looks at, so that a state which travels
can bring all of them along."""
MAX_SEED = 2**53 - 1
"""Largest seed: the largest integer that every JSON client can hold exactly."""
_TOKENS_PER_SOURCE_TOKEN, _SPARE_TOKENS = 3, 16


class FinishReason(enum.StrEnum):
    """Why a hypothesis is complete."""

    END = "end"
    """The model generated ``<eos>``."""
    LENGTH = "length"
    """``max_new_tokens`` were generated."""
    STOP = "stop"
    """A stop string appeared (found by the service: the decoder knows no text)."""


class StateReturn(enum.StrEnum):
    """When the state of an output is wanted."""

    NEVER = "never"
    AT_END = "at_end"
    """With its last token."""
    EACH_TOKEN = "each_token"
    """With every token, where the output is streamed: whoever finds a stop string wants the state
    at that token, when the decoder has gone on already."""


@dataclass(frozen=True, slots=True)
class DecodingParams:
    """How to choose tokens; validated on construction.

    Attributes:
        max_new_tokens: tokens to generate at most, ``<eos>`` included.
        temperature: 0 is greedy; otherwise logits are divided by it before sampling.
        top_k: sample among the k most probable tokens; 0 means all.
        top_p: sample among the fewest tokens that hold this probability; 1 means all.
        repetition_penalty: divides positive and multiplies negative logits of tokens that
            stand among the last :data:`REPETITION_WINDOW` of prompt and output (Keskar et al.
            2019, CTRL, section 4.1).
        seed: key of the random numbers; output ``i`` of a request uses ``seed + i``.
        num_outputs: sampled outputs, or hypotheses to return of a beam search.
        beam_size: hypotheses kept by beam search; 1 is greedy or sampling.
        length_penalty: alpha of the length-normalised beam score.
        return_attention: whether outputs carry the attention weights of each token.
        return_beam_trace: whether to tell how the search went: see :data:`BeamTrace`.
        return_state: when to hand out the state of an output: see :class:`SavedState`.

    Raises:
        ValueError: a value is out of range or two of them contradict each other.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    num_outputs: int = 1
    beam_size: int = 1
    length_penalty: float = 0.75
    return_attention: bool = False
    return_beam_trace: bool = False
    return_state: StateReturn = StateReturn.NEVER

    def __post_init__(self) -> None:
        for name, valid, rule in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0.0 <= self.temperature < float("inf"), "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            (
                "repetition_penalty",
                MIN_REPETITION_PENALTY <= self.repetition_penalty <= MAX_REPETITION_PENALTY,
                f"between {MIN_REPETITION_PENALTY} and {MAX_REPETITION_PENALTY}",
            ),
            (
                "temperature",
                not 0 < self.temperature < MIN_TEMPERATURE,
                f"0 (greedy) or at least {MIN_TEMPERATURE}",
            ),
            ("seed", 0 <= self.seed <= MAX_SEED, f"between 0 and {MAX_SEED}"),
            ("num_outputs", self.num_outputs >= 1, "at least 1"),
            ("beam_size", self.beam_size >= 1, "at least 1"),
            ("length_penalty", 0.0 <= self.length_penalty < float("inf"), "0 or more"),
        ):
            if not valid:
                raise ValueError(f"{name} must be {rule}, not {getattr(self, name)}")
        if self.return_beam_trace and (self.is_sampled or self.num_outputs > self.beam_size):
            raise ValueError("a beam trace is that of one search: there is none of samples")
        if self.beam_size > 1:
            if self.temperature > 0 or self.repetition_penalty != 1.0:
                raise ValueError(
                    "beam_size above 1 ranks by the model's own probabilities: it needs "
                    "temperature 0 and repetition_penalty 1"
                )
            if self.num_outputs > self.beam_size:
                raise ValueError(
                    f"num_outputs ({self.num_outputs}) is above beam_size ({self.beam_size})"
                )

    @property
    def is_beam(self) -> bool:
        """Whether this is a beam search (width 2 or more)."""
        return self.beam_size > 1

    @property
    def is_sampled(self) -> bool:
        """Whether random numbers are drawn."""
        return self.temperature > 0

    def output_seed(self, output_index: int) -> int:
        """The seed that reproduces output ``output_index`` alone, as output 0."""
        return (self.seed + output_index) % (MAX_SEED + 1)


@dataclass(frozen=True, slots=True)
class SavedState:
    """Where an output of a language model stands: all that it takes to go on from there.

    Behind ``<eos>`` nothing goes on: the state of an output that ended is that of its text.

    Attributes:
        vectors: the state before the last token of the window is fed: its layers, bottom first,
            each layer's parts in order, float32, little-endian.
        window: the last tokens of prompt and output, :data:`REPETITION_WINDOW` at most. No state
            has seen the last one yet.
        position: tokens that the output has: the index of the next one.
    """

    vectors: bytes
    window: tuple[int, ...]
    position: int


class GeneratedToken(NamedTuple):
    """One chosen token of one output.

    Attributes:
        token: its id.
        logprob: the model's own log-probability of it (natural logarithm), before
            temperature, penalties and filters.
        attention: weight of each source token, where asked for; else None.
    """

    token: int
    logprob: float
    attention: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A complete output.

    Attributes:
        tokens: the generated tokens in order, ``<eos>`` last where it was generated.
        finish_reason: ``end`` or ``length``.
        score: log-probability divided by length^alpha: see :func:`normalised_score`.
        state: where it stands, where asked for.
    """

    tokens: tuple[GeneratedToken, ...]
    finish_reason: FinishReason
    score: float
    state: SavedState | None = None

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The generated token ids."""
        return tuple(token.token for token in self.tokens)

    @property
    def logprob(self) -> float:
        """Sum of the tokens' log-probabilities, added in order in float64."""
        return total_logprob(token.logprob for token in self.tokens)


class Emission(NamedTuple):
    """The next tokens of one output of a request, as decoding hands them out.

    Attributes:
        output_index: which of the request's outputs.
        tokens: at least one. A beam search emits whole hypotheses, best first, at its end.
        finish_reason: set where the last of the tokens ends the output.
        state: where the output stands behind them, where asked for.
    """

    output_index: int
    tokens: tuple[GeneratedToken, ...]
    finish_reason: FinishReason | None
    state: SavedState | None = None


class KeptCandidate(NamedTuple):
    """A continuation that a beam search kept at a step.

    Attributes:
        parent: the candidate of the step before that it continues, by its place there; None at
            the first step.
        token: the token that it adds.
        logprob: that token's log-probability.
        score: :func:`normalised_score` of all its tokens.
        finish_reason: set where it is complete: it is not continued.
    """

    parent: int | None
    token: int
    logprob: float
    score: float
    finish_reason: FinishReason | None


BeamTrace: TypeAlias = tuple[tuple[KeptCandidate, ...], ...]
"""How a search went: for each step the candidates that it kept, best first.

The complete ones of all steps, the best score first and the earlier first among equals, are
the hypotheses in their order. A greedy search is a beam of one.
"""


def emit_hypotheses(hypotheses: Sequence[Hypothesis]) -> list[Emission]:
    """The emissions of complete outputs, in their order."""
    return [
        Emission(index, hypothesis.tokens, hypothesis.finish_reason, hypothesis.state)
        for index, hypothesis in enumerate(hypotheses)
    ]


def collect_hypotheses(emissions: Iterable[Emission], length_penalty: float) -> list[Hypothesis]:
    """Put a request's emissions together to its outputs, by index."""
    tokens: dict[int, list[GeneratedToken]] = {}
    reasons: dict[int, FinishReason] = {}
    for emission in emissions:
        tokens.setdefault(emission.output_index, []).extend(emission.tokens)
        if emission.finish_reason is not None:
            reasons[emission.output_index] = emission.finish_reason
    return [
        complete_hypothesis(tuple(tokens[index]), reasons[index], length_penalty)
        for index in sorted(reasons)
    ]


def total_logprob(logprobs: Iterable[float]) -> float:
    """The sum of log-probabilities, added in order in float64.

    As searches add them; Python's own sum is another one, more exact, since 3.12.
    """
    total = 0.0
    for logprob in logprobs:
        total += logprob
    return total


def complete_hypothesis(
    tokens: tuple[GeneratedToken, ...],
    finish_reason: FinishReason,
    length_penalty: float,
    state: SavedState | None = None,
) -> Hypothesis:
    """A hypothesis with its score."""
    total = total_logprob(token.logprob for token in tokens)
    score = normalised_score(total, len(tokens), length_penalty)
    return Hypothesis(tokens, finish_reason, score, state)


def normalised_score(logprob: float, length: int, length_penalty: float) -> float:
    """The length-normalised score (1 / L^alpha) * sum of log-probabilities.

    *Dive into Deep Learning*, section 10.8 (beam search), equation 10.8.4, with alpha = 0.75
    there. Computed in Python floats, since a vectorised power may round otherwise.

    Args:
        logprob: sum of the log-probabilities of the generated tokens.
        length: number of generated tokens L, ``<eos>`` included.
        length_penalty: alpha.
    """
    return logprob / length_power(length, length_penalty)


def length_power(length: int, length_penalty: float) -> float:
    """L^alpha, in Python floats."""
    return float(length**length_penalty)


def default_translation_length(source_tokens: int) -> int:
    """Tokens that a translation may have, ``<eos>`` included, where nobody says how many.

    Args:
        source_tokens: of the source, ``<eos>`` included.
    """
    return _TOKENS_PER_SOURCE_TOKEN * source_tokens + _SPARE_TOKENS
