"""Limits that stand in the settings, checked alike for every API dialect."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.exceptions import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for.

    Attributes:
        max_texts: texts to be decoded.
        max_segments: hypotheses to be scored.
        max_characters: characters of one text.
        max_new_tokens: tokens generated for one text.
        default_max_new_tokens: what ``/generate`` writes when the request says nothing.
        max_alignment_cells: attention weights that the alignments of one request may have, and
            candidates that its beam traces may.
        max_decodings: decoding requests that the engine's queue can hold.
        timeout_seconds: time for the whole request, unless its client gives it less.
    """

    max_texts: int
    max_segments: int
    max_characters: int
    max_new_tokens: int
    default_max_new_tokens: int
    max_alignment_cells: int
    max_decodings: int
    timeout_seconds: float

    @property
    def max_document_characters(self) -> int:
        """Characters that texts which are taken apart may have all together."""
        return self.max_texts * self.max_characters

    def check_texts(self, field: str, texts: Sequence[str], max_texts: int | None = None) -> None:
        """Hold the number of texts and the length of each against the limits.

        Args:
            field: the field that they came in.
            texts: one or more texts.
            max_texts: the limit for their number; None means :attr:`max_texts`.

        Raises:
            InvalidRequestError: there are too many, or one is too long.
        """
        self.check_number(field, len(texts), max_texts)
        for index, text in enumerate(texts):
            if len(text) > self.max_characters:
                where = f"{field}.{index}" if len(texts) > 1 else field
                raise InvalidRequestError(
                    where,
                    f"{len(text)} characters are more than the {self.max_characters} allowed",
                )

    def check_number(self, field: str, count: int, max_texts: int | None = None) -> None:
        """Hold a number of texts (or of states to go on from) against the limit.

        Args:
            field: the field that they came in.
            count: how many they are.
            max_texts: the limit; None means :attr:`max_texts`.

        Raises:
            InvalidRequestError: they are too many.
        """
        most = self.max_texts if max_texts is None else max_texts
        if count > most:
            raise InvalidRequestError(field, f"{count} texts are more than the {most} allowed")

    def check_document(self, field: str, texts: Sequence[str]) -> None:
        """Hold texts that will be taken apart against the limits for all texts of a request.

        Args:
            field: the field that they came in.
            texts: one or more texts.

        Raises:
            InvalidRequestError: there are too many, or together they are too long.
        """
        self.check_texts(field, [""] * len(texts))
        characters = sum(map(len, texts))
        if characters > self.max_document_characters:
            raise InvalidRequestError(
                field,
                f"{characters} characters are more than the {self.max_texts} times "
                f"{self.max_characters} allowed in all texts together",
            )

    def check_sentences(self, field: str, count: int) -> None:
        """Hold the sentences of texts that are taken apart against the queue's room.

        Args:
            field: the field that the texts came in.
            count: sentences, and parts of sentences, to be decoded.

        Raises:
            InvalidRequestError: they could never wait all at once.
        """
        if count > self.max_decodings:
            raise InvalidRequestError(
                field,
                f"there are more than the {self.max_decodings} sentences and parts of sentences "
                "that can wait at once: send fewer at a time",
            )

    def check_sentence(self, field: str, sentence: str) -> None:
        """Hold the length of a sentence of a longer text against the limit.

        Raises:
            InvalidRequestError: it is too long.
        """
        if len(sentence) > self.max_characters:
            raise InvalidRequestError(
                field,
                f"a sentence of {len(sentence)} characters is longer than the "
                f"{self.max_characters} allowed",
            )

    def check_new_tokens(self, max_new_tokens: int) -> None:
        """Hold a requested number of tokens against the limit.

        Raises:
            InvalidRequestError: it is too large.
        """
        if max_new_tokens > self.max_new_tokens:
            raise InvalidRequestError(
                "max_new_tokens",
                f"{max_new_tokens} is more than the {self.max_new_tokens} allowed",
            )

    def timeout_of(self, timeout_seconds: float | None) -> float:
        """The time that a request gets which asks for this much; None asks for all there is.

        Raises:
            InvalidRequestError: it asks for more.
        """
        if timeout_seconds is None:
            return self.timeout_seconds
        if timeout_seconds > self.timeout_seconds:
            raise InvalidRequestError(
                "timeout_seconds",
                f"{timeout_seconds:g} is more than the {self.timeout_seconds:g} allowed",
            )
        return timeout_seconds

    def check_alignment_cells(self, cells: int) -> None:
        """Hold the size that a request's alignments may reach against the limit.

        Args:
            cells: weights, summed over texts and hypotheses, if each grows to its full length.

        Raises:
            InvalidRequestError: it is too large.
        """
        if cells > self.max_alignment_cells:
            raise InvalidRequestError(
                "alignments",
                f"they may reach {cells} weights (texts x hypotheses x max_new_tokens x source "
                f"tokens), more than the {self.max_alignment_cells} allowed: send fewer or shorter "
                "texts, or set max_new_tokens or, where several hypotheses are asked for, "
                "beam_size lower",
            )

    def check_beam_trace_candidates(self, candidates: int) -> None:
        """Hold the size that a request's beam traces may reach against the limit.

        Args:
            candidates: kept ones, summed over texts, if each search grows to its full length.

        Raises:
            InvalidRequestError: it is too large.
        """
        if candidates > self.max_alignment_cells:
            raise InvalidRequestError(
                "beam_trace",
                f"they may reach {candidates} candidates (texts x beam_size x max_new_tokens), "
                f"more than the {self.max_alignment_cells} allowed: send fewer or shorter texts, "
                "or set beam_size or max_new_tokens lower",
            )
