"""Training a language model on one long text.

The text is read by several rows at once, each from its own place on, and the state is carried
from one batch to the next while the gradient is cut (truncated backpropagation through time:
*Dive into Deep Learning*, sections 9.5 and 9.7).

Shape legend: ``N`` rows, ``T`` positions in a batch, ``L`` positions a row reads in an epoch.
"""

import bisect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from models.config import LanguageModelConfig
from models.decoding.params import DecodingParams
from models.decoding.step import decode_corpus
from models.evaluation import perplexity
from models.language_model import LanguageModel, NotGenerativeError
from models.recurrent import StackState
from models.tokenizers import BOS_ID, CharacterTokenizer, Tokenizer, WordTokenizer
from training.preset import Preset, TextData
from training.sources import DataError, read_data
from training.task import BatchLoss
from training.text import book_characters, split_held_out
from training.tokenization import train_tokenizer

EVALUATION_CHUNK = 1024
"""Positions that an evaluation reads at once; the state is carried, so any number will do."""


class LanguageModelling:
    """See :class:`training.task.Task`.

    Args:
        preset: the whole preset.
        data: its text.
        data_location: another text to read instead, or None.
        cache_dir: where downloads are kept.
        device: where to train.

    Raises:
        DataError: the text cannot be read or is too short for the batches asked for.
    """

    languages = None

    def __init__(
        self,
        preset: Preset,
        data: TextData,
        data_location: str | None,
        cache_dir: Path,
        device: torch.device,
    ) -> None:
        self._settings = preset.training
        self._device = device
        text, source = read_data(data.source, data_location, cache_dir)
        text = book_characters(text) if data.preparation == "book" else text
        text = text[: data.first_characters]
        self._held_out = ""
        if data.held_out_share:
            text, self._held_out = split_held_out(text, data.held_out_share)
        self._text = text
        self.sources = [source]
        tokenizer = train_tokenizer(preset.tokenizer, [text])
        self._tokenizer = tokenizer
        self.tokenizers: dict[str, Tokenizer] = {"text": tokenizer}
        self._tokens = tokenizer.encode(text)
        rows = preset.training.batch_rows or 1
        if len(self._tokens) < 2 * rows:
            raise DataError(
                f"{source.name}: {len(self._tokens)} tokens are too few for "
                f"{rows} rows; lower training.batch_rows"
            )
        # A row that begins a paragraph teaches the model how texts begin, after <bos>.
        self._beginnings = _token_positions(tokenizer, text, r"\n\s*\n\s*")
        config = LanguageModelConfig.model_validate(
            {**preset.model, "vocabulary_size": tokenizer.vocabulary_size}
        )
        self.model = LanguageModel(config).to(device)
        self._state: StackState | None = None

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
        """Inputs and targets ``[N, T]``, and whether the rows begin anew.

        Every epoch begins at another random offset, as in the book.
        """
        settings = self._settings
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
        rows, size = settings.batch_rows or 1, len(self._tokens)
        length = size // rows
        offset = int(
            torch.randint(min(settings.sequence_length, length), (1,), generator=generator)
        )
        streams = []
        for row in range(rows):
            first = row * length + offset
            later = bisect.bisect_left(self._beginnings, first)
            if later < len(self._beginnings):
                first = self._beginnings[later]
            cyclic = (self._tokens + self._tokens[:length])[first % size :][: length - 1]
            streams.append([BOS_ID, *cyclic])
        stream = torch.tensor(streams, device=self._device)
        last = stream.shape[1] - 1
        for position in range(0, last, settings.sequence_length):
            end = min(position + settings.sequence_length, last)
            yield stream[:, position:end], stream[:, position + 1 : end + 1], position == 0

    def loss(self, batch: tuple[Tensor, Tensor, bool]) -> BatchLoss:
        """Forward pass of one batch; the state goes over to the next, the gradient does not."""
        inputs, targets, begins = batch
        logits, state = self.model(inputs, None if begins else self._state)
        self._state = tuple(tuple(part.detach() for part in layer) for layer in state)
        objective = functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        return BatchLoss(objective, objective.detach() * targets.numel(), targets.numel())

    def carried(self) -> list[Tensor]:
        """The state after the last batch."""
        return [part for layer in self._state or () for part in layer]

    def restore(self, carried: list[Tensor]) -> None:
        """Put back the state."""
        if not carried:
            return
        parts = iter(carried)
        layers = self.model.stack.initial_state(1)
        self._state = tuple(tuple(next(parts).to(self._device) for _ in layer) for layer in layers)

    def validate(self) -> dict[str, float]:
        """Loss and perplexity of the held-out text."""
        if not self._held_out:
            return {}
        loss = text_loss(self.model, self._tokenizer.encode(self._held_out))
        return {"loss": loss, "perplexity": perplexity(loss, 1)}

    def final_metrics(self) -> dict[str, float]:
        """Perplexity a character, of the held-out text and of the training text."""
        metrics = {}
        for name, text in (("held_out", self._held_out), ("training", self._text)):
            if text:
                tokens = self._tokenizer.encode(text)
                loss = text_loss(self.model, tokens)
                metrics[f"{name}_perplexity"] = perplexity(loss * len(tokens), len(text))
        return {name: round(value, 4) for name, value in metrics.items()}

    def metrics_note(self) -> str:
        """See :class:`training.task.Task`."""
        where = (
            f"the last {len(self._held_out)} characters, which were held out, and on the "
            "training text"
            if self._held_out
            else "the training text itself"
        )
        return (
            f"Perplexity per character in float32 on {where}, read as one row from <bos> on "
            "with the state carried through."
        )

    def sample(self) -> str:
        """A greedy continuation of the text's first words."""
        prompt = [BOS_ID, *self._tokenizer.encode(self._text[:20])]
        try:
            _, outputs = next(decode_corpus(self.model, [prompt], DecodingParams(80)))
        except NotGenerativeError as error:
            return str(error)
        return self._text[:20] + self._tokenizer.decode(outputs[0].token_ids)


@torch.inference_mode()
def text_loss(model: LanguageModel, tokens: Sequence[int]) -> float:
    """Mean negative log-likelihood (nats a token) of a text, read as one row from ``<bos>`` on.

    The state is carried through the whole text.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    stream = torch.tensor([[BOS_ID, *tokens]], device=device)
    state: StackState | None = None
    total = 0.0
    for first in range(0, len(tokens), EVALUATION_CHUNK):
        last = min(first + EVALUATION_CHUNK, len(tokens))
        logits, state = model(stream[:, first:last], state)
        targets = stream[0, first + 1 : last + 1]
        total += float(functional.cross_entropy(logits[0].double(), targets, reduction="sum"))
    model.train(training)
    return total / max(len(tokens), 1)


def _token_positions(tokenizer: Tokenizer, text: str, pattern: str) -> list[int]:
    """Token positions right behind each match of a pattern, the text's beginning among them."""
    if isinstance(tokenizer, CharacterTokenizer):
        return [0, *(match.end() for match in re.finditer(pattern, text))]
    if isinstance(tokenizer, WordTokenizer):
        ends = [match.end() for match in re.finditer(pattern, text)]
        return [0, *(len(text[:end].split()) for end in ends)]
    return [0]
