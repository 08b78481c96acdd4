"""From the tokens of decode requests to their outputs: one collector for every endpoint."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from app.engine.request import FinishReason, GeneratedToken, TokenEvent
from app.service.decoding import Decoding
from models.tokenizers import Tokenizer, continuation


@dataclass(slots=True)
class Output:
    """One output while its tokens come, and whether a stop string ended it.

    A stop string may span tokens and begin inside one, so it is sought in the text of all
    tokens so far.

    Attributes:
        tokenizer: turns its tokens into text.
        before: the tokens that it continues; empty for a text of its own.
        stop: strings that end it.
        tokens: what came until now.
        finish_reason: set once it is complete.
    """

    tokenizer: Tokenizer
    before: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    tokens: list[GeneratedToken] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    _stopped_text: str | None = None

    def add(self, event: TokenEvent) -> None:
        """Take the next token; ignored when the output is complete."""
        if self.finish_reason is not None:
            return
        self.tokens.append(event.token)
        self.finish_reason = event.finish_reason
        if self.stop:
            text = self.text
            found = [place for stop in self.stop if (place := text.find(stop)) >= 0]
            if found:
                self.finish_reason = FinishReason.STOP
                self._stopped_text = text[: min(found)]

    @property
    def text(self) -> str:
        """The text so far, without the stop string and what follows it."""
        if self._stopped_text is not None:
            return self._stopped_text
        return continuation(self.tokenizer, self.before, [token.token for token in self.tokens])

    @property
    def logprob(self) -> float:
        """Sum of the tokens' log-probabilities, added in order."""
        return sum((token.logprob for token in self.tokens), start=0.0)


async def collect_outputs(
    decoding: Decoding,
    tokenizer: Tokenizer,
    *,
    continues_prompt: bool,
    stop: Sequence[str] = (),
) -> dict[int, list[Output]]:
    """Decode everything and put the tokens together.

    Args:
        decoding: not begun yet; a request with stop strings has a single output.
        tokenizer: of the tokens that come.
        continues_prompt: whether outputs go on from their prompt, or are texts of their own.
        stop: strings that end an output; its request is then released.

    Returns:
        The outputs of each request, by its id: all that exist, which for a beam search may be
        fewer than were asked for.

    Raises:
        UnavailableError: the engine takes no more, or failed.
        DeadlineError: the time is up.
    """
    before = {
        request.request_id: request.prompt if continues_prompt else ()
        for request in decoding.requests
    }
    outputs: dict[int, dict[int, Output]] = {request_id: {} for request_id in before}
    async with aclosing(decoding.tokens()) as tokens:
        async for event in tokens:
            own = outputs[event.request_id]
            if event.output_index not in own:
                own[event.output_index] = Output(tokenizer, before[event.request_id], tuple(stop))
            output = own[event.output_index]
            output.add(event)
            if output.finish_reason is FinishReason.STOP:
                decoding.release(event.request_id)
    for own in outputs.values():
        if not own or any(output.finish_reason is None for output in own.values()):
            raise RuntimeError("the engine ended a request without ending its outputs")
    return {
        request_id: [own[index] for index in sorted(own)] for request_id, own in outputs.items()
    }
