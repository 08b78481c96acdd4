"""From the tokens of decode requests to their outputs: one way for every endpoint."""

from collections.abc import Sequence

from app.engine.request import FinishReason, TokensEvent
from app.service.decoding import Decoding
from app.service.detokenization import Detokenizer
from app.service.stopping import StopFinder
from models.tokenizers import Tokenizer, continuation


class Output:
    """One output while its tokens come, and whether a stop string ended it.

    Args:
        tokenizer: turns its tokens into text.
        before: the tokens that it continues; empty for a text of its own.
        stop: strings that end it.
        offsets: whether it is wanted where each token's text begins.

    Attributes:
        tokens: what came until now, up to the one that completed a stop string.
        logprobs: the model's own log-probability of each.
        attention: for each token the weight of each source token, where asked for.
        offsets: for each token the characters before its text, where asked for; the bytes of a
            character that takes several tokens begin where it does, those of a stop string where
            it would.
        finish_reason: set once it is complete.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        before: Sequence[int] = (),
        stop: Sequence[str] = (),
        *,
        offsets: bool = False,
    ) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.attention: list[tuple[float, ...]] = []
        self.offsets: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._measure = Detokenizer(tokenizer, before) if offsets else None
        self._measured_characters = 0
        self._tokenizer = tokenizer
        self._before = before
        self._detokenizer: Detokenizer | None = None
        self._stop_finder = StopFinder(stop) if stop else None
        self._pieces: list[str] = []

    def add(self, event: TokensEvent) -> str:
        """Take the next tokens; ignored when the output is complete.

        Returns:
            The text that they add and that nothing which follows can change: no half
            character, nothing that may be the beginning of a stop string, nothing behind one.
        """
        if self.finish_reason is not None:
            return ""
        text = self._text(event)
        self.tokens += event.tokens
        self.logprobs += event.logprobs
        self.attention += event.attention or ()
        if self._measure is not None:
            for token in event.tokens:
                self.offsets.append(self._measured_characters)
                self._measured_characters += len(self._measure.add((token,), last=False))
        self.finish_reason = event.finish_reason
        if self._stop_finder is not None:
            text, found = self._stop_finder.add(text, last=event.finish_reason is not None)
            if found:
                self.finish_reason = FinishReason.STOP
        self._pieces.append(text)
        return text

    def _text(self, event: TokensEvent) -> str:
        last = event.finish_reason is not None
        if self._detokenizer is None:
            if last:  # the output comes as a whole
                return continuation(self._tokenizer, self._before, event.tokens)
            self._detokenizer = Detokenizer(self._tokenizer, self._before)
        return self._detokenizer.add(event.tokens, last=last)

    @property
    def text(self) -> str:
        """The text so far, without the stop string and what follows it."""
        return "".join(self._pieces)

    @property
    def logprob(self) -> float:
        """Sum of the tokens' log-probabilities, added in order."""
        return sum(self.logprobs, start=0.0)


class Outputs:
    """All outputs of one decoding while their tokens come.

    Args:
        decoding: of the client's request; a decode request with stop strings has one output.
        tokenizer: of the tokens that come.
        continues_prompt: whether outputs go on from their prompt, or are texts of their own.
        stop: strings that end an output; its decode request is then released.
        offsets: whether it is wanted where each token's text begins.
    """

    def __init__(
        self,
        decoding: Decoding,
        tokenizer: Tokenizer,
        *,
        continues_prompt: bool,
        stop: Sequence[str] = (),
        offsets: bool = False,
    ) -> None:
        self._decoding = decoding
        self._tokenizer = tokenizer
        self._stop = stop
        self._offsets = offsets
        self._before = {
            request.request_id: request.prompt if continues_prompt else ()
            for request in decoding.requests
        }
        self._outputs: dict[int, dict[int, Output]] = {
            request.request_id: {} for request in decoding.requests
        }

    def add(self, event: TokensEvent) -> tuple[Output, str]:
        """Take the next tokens.

        Returns:
            The output that they belong to, and the text that they add: see :meth:`Output.add`.
        """
        own = self._outputs[event.request_id]
        output = own.get(event.output_index)
        if output is None:
            before = self._before[event.request_id]
            output = own[event.output_index] = Output(
                self._tokenizer, before, self._stop, offsets=self._offsets
            )
        text = output.add(event)
        if output.finish_reason is FinishReason.STOP:
            self._decoding.release(event.request_id)
        return output, text

    async def complete(self) -> None:
        """Take all tokens that come.

        Raises:
            UnavailableError: the engine failed or shuts down.
            DeadlineError: the time is up.
        """
        async for event in self._decoding:
            self.add(event)

    def of(self, request_id: int) -> list[Output]:
        """The complete outputs of one decode request, when no more tokens come.

        They are all that exist, which for a beam search may be fewer than were asked for.
        """
        own = self._outputs[request_id]
        if not own or any(output.finish_reason is None for output in own.values()):
            raise RuntimeError("the engine ended a request without ending its outputs")
        return [own[index] for index in sorted(own)]
