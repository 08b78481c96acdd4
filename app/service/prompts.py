"""From the texts that are to be continued to the tokens that a model reads."""

from collections.abc import Sequence

from app.exceptions import InvalidRequestError
from models.tokenizers import BOS_ID, Tokenizer

_MAX_CHARACTERS_NAMED = 10


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
