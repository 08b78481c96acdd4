"""From the tokens of decode requests to their outputs: one way for every endpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.engine.request import DecodeRequest, FinishReason, SavedState, TokensEvent
from app.service.decoding import Decoding
from app.service.detokenization import Detokenizer
from app.service.stopping import StopFinder
from models.decoding.params import total_logprob
from models.tokenizers import Tokenizer, continuation


@dataclass(frozen=True, slots=True)
class OpenText:
    """The end of a text that goes on elsewhere.

    Attributes:
        pending: text that was not given out: it may be the beginning of a stop string, or it
            followed one.
        held: tokens behind it that make no character yet.
        has_text: whether the tokens before those have made any text, or a tokenizer still looks
            for its first word.
    """

    pending: str
    held: int
    has_text: bool


class Output:
    """One output while its tokens come, and whether a stop string ended it.

    Args:
        tokenizer: turns its tokens into text.
        before: the tokens that it continues; empty for a text of its own.
        stop: strings that end it.
        offsets: whether it is wanted where each token's text begins.
        open_text: the end of the text whose last tokens ``before`` are, where that goes on as if
            it had never ended; None where something new begins behind them.
        stays_open: whether the text will go on: unless the model ended it, nothing is given out
            that what follows may change.

    Attributes:
        tokens: what came until now, up to the one that completed a stop string; without an
            ``<eos>`` that showed one.
        logprobs: the model's own log-probability of each.
        attention: for each token the weight of each source token, where asked for.
        offsets: for each token the characters before its text, where asked for; the bytes of a
            character that takes several tokens begin where it does, those of a stop string where
            it would.
        finish_reason: set once it is complete.
        state: where it stands behind these tokens, where asked for.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        before: Sequence[int] = (),
        stop: Sequence[str] = (),
        *,
        offsets: bool = False,
        open_text: OpenText | None = None,
        stays_open: bool = False,
    ) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.attention: list[tuple[float, ...]] = []
        self.offsets: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.state: SavedState | None = None
        self._tokenizer = tokenizer
        self._before = before
        self._open_text = open_text
        self._stays_open = stays_open
        self._pending = "" if open_text is None else open_text.pending
        self._measure = self._new_detokenizer() if offsets else None
        self._measured_characters = len(self._pending)
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
        text, self._pending = self._pending + self._text(event), ""
        self.state = event.state
        self.tokens += event.tokens
        self.logprobs += event.logprobs
        self.attention += event.attention or ()
        if self._measure is not None:
            for token in event.tokens:
                self.offsets.append(self._measured_characters)
                self._measured_characters += len(self._measure.add((token,), last=False))
        self.finish_reason = event.finish_reason
        if self._stop_finder is not None:
            text, found = self._stop_finder.add(text, last=self._ends_with(event))
            if found:
                self.finish_reason = FinishReason.STOP
                if event.finish_reason is FinishReason.END:
                    self._drop_end_token()
        self._pieces.append(text)
        return text

    def _drop_end_token(self) -> None:
        """Leave the model's end for later: it only showed that a stop string had been there.

        Bytes that make no character are shown as U+FFFD when nothing follows. Whoever goes on
        from here gets ``<eos>`` once more, and would count it twice.
        """
        for values in (self.tokens, self.logprobs, self.offsets):
            del values[-1:]

    def _text(self, event: TokensEvent) -> str:
        last = self._ends_with(event)
        if self._detokenizer is None:
            if last and self._open_text is None and not self._stays_open:
                # The output comes as a whole.
                return continuation(self._tokenizer, self._before, event.tokens)
            self._detokenizer = self._new_detokenizer()
        if not (last and self._stays_open):
            return self._detokenizer.add(event.tokens, last=last)
        # In two steps, after which the detokenizer still knows what it is behind.
        text = self._detokenizer.add(event.tokens, last=False)
        return text + self._detokenizer.add((), last=True)

    def _ends_with(self, event: TokensEvent) -> bool:
        """Whether nothing that may follow this event can change the text."""
        if self._stays_open:
            return event.finish_reason is FinishReason.END
        return event.finish_reason is not None

    def _new_detokenizer(self) -> Detokenizer:
        end = self._open_text
        if end is None:
            return Detokenizer(self._tokenizer, self._before)
        return Detokenizer.resumed(self._tokenizer, self._before, end.held, has_text=end.has_text)

    def leave_open(self) -> tuple[OpenText, str]:
        """The end of the text, for it to go on elsewhere, when the output is complete.

        Returns:
            What is to travel, and the text that was not given out: the text that goes on begins
            with it, but for bytes that still become a character.
        """
        detokenizer = self._detokenizer or self._new_detokenizer()
        pending = "" if self._stop_finder is None else self._stop_finder.rest
        end = OpenText(pending, detokenizer.held, detokenizer.has_text)
        return end, pending + detokenizer.held_text

    @property
    def text(self) -> str:
        """The text so far, without the stop string and what follows it."""
        return "".join(self._pieces)

    @property
    def logprob(self) -> float:
        """Sum of the tokens' log-probabilities, added in order."""
        return total_logprob(self.logprobs)


class Outputs:
    """All outputs of one decoding while their tokens come.

    Args:
        decoding: of the client's request; a decode request with stop strings has one output.
        tokenizer: of the tokens that come.
        continues_prompt: whether outputs go on from their prompt, or are texts of their own.
        stop: strings that end an output; its decode request is then released.
        offsets: whether it is wanted where each token's text begins.
        open_texts: of the decode requests whose text goes on as if it had never ended, its end.
        stays_open: whether the outputs will go on: see :class:`Output`.
    """

    def __init__(
        self,
        decoding: Decoding,
        tokenizer: Tokenizer,
        *,
        continues_prompt: bool,
        stop: Sequence[str] = (),
        offsets: bool = False,
        open_texts: Mapping[int, OpenText] | None = None,
        stays_open: bool = False,
    ) -> None:
        self._decoding = decoding
        self._tokenizer = tokenizer
        self._stop = stop
        self._offsets = offsets
        self._open_texts = open_texts or {}
        self._stays_open = stays_open
        self._before = {
            request.request_id: self._tokens_before(request) if continues_prompt else ()
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
                self._tokenizer,
                before,
                self._stop,
                offsets=self._offsets,
                open_text=self._open_texts.get(event.request_id),
                stays_open=self._stays_open,
            )
        text = output.add(event)
        if output.finish_reason is FinishReason.STOP:
            self._decoding.release(event.request_id)
        return output, text

    def _tokens_before(self, request: DecodeRequest) -> Sequence[int]:
        if request.request_id in self._open_texts and request.resume is not None:
            return request.resume.window
        return request.prompt

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
