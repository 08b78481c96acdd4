"""Tokens to text, a token at a time: each adds what it says, and no text changes afterwards.

The pieces of a text are together exactly what :func:`models.tokenizers.continuation` makes of
all of its tokens at once, and a token takes the same time however long the text is by then.
Other servers decode the last few tokens again with each new one (the prefix and read offsets of
vLLM and TGI); here a single token that never changes stands for all the text before.
"""

from collections.abc import Sequence

from models.tokenizers import EOS_ID, UNK_ID, Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_HELD_TOKENS = 3
"""Most bytes at the end of a text that may yet become a character: it has four at most."""


class Detokenizer:
    """The text of one output while its tokens come.

    Args:
        tokenizer: of the tokens that come.
        before: the tokens of the text that goes on; empty for a text of its own.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        # What is decoded in front of the tokens, and the characters that it makes itself. No
        # tokenizer here looks further back than one token.
        self._context = list(before[-1:])
        self._context_characters = 0
        # Bytes that make no character yet, and the U+FFFD that are shown for them.
        self._held: list[int] = []
        self._held_text = ""
        if tokenizer.decode(self._context):
            self._go_on_behind_text()

    @classmethod
    def resumed(
        cls, tokenizer: Tokenizer, tokens: Sequence[int], held: int, *, has_text: bool
    ) -> "Detokenizer":
        """One that goes on where another stopped.

        Args:
            tokenizer: of the tokens that come.
            tokens: the last ones of the text, :attr:`held` and one more at least.
            held: how many of them the other held.
            has_text: what the other's was.
        """
        split = len(tokens) - held
        resumed = cls(tokenizer, tokens[:split])
        if has_text:
            resumed._go_on_behind_text()
        resumed._held = list(tokens[split:])
        resumed._held_text = resumed._decode(resumed._held) if held else ""
        return resumed

    @property
    def held(self) -> int:
        """Tokens at the end of the text that make no character yet."""
        return len(self._held)

    @property
    def held_text(self) -> str:
        """What is shown for them where no more tokens come."""
        return self._held_text

    @property
    def has_text(self) -> bool:
        """Whether the tokens before those have made any text."""
        return self._context_characters > 0

    def add(self, tokens: Sequence[int], *, last: bool) -> str:
        """Take the next tokens.

        Args:
            tokens: any number of them.
            last: whether no more will come; then nothing is held back.

        Returns:
            The text that they add, without bytes at its end that may yet become a character.
        """
        if not last:
            return "".join([self._add(token) for token in tokens])
        text = self._decode([*self._held, *tokens])
        self._held.clear()
        self._held_text = ""
        return text

    def _add(self, token: int) -> str:
        if token <= EOS_ID:
            return ""
        self._held.append(token)
        text = self._decode(self._held)
        # Bytes without a character are shown as one U+FFFD each, which goes when they get one.
        # So a text that did not grow ends with a whole character, be that a true U+FFFD.
        if not text.endswith(_REPLACEMENT) or len(text) <= len(self._held_text):
            self._held.clear()
            self._held_text = ""
            if text:
                self._go_on_behind_text()
            elif not self._context_characters:
                # A text may begin with tokens that say nothing; the newest tells the others.
                self._context = [token]
            return text
        if len(self._held) <= _MAX_HELD_TOKENS:
            self._held_text = text
            return ""
        # The oldest of so many belongs to no character.
        del self._held[0]
        self._held_text = self._decode(self._held)
        return text[: len(text) - len(self._held_text)]

    def _go_on_behind_text(self) -> None:
        """Behind any text tokens say the same: the first token that makes some stands for it."""
        if not self._context_characters:
            decode, size = self._tokenizer.decode, self._tokenizer.vocabulary_size
            stand_in = next(token for token in range(UNK_ID, size) if decode([token]))
            self._context, self._context_characters = [stand_in], len(decode([stand_in]))

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode([*self._context, *tokens])[self._context_characters :]
