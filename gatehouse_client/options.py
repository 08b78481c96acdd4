"""What can be asked for: the fields of the API's bodies; ``docs/api.md`` says what each means."""

from typing import Literal, TypedDict


class GenerateOptions(TypedDict, total=False):
    """Fields of ``POST /generate`` but for the prompt and ``stream``."""

    model: str | None
    max_new_tokens: int | None
    temperature: float | None
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int | None
    stop: str | list[str] | None
    n: int
    beam_size: int
    length_penalty: float
    logprobs: bool
    echo: bool
    state: str | list[str] | None
    return_state: bool
    timeout_seconds: float | None


class TranslateOptions(TypedDict, total=False):
    """Fields of ``POST /translate`` but for the text and ``stream``."""

    model: str | None
    source: str | None
    target: str | None
    beam_size: int | None
    length_penalty: float
    num_hypotheses: int | None
    max_new_tokens: int | None
    alignments: bool
    beam_trace: bool
    split: Literal["none", "sentences"]
    protect: list[str]
    timeout_seconds: float | None


class BleuOptions(TypedDict, total=False):
    """Fields of ``POST /bleu`` but for the references."""

    hypotheses: list[str] | None
    sources: list[str] | None
    metrics: list[Literal["bleu", "chrf", "ter", "textbook_bleu"]]
    tokenize: Literal["13a", "intl", "zh", "char", "none"]
    lowercase: bool
    smooth_method: Literal["exp", "floor", "add-k", "none"]
    sentence_level: bool
    textbook_max_order: int
    model: str | None
    source: str | None
    target: str | None
    beam_size: int
    length_penalty: float
    timeout_seconds: float | None
