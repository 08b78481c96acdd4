"""The bodies of answers, made from the service's results.

A field that was not asked for is left out, which is why only fields that are set explicitly
are sent.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.engine.request import FinishReason
from app.service.decoding import Timings, Usage
from app.service.generation import GeneratedText, GenerationResult, TokenLogprobs
from app.service.scoring import MetricName, MetricScore
from app.service.translation_result import (
    Alignment,
    TracedCandidate,
    TracedSearch,
    TranslationHypothesis,
    TranslationResult,
)


class Answer(BaseModel):
    """Base of all answers and of their parts."""

    model_config = ConfigDict(extra="forbid")


class JsonResponse(Response):
    """An answer on its way out; what was made here is not validated once more."""

    media_type = "application/json"

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.model_dump_json(exclude_unset=True))


class UsageAnswer(Answer):
    """Tokens read and written."""

    input_tokens: int = Field(description="Tokens that the model read, including special ones.")
    output_tokens: int = Field(description="Tokens of the returned outputs.")

    @classmethod
    def of(cls, usage: Usage) -> "UsageAnswer":
        """Copy from the service's."""
        return cls(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)


class TimingsAnswer(Answer):
    """Times in milliseconds, from the moment the texts were handed to the engine."""

    queue_ms: float = Field(description="Until work on the first text began.")
    first_token_ms: float = Field(description="Until the first token arrived.")
    total_ms: float = Field(description="Until the answer was complete.")

    @classmethod
    def of(cls, timings: Timings) -> "TimingsAnswer":
        """Copy from the service's."""
        return cls(
            queue_ms=_milliseconds(timings.queue_seconds),
            first_token_ms=_milliseconds(timings.first_token_seconds),
            total_ms=_milliseconds(timings.total_seconds),
        )


class TokenLogprob(Answer):
    """A generated token."""

    token: str = Field(description="The token as text.")
    logprob: float = Field(description="The model's own log-probability of it.")
    text_offset: int = Field(
        description="Where its text begins, in characters after the prompt (Unicode code points)."
    )

    @classmethod
    def list_of(cls, tokens: TokenLogprobs) -> "list[TokenLogprob]":
        """Copy from the service's."""
        return [
            cls(token=token.token, logprob=token.logprob, text_offset=token.text_offset)
            for token in tokens
        ]


class OutputAnswer(Answer):
    """One continuation of one prompt."""

    prompt_index: int = Field(description="Which prompt it continues.")
    index: int = Field(description="Which of the prompt's outputs it is.")
    text: str
    finish_reason: FinishReason = Field(
        description="end: the model ended the text; stop: a stop string occurred; length: "
        "max_new_tokens."
    )
    tokens: int = Field(
        description="Number of tokens generated, including <eos> or those of a stop string."
    )
    logprob: float = Field(
        description="Sum of the model's own log-probabilities of these tokens, before temperature, "
        "penalties and filters."
    )
    seed: int | None = Field(
        description="Reproduces this output alone; null if nothing was sampled."
    )
    token_logprobs: list[TokenLogprob] | None = Field(
        default=None, description="Every token; only with logprobs."
    )
    state: str | None = Field(
        default=None,
        description="The state after the output, to continue from; only with return_state.",
    )
    pending_text: str | None = Field(
        default=None,
        description="What a text that goes on from the state begins with: it may be the beginning "
        "of a stop string, or half a character, or it followed a stop string; only with "
        "return_state.",
    )

    @classmethod
    def of(cls, text: GeneratedText) -> "OutputAnswer":
        """Copy from the service's, with the tokens and the state where there are any."""
        optional: dict[str, Any] = state_fields(text)
        if text.token_logprobs is not None:
            optional["token_logprobs"] = TokenLogprob.list_of(text.token_logprobs)
        return cls(
            prompt_index=text.prompt_index,
            index=text.index,
            text=text.text,
            finish_reason=text.finish_reason,
            tokens=text.tokens,
            logprob=text.logprob,
            seed=text.seed,
            **optional,
        )


def state_fields(text: GeneratedText) -> dict[str, str]:
    """The state of an output and what belongs to it, where it was asked for."""
    if text.state is None or text.pending_text is None:
        return {}
    return {"state": text.state, "pending_text": text.pending_text}


class GenerateAnswer(Answer):
    """The answer of ``POST /generate``."""

    model: str
    outputs: list[OutputAnswer] = Field(description="Sorted by prompt_index, then index.")
    usage: UsageAnswer
    timings: TimingsAnswer

    @classmethod
    def of(cls, result: GenerationResult) -> "GenerateAnswer":
        """Copy from the service's."""
        return cls(
            model=result.model,
            outputs=[OutputAnswer.of(text) for text in result.outputs],
            usage=UsageAnswer.of(result.usage),
            timings=TimingsAnswer.of(result.timings),
        )


class AlignmentAnswer(Answer):
    """Where the model looked while it wrote."""

    source_tokens: list[str] = Field(description="Tokens of the source, including <eos>.")
    target_tokens: list[str] = Field(description="Tokens generated, <eos> included.")
    weights: list[list[float]] = Field(
        description="For each target token one weight per source token; each row sums to 1."
    )

    @classmethod
    def of(cls, alignment: Alignment) -> "AlignmentAnswer":
        """Copy from the service's."""
        return cls(
            source_tokens=list(alignment.source_tokens),
            target_tokens=list(alignment.target_tokens),
            weights=[list(row) for row in alignment.weights],
        )


class HypothesisAnswer(Answer):
    """One translation of one text."""

    text: str
    score: float = Field(description="log-probability / tokens ** length_penalty; 0 when blank.")
    tokens: int = Field(description="Tokens generated, <eos> included.")
    finish_reason: FinishReason = Field(description="end, or length: max_new_tokens was reached.")
    alignment: AlignmentAnswer | None = Field(default=None, description="Only with alignments.")

    @staticmethod
    def fields_of(hypothesis: TranslationHypothesis) -> dict[str, Any]:
        """The fields that are set, copied from the service's."""
        fields: dict[str, Any] = {
            "text": hypothesis.text,
            "score": hypothesis.score,
            "tokens": hypothesis.tokens,
            "finish_reason": hypothesis.finish_reason,
        }
        if hypothesis.alignment is not None:
            fields["alignment"] = AlignmentAnswer.of(hypothesis.alignment)
        return fields


class CandidateAnswer(Answer):
    """A continuation that a search kept at a step."""

    parent: int | None = Field(
        description="Position, among those of the previous step, of the candidate that it "
        "continues; null in the first step."
    )
    token: str = Field(description="The token that it adds.")
    logprob: float = Field(description="The model's own log-probability of it.")
    score: float = Field(description="As of a hypothesis, over the tokens so far.")
    finish_reason: FinishReason | None = Field(
        description="Set if it is complete and not continued: as of a hypothesis."
    )

    @classmethod
    def steps_of(cls, search: TracedSearch) -> "list[list[CandidateAnswer]]":
        """Copy from the service's."""
        return [[cls._of(candidate) for candidate in step] for step in search]

    @classmethod
    def _of(cls, candidate: TracedCandidate) -> "CandidateAnswer":
        return cls(
            parent=candidate.parent,
            token=candidate.token,
            logprob=candidate.logprob,
            score=candidate.score,
            finish_reason=candidate.finish_reason,
        )


class TranslationAnswer(HypothesisAnswer):
    """The best translation of one text, and the others where asked for."""

    hypotheses: list[HypothesisAnswer] | None = Field(
        default=None, description="Best first; only with num_hypotheses. A blank text has one."
    )
    beam_trace: list[list[CandidateAnswer]] | None = Field(
        default=None,
        description="For each step the candidates that the search kept, best first; only with "
        "beam_trace. A blank text has none.",
    )


class TranslateAnswer(Answer):
    """The answer of ``POST /translate``."""

    model: str
    source: str
    target: str
    translations: list[TranslationAnswer] = Field(description="One for each text, in order.")
    usage: UsageAnswer
    timings: TimingsAnswer

    @classmethod
    def of(cls, result: TranslationResult, with_hypotheses: bool) -> "TranslateAnswer":
        """Copy from the service's, with all hypotheses where asked for."""
        translations = []
        for index, hypotheses in enumerate(result.translations):
            fields = [HypothesisAnswer.fields_of(hypothesis) for hypothesis in hypotheses]
            optional: dict[str, Any] = {}
            if with_hypotheses:
                optional["hypotheses"] = [HypothesisAnswer(**entry) for entry in fields]
            if result.beam_traces:
                optional["beam_trace"] = CandidateAnswer.steps_of(result.beam_traces[index])
            translations.append(TranslationAnswer(**fields[0], **optional))
        return cls(
            model=result.model,
            source=result.source,
            target=result.target,
            translations=translations,
            usage=UsageAnswer.of(result.usage),
            timings=TimingsAnswer.of(result.timings),
        )


class ScoreAnswer(Answer):
    """One metric's score."""

    score: float = Field(description="In percent; textbook_bleu from 0 to 1.")
    signature: str | None = Field(
        default=None, description="sacreBLEU's signature; publish it with the score."
    )
    precisions: list[float] | None = Field(
        default=None, description="bleu: precision of 1- to 4-grams, in percent."
    )
    brevity_penalty: float | None = Field(default=None, description="bleu.")
    hypothesis_length: int | None = Field(default=None, description="bleu: in its tokens.")
    reference_length: int | float | None = Field(
        default=None, description="bleu: of the closest references; ter: the mean of them."
    )
    edits: int | None = Field(
        default=None, description="ter: number of edits needed to reach the references."
    )
    sentences: list[float] | None = Field(
        default=None, description="Score of each hypothesis; only with sentence_level."
    )
    sentence_signature: str | None = Field(
        default=None, description="sacreBLEU's signature of these."
    )

    @classmethod
    def of(cls, score: MetricScore) -> "ScoreAnswer":
        """Copy from the service's what there is."""
        fields: dict[str, Any] = {"score": score.score, **score.details}
        if score.signature is not None:
            fields["signature"] = score.signature
        if score.sentences is not None:
            fields["sentences"] = list(score.sentences)
        if score.sentence_signature is not None:
            fields["sentence_signature"] = score.sentence_signature
        return cls(**fields)


class ScoresAnswer(Answer):
    """The scores that were asked for."""

    bleu: ScoreAnswer | None = None
    chrf: ScoreAnswer | None = None
    ter: ScoreAnswer | None = None
    textbook_bleu: ScoreAnswer | None = None


class BleuAnswer(Answer):
    """The answer of ``POST /bleu``."""

    scores: ScoresAnswer
    hypotheses: list[str] | None = Field(
        default=None, description="The translations that were scored; only with sources."
    )
    model: str | None = Field(
        default=None, description="The model that translated; only with sources."
    )
    source: str | None = Field(default=None, description="Only with sources.")
    target: str | None = Field(default=None, description="Only with sources.")
    usage: UsageAnswer | None = Field(default=None, description="Only with sources.")
    timings: TimingsAnswer | None = Field(
        default=None, description="Of the translation; only with sources."
    )

    @classmethod
    def of(
        cls, scores: dict[MetricName, MetricScore], translation: TranslationResult | None
    ) -> "BleuAnswer":
        """Copy from the service's."""
        optional: dict[str, Any] = {}
        if translation is not None:
            optional = {
                "hypotheses": [best[0].text for best in translation.translations],
                "model": translation.model,
                "source": translation.source,
                "target": translation.target,
                "usage": UsageAnswer.of(translation.usage),
                "timings": TimingsAnswer.of(translation.timings),
            }
        entries: dict[str, Any] = {name: ScoreAnswer.of(score) for name, score in scores.items()}
        return cls(scores=ScoresAnswer(**entries), **optional)


class HealthAnswer(Answer):
    """The answer of the health pages."""

    status: Literal["alive", "ready"]


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
