"""Text generation: prompts in, continuations out."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from app.catalog import Catalog, ServedModel
from app.engine.request import DecodeRequest, DecodingParams, FinishReason, StateReturn
from app.exceptions import InvalidRequestError
from app.service.deadline import Deadline
from app.service.decoding import Decoder, Decoding, Timings, Usage
from app.service.limits import Limits
from app.service.outputs import Output, Outputs
from app.service.prompts import encode_prompts
from app.service.resumption import Beginning, begin_behind, open_states
from app.service.state_token import StateTokens, TravellingState


class TokenLogprob(NamedTuple):
    """A generated token.

    Attributes:
        token: its name.
        logprob: the model's own log-probability of it.
        text_offset: where its text begins, in characters behind the prompt.
    """

    token: str
    logprob: float
    text_offset: int


TokenLogprobs = tuple[TokenLogprob, ...]
"""Tokens of an output, in order."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate.

    Attributes:
        prompts: texts to continue; an empty one starts from nothing. None at all behind states
            is an empty one.
        model: name of a language model, or None for the default.
        params: how to choose tokens; ``num_outputs`` continuations of each prompt, or all that
            exist where a beam finds fewer.
        stop: strings that end an output; not for beam search.
        echo: whether outputs begin with their prompt.
        logprobs: whether tokens are wanted with their log-probabilities.
        timeout_seconds: time for the whole request, or None for the service's limit.
        states: tokens of states to go on from, one for each prompt; a single one is for all
            prompts, a single prompt for all of them.
        keeps_seed: whether a state's seed goes before that of the params.
        return_state: whether each output's state is wanted.
    """

    prompts: tuple[str, ...]
    model: str | None
    params: DecodingParams
    stop: tuple[str, ...] = ()
    echo: bool = False
    logprobs: bool = False
    timeout_seconds: float | None = None
    states: tuple[str, ...] = ()
    keeps_seed: bool = False
    return_state: bool = False


@dataclass(frozen=True, slots=True)
class GeneratedPiece:
    """The next piece of a streamed continuation.

    Attributes:
        prompt_index: which prompt.
        index: which of the prompt's outputs.
        text: what it adds to the text; possibly nothing where it only brings tokens.
        token_logprobs: the tokens since the last piece, where asked for; else None.
    """

    prompt_index: int
    index: int
    text: str
    token_logprobs: TokenLogprobs | None


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
        token_logprobs: all of these tokens, where asked for; else None.
        state: token of its state, where asked for; else None.
        pending_text: what the text that goes on from there begins with, where asked for.
    """

    prompt_index: int
    index: int
    text: str
    finish_reason: FinishReason
    tokens: int
    logprob: float
    seed: int | None
    token_logprobs: TokenLogprobs | None
    state: str | None = None
    pending_text: str | None = None


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """All continuations, by prompt and index."""

    model: str
    outputs: tuple[GeneratedText, ...]
    usage: Usage
    timings: Timings


GenerationEvent = GeneratedPiece | GeneratedText | GenerationResult
"""What a stream consists of: pieces of texts, each text when it is complete, and last of all
the whole result."""


@dataclass(frozen=True, slots=True)
class _Planned:
    """A decode request, for which prompt it is, and which of the prompt's outputs is its first."""

    decode: DecodeRequest
    beginning: Beginning
    prompt_index: int
    first_index: int


class GenerationService:
    """Answers :class:`GenerationRequest`."""

    def __init__(
        self,
        catalog: Catalog,
        decoder: Decoder,
        limits: Limits,
        states: StateTokens,
    ) -> None:
        self._catalog = catalog
        self._states = states
        self._decoder = decoder
        self._limits = limits

    async def generate(self, request: GenerationRequest, deadline: Deadline) -> GenerationResult:
        """Continue every prompt.

        Raises:
            RequestError: the request cannot be served as it stands.
            UnavailableError: it cannot be served now.
            DeadlineError: it took too long.
        """
        with self.start(request, deadline, stream=False) as generation:
            return await generation.result()

    @contextmanager
    def start(
        self, request: GenerationRequest, deadline: Deadline, *, stream: bool
    ) -> Iterator["Generation"]:
        """Begin to continue every prompt; at the end drop what is not finished.

        Args:
            request: what to generate.
            deadline: by when.
            stream: whether tokens are wanted as they come.

        Raises:
            RequestError: the request cannot be served as it stands.
            UnavailableError: it cannot be served now.
        """
        model = self._catalog.for_generation(request.model)
        self._limits.check_texts("prompt", request.prompts)
        self._limits.check_new_tokens(request.params.max_new_tokens)
        # A stop string must be seen as soon as it is there.
        plan = self._plan(model, request, deadline, stream or bool(request.stop))
        decodes = [each.decode for each in plan]
        # Outputs of a prompt that are decoded apart read it once, for the client.
        input_tokens = sum(len(each.decode.prompt) for each in plan if each.first_index == 0)
        with self._decoder.start(model.name, decodes, deadline, input_tokens) as decoding:
            yield Generation(request, model, plan, decoding, self._states)

    def _plan(
        self, model: ServedModel, request: GenerationRequest, deadline: Deadline, stream: bool
    ) -> list[_Planned]:
        def planned(
            beginning: Beginning, params: DecodingParams, prompt_index: int, index: int
        ) -> _Planned:
            decode = self._decoder.request(
                model.name,
                beginning.tokens,
                params,
                deadline,
                stream=stream,
                resume=beginning.resume,
                revision=model.revision,
            )
            return _Planned(decode, beginning, prompt_index, index)

        beginnings = self._begin(model, request)
        count = request.params.num_outputs
        if not request.stop or count == 1:
            return [planned(each, each.params, i, 0) for i, each in enumerate(beginnings)]
        # Outputs that end at stop strings end one by one: each is a decode request of its own,
        # so that the engine can be told to leave the one and go on with the others.
        if len(beginnings) * count > self._limits.max_decodings:
            raise InvalidRequestError(
                "n",
                f"{len(beginnings)} prompts with n {count} and stop strings are "
                f"{len(beginnings) * count} decodings, more than the "
                f"{self._limits.max_decodings} that can wait at once",
            )
        return [
            planned(
                each,
                replace(each.params, seed=each.params.output_seed(index), num_outputs=1),
                i,
                index,
            )
            for i, each in enumerate(beginnings)
            for index in range(count)
        ]

    def _begin(self, model: ServedModel, request: GenerationRequest) -> list[Beginning]:
        """Where the outputs of each prompt begin."""
        tokens = encode_prompts(model.source_tokenizer, request.prompts)
        prompts = list(zip(request.prompts, tokens, strict=True))
        params = request.params
        if request.return_state:
            # Where a stop string ends an output, its state at that token is wanted.
            when = StateReturn.EACH_TOKEN if request.stop else StateReturn.AT_END
            params = replace(params, return_state=when)
        if not request.states:
            return [Beginning(prompt, tuple(tokens), params) for prompt, tokens in prompts]
        self._limits.check_number("state", len(request.states))
        states = open_states(self._states, model, request.states)
        return begin_behind(states, prompts, params, keep_seed=request.keeps_seed)


class Generation:
    """One request under way: await its result, or walk over its events."""

    def __init__(
        self,
        request: GenerationRequest,
        model: ServedModel,
        plan: Sequence[_Planned],
        decoding: Decoding,
        states: StateTokens,
    ) -> None:
        self._states = states
        self._request = request
        self._model = model
        self._plan = {each.decode.request_id: each for each in plan}
        self._decoding = decoding
        self._tokenizer = model.target_tokenizer
        self._outputs = Outputs(
            decoding,
            self._tokenizer,
            continues_prompt=True,
            stop=request.stop,
            offsets=request.logprobs,
            open_texts={
                each.decode.request_id: each.beginning.end
                for each in plan
                if each.beginning.end is not None
            },
            stays_open=request.return_state,
        )

    async def result(self) -> GenerationResult:
        """All continuations when they are complete.

        Raises:
            UnavailableError: the engine failed or shuts down.
            DeadlineError: it took too long.
        """
        await self._outputs.complete()
        texts = tuple(
            self._finished(planned, index, output)
            for planned in self._plan.values()
            for index, output in enumerate(
                self._outputs.of(planned.decode.request_id), start=planned.first_index
            )
        )
        usage = self._decoding.count(sum(text.tokens for text in texts))
        return GenerationResult(self._model.name, texts, usage, self._decoding.timings())

    async def events(self) -> AsyncGenerator[GenerationEvent, None]:
        """The continuations as they come.

        Raises:
            UnavailableError: the engine failed or shuts down.
            DeadlineError: it took too long.
        """
        prompts = {each.prompt_index: each.beginning.prompt for each in self._plan.values()}
        for prompt_index, prompt in prompts.items() if self._request.echo else ():
            for index in range(self._request.params.num_outputs if prompt else 0):
                none_yet = () if self._request.logprobs else None
                yield GeneratedPiece(prompt_index, index, prompt, none_yet)
        told: dict[Output, int] = {}
        async for event in self._decoding:
            output, text = self._outputs.add(event)
            planned = self._plan[event.request_id]
            index = planned.first_index + event.output_index
            first = told.get(output, 0)
            is_last = output.finish_reason is not None
            if text or (is_last and self._request.logprobs and first < len(output.tokens)):
                told[output] = len(output.tokens)
                logprobs = self._token_logprobs(output, first)
                yield GeneratedPiece(planned.prompt_index, index, text, logprobs)
            if is_last:
                yield self._finished(planned, index, output)
        yield await self.result()

    def _finished(self, planned: _Planned, index: int, output: Output) -> GeneratedText:
        assert output.finish_reason is not None
        params = planned.decode.params
        own_index = index - planned.first_index
        state, pending_text = self._leave(planned, own_index, output)
        return GeneratedText(
            prompt_index=planned.prompt_index,
            index=index,
            text=(planned.beginning.prompt if self._request.echo else "") + output.text,
            finish_reason=output.finish_reason,
            tokens=len(output.tokens),
            logprob=output.logprob,
            seed=params.output_seed(own_index) if params.is_sampled else None,
            token_logprobs=self._token_logprobs(output),
            state=state,
            pending_text=pending_text,
        )

    def _leave(
        self, planned: _Planned, output_index: int, output: Output
    ) -> tuple[str | None, str | None]:
        """The token of an output's state and the text that is still to come, where asked for."""
        if not self._request.return_state:
            return None, None
        assert output.state is not None
        end, pending_text = output.leave_open()
        params = planned.decode.params
        seed = params.seed if params.is_sampled else None
        state = TravellingState(output.state, seed, output_index, end)
        return self._states.seal(self._model, state), pending_text

    def _token_logprobs(self, output: Output, first: int = 0) -> TokenLogprobs | None:
        """The tokens of an output from one on, where asked for."""
        if not self._request.logprobs:
            return None
        names = map(self._tokenizer.token, output.tokens[first:])
        rest = zip(names, output.logprobs[first:], output.offsets[first:], strict=True)
        return tuple(TokenLogprob(*token) for token in rest)
