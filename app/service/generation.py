"""Text generation: prompts in, continuations out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.catalog import Catalog, ServedModel
from app.engine.request import DecodeRequest, DecodingParams, FinishReason
from app.exceptions import InvalidRequestError
from app.metrics import Metrics
from app.service.deadline import Deadline
from app.service.decoding import Decoder, Timings, Usage
from app.service.limits import Limits
from app.service.outputs import Output, collect_outputs
from models.tokenizers import BOS_ID, Tokenizer

_MAX_CHARACTERS_NAMED = 10


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate.

    Attributes:
        prompts: texts to continue; an empty one starts from nothing.
        model: name of a language model, or None for the default.
        params: how to choose tokens; ``num_outputs`` continuations of each prompt, or all that
            exist where a beam finds fewer.
        stop: strings that end an output; not for beam search.
        echo: whether outputs begin with their prompt.
    """

    prompts: tuple[str, ...]
    model: str | None
    params: DecodingParams
    stop: tuple[str, ...] = ()
    echo: bool = False


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """One continuation.

    Attributes:
        prompt_index: which prompt.
        index: which of the prompt's outputs.
        text: the continuation, cut before the stop string, with the prompt in front if echoed.
        finish_reason: why it ended.
        tokens: tokens generated, ``<eos>`` or those of the stop string included.
        logprob: sum of the model's own log-probabilities of these tokens.
        seed: reproduces it alone; None where nothing was drawn.
        token_logprobs: each token as text, with its log-probability.
    """

    prompt_index: int
    index: int
    text: str
    finish_reason: FinishReason
    tokens: int
    logprob: float
    seed: int | None
    token_logprobs: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """All continuations, by prompt and index."""

    model: str
    outputs: tuple[GeneratedText, ...]
    usage: Usage
    timings: Timings


class GenerationService:
    """Answers :class:`GenerationRequest`."""

    def __init__(
        self, catalog: Catalog, decoder: Decoder, limits: Limits, metrics: Metrics
    ) -> None:
        self._catalog = catalog
        self._decoder = decoder
        self._limits = limits
        self._metrics = metrics

    async def generate(self, request: GenerationRequest, deadline: Deadline) -> GenerationResult:
        """Continue every prompt.

        Raises:
            RequestError: the request cannot be served as it stands.
            UnavailableError: it cannot be served now.
            DeadlineError: it took too long.
        """
        model = self._catalog.for_generation(request.model)
        self._limits.check_texts("prompt", request.prompts)
        self._limits.check_new_tokens(request.params.max_new_tokens)
        plan = self._plan(model, request)
        decoding = self._decoder.start(model.name, [decode for decode, _, _ in plan], deadline)
        outputs = await collect_outputs(
            decoding, model.target_tokenizer, continues_prompt=True, stop=request.stop
        )
        texts = tuple(
            _finish(request, prompt_index, index, output)
            for decode, prompt_index, first in plan
            for index, output in enumerate(outputs[decode.request_id], start=first)
        )
        usage = Usage(
            input_tokens=sum(len(d.prompt) for d, _, first in plan if first == 0),
            output_tokens=sum(text.tokens for text in texts),
        )
        self._metrics.output_tokens.labels(model.name).inc(usage.output_tokens)
        return GenerationResult(model.name, texts, usage, decoding.timings())

    def _plan(
        self, model: ServedModel, request: GenerationRequest
    ) -> list[tuple[DecodeRequest, int, int]]:
        """Decode requests, each with its prompt's index and the index of its first output."""
        prompts = encode_prompts(model.source_tokenizer, request.prompts)
        params = request.params
        if not request.stop or params.num_outputs == 1:
            return [
                (self._decoder.request(model.name, prompt, params), prompt_index, 0)
                for prompt_index, prompt in enumerate(prompts)
            ]
        # Outputs that end at stop strings end one by one: each is a decode request of its own,
        # so that the engine can be told to leave the one and go on with the others.
        count = len(prompts) * params.num_outputs
        if count > self._limits.max_decodings:
            raise InvalidRequestError(
                "n",
                f"{len(prompts)} prompts with n {params.num_outputs} and stop strings are {count} "
                f"decodings, more than the {self._limits.max_decodings} that can wait at once",
            )
        return [
            (self._decoder.request(model.name, prompt, single), prompt_index, index)
            for prompt_index, prompt in enumerate(prompts)
            for index in range(params.num_outputs)
            for single in (replace(params, seed=params.output_seed(index), num_outputs=1),)
        ]


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Tokens of each prompt, with ``<bos>`` in front.

    Raises:
        InvalidRequestError: a prompt has characters that a character model has never seen. (A
            word model reads unseen words as ``<unk>``; SentencePiece has no unseen input.)
    """
    for index, prompt in enumerate(prompts):
        unseen = tokenizer.unknown(prompt) if tokenizer.kind == "character" else []
        if unseen:
            named = ", ".join(_name(character) for character in unseen[:_MAX_CHARACTERS_NAMED])
            more = len(unseen) - _MAX_CHARACTERS_NAMED
            raise InvalidRequestError(
                f"prompt.{index}" if len(prompts) > 1 else "prompt",
                f"the model has never seen these characters: {named}"
                + (f" and {more} more" if more > 0 else ""),
            )
    return [[BOS_ID, *tokenizer.encode(prompt)] for prompt in prompts]


def _name(character: str) -> str:
    code = f"U+{ord(character):04X}"
    return f"{character!r} ({code})" if character.isprintable() else code


def _finish(
    request: GenerationRequest, prompt_index: int, index: int, output: Output
) -> GeneratedText:
    assert output.finish_reason is not None
    params = request.params
    return GeneratedText(
        prompt_index=prompt_index,
        index=index,
        text=(request.prompts[prompt_index] if request.echo else "") + output.text,
        finish_reason=output.finish_reason,
        tokens=len(output.tokens),
        logprob=output.logprob,
        seed=params.output_seed(index) if params.is_sampled else None,
        token_logprobs=tuple(
            (output.tokenizer.token(token.token), token.logprob) for token in output.tokens
        ),
    )
