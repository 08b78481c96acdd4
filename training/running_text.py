"""Running text as a language model reads it: by several rows, each from its own place on.

Shape legend: ``N`` rows, ``T`` positions in a batch, ``L`` positions a row reads in an epoch.
"""

import bisect
import random
import re
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint_schema import DataSource
from models.preparation import PREPARATIONS
from models.tokenizers import BOS_ID, CharacterTokenizer, Tokenizer, WordTokenizer
from models.vocabulary import TableTokenizer
from training.distributed import Processes
from training.preset import Background, Optimization, TextData
from training.sources import DataError, read_data
from training.text import split_held_out

TextBatch = tuple[Tensor, Tensor, bool]
"""Inputs and targets ``[N, T]`` int64, and whether the rows begin anew."""


class RunningText:
    """A text in tokens, dealt out to the rows of batches.

    Args:
        text: what is read.
        tokenizer: makes its tokens.
        settings: rows, positions in a batch, and the seed.
        processes: that train together; each takes its share of the rows.
        name: of the text, for what is wrong with it.
        reads_bos: whether rows begin with ``<bos>``, as the model that reads them does.

    Raises:
        DataError: the text is too short for so many rows.
        ValueError: there are fewer rows than processes.
    """

    def __init__(
        self,
        text: str,
        tokenizer: Tokenizer,
        settings: Optimization,
        processes: Processes,
        name: str,
        *,
        reads_bos: bool = True,
    ) -> None:
        self.text = text = text_as_read(tokenizer, text)
        self.tokens = torch.tensor(tokenizer.encode(text), dtype=torch.int64)
        self._reads_bos = reads_bos
        self._settings = settings
        self._processes = processes
        self._rows, size = settings.batch_rows or 1, len(self.tokens)
        if size < 2 * self._rows:
            raise DataError(
                f"{name}: {size} tokens are too few for {self._rows} rows; "
                "lower training.batch_rows"
            )
        if self._rows < processes.count:
            raise ValueError(
                f"{processes.count} processes need as many rows: raise training.batch_rows"
            )
        # A row that begins a paragraph teaches the model how texts begin, after <bos>.
        paragraphs = _token_positions(tokenizer, text, r"\n\s*\n\s*")
        self._beginnings = [0, *paragraphs, size] if paragraphs else []

    def batches(self, epoch: int) -> Iterator[TextBatch]:
        """The batches of an epoch, which follow each other in the text.

        Every epoch begins at another random offset, as in the book: below the sequence length,
        or anywhere in a row's stretch where each row goes on to the next paragraph. Of several
        processes each is given its share of the rows.
        """
        settings, rows, size = self._settings, self._rows, len(self.tokens)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
        length = size // rows
        offsets = length if self._beginnings else min(settings.sequence_length, length)
        offset = int(torch.randint(offsets, (1,), generator=generator))
        own = range(rows)[self._processes.rows(rows)]
        firsts = [self._first_position(row * length + offset, length) for row in own]
        # The text is read as a ring.
        index = (torch.tensor(firsts)[:, None] + torch.arange(length - self._reads_bos)) % size
        begin = torch.full((len(own), int(self._reads_bos)), BOS_ID)
        stream = torch.cat([begin, self.tokens[index]], dim=1)
        last = stream.shape[1] - 1
        for position in range(0, last, settings.sequence_length):
            end = min(position + settings.sequence_length, last)
            yield stream[:, position:end], stream[:, position + 1 : end + 1], position == 0

    def _first_position(self, position: int, length: int) -> int:
        """Where a row begins: the next paragraph, unless the next row may begin there too."""
        later = bisect.bisect_left(self._beginnings, position)
        if later < len(self._beginnings) and self._beginnings[later] < position + length:
            return self._beginnings[later]
        return position


def text_as_read(tokenizer: Tokenizer, text: str) -> str:
    """A text as its tokens stand for it: what a tokenizer prepares, it prepares only once.

    What SentencePiece normalises stays as it is: figures are per character of the raw text.
    """
    return tokenizer.prepare(text) if isinstance(tokenizer, TableTokenizer) else text


def read_parts(
    data: TextData, data_location: str | None, cache_dir: Path
) -> tuple[str, str, DataSource]:
    """Read the text of a preset and cut off what is held out.

    Args:
        data: the preset's.
        data_location: another text to read instead, or None.
        cache_dir: where downloads are kept.

    Returns:
        The text to train on, the held-out text (empty where nothing is held out), both
        prepared, and what was read.

    Raises:
        DataError: the text cannot be read or is too short.
    """
    text, source = read_data(data.source, data_location, cache_dir)
    text = PREPARATIONS[data.preparation](text)[: data.first_characters]
    if len(text) < 2:
        raise DataError(f"{source.name}: {len(text)} characters are too few to train on")
    if not data.held_out_share:
        return text, "", source
    return *split_held_out(text, data.held_out_share), source


def read_background(
    background: Background, data: TextData, seed: int, cache_dir: Path
) -> tuple[str, DataSource]:
    """Read the text that comes before a preset's own.

    Args:
        background: what to read of it.
        data: the preset's own text, which is prepared in the same way.
        seed: of the order of the lines, where only a column is read: such lists are sorted.
        cache_dir: where downloads are kept.

    Returns:
        The text, prepared, and what was read.

    Raises:
        DataError: the text cannot be read, or has no such column.
    """
    text, source = read_data(background.source, None, cache_dir)
    if background.column is not None:
        found = []
        # U+2028 and the like end no line.
        for number, line in enumerate(text.split("\n"), 1):
            columns = line.removesuffix("\r").split("\t")
            if line and len(columns) <= background.column:
                raise DataError(
                    f"{source.name}: line {number} has no column {background.column} (from 0)"
                )
            if line:
                found.append(columns[background.column])
        lines = list(dict.fromkeys(found))
        random.Random(seed).shuffle(lines)
        text = "\n".join(lines)
    return PREPARATIONS[data.preparation](text), source


def _token_positions(tokenizer: Tokenizer, text: str, pattern: str) -> list[int]:
    """Token positions right behind each match of a pattern, but for the text's own two ends.

    None where the tokenizer does not say which token stands where.
    """
    begin = len(text) - len(text.lstrip())
    ends = [match.end() for match in re.finditer(pattern, text)]
    ends = [end for end in ends if begin < end < len(text)]
    if isinstance(tokenizer, CharacterTokenizer):
        return ends
    if isinstance(tokenizer, WordTokenizer):
        pieces = [text[first:last] for first, last in pairwise([0, *ends])]
        return list(accumulate(len(piece.split()) for piece in pieces))
    return []
