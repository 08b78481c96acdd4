"""Training a language model on one long text.

The text is read by several rows at once, each from its own place on, and the state is carried
from one batch to the next while the gradient is cut (truncated backpropagation through time:
*Dive into Deep Learning*, sections 9.5 and 9.7).

Shape legend: ``N`` rows, ``T`` positions in a batch, ``L`` positions a row reads in an epoch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from models.checkpoint_schema import DataSource
from models.config import LanguageModelConfig
from models.decoding.corpus import decode_corpus
from models.decoding.params import DecodingParams
from models.evaluation import perplexity
from models.language_model import LanguageModel, NotGenerativeError
from models.recurrent import StackState
from models.tokenizers import (
    BOS_ID,
    CharacterTokenizer,
    Tokenizer,
    WordTokenizer,
    continuation,
)
from training.distributed import Processes
from training.preset import Preset, TextData
from training.running_text import (
    RunningText,
    TextBatch,
    read_background,
    read_parts,
    text_as_read,
)
from training.samples import Sample
from training.sources import DataError
from training.task import BatchLoss, evaluation_mode
from training.tokenization import train_tokenizer

EVALUATION_CHUNK = 1024
"""Positions that an evaluation reads at once; the state is carried, so any number will do (but
for a bidirectional model, whose figures mean nothing anyway)."""


class LanguageModelling:
    """See :class:`training.task.Task`.

    Args:
        preset: the whole preset.
        data: its text.
        data_location: another text to read instead, or None.
        cache_dir: where downloads are kept.
        device: where to train.
        tokenizers: those of an initial checkpoint, or None to train new ones.
        processes: that train together; each takes its share of a batch's rows.

    Raises:
        DataError: the text cannot be read or is too short for the batches asked for.
        ValueError: there are fewer rows than processes.
    """

    languages = None

    def __init__(
        self,
        preset: Preset,
        data: TextData,
        data_location: str | None,
        cache_dir: Path,
        device: torch.device,
        tokenizers: Mapping[str, Tokenizer] | None = None,
        processes: Processes | None = None,
    ) -> None:
        processes = processes or Processes()
        self._device = device
        text, self._held_out, source = read_parts(data, data_location, cache_dir)
        self.sources = [source]
        background = ""
        if data.background:
            background, read = read_background(
                data.background, data, preset.training.seed, cache_dir
            )
            self.sources.append(read)
        tokenizer = (
            tokenizers["text"]
            if tokenizers
            else train_tokenizer(
                preset.tokenizer,
                [text, background] if background else [text],
                data.preparation,
                add_dummy_prefix=False,
            )
        )
        self._tokenizer = tokenizer
        self.tokenizers: dict[str, Tokenizer] = {"text": tokenizer}
        self._held_out = text_as_read(tokenizer, self._held_out)
        self._held_out_tokens = tokenizer.encode(self._held_out)
        if self._held_out and not self._held_out_tokens:
            raise DataError(
                f"{source.name}: the held-out end of the text has no tokens; "
                "change data.held_out_share"
            )
        config = LanguageModelConfig.model_validate(
            {**preset.model, "vocabulary_size": tokenizer.vocabulary_size}
        )

        def running(text: str, source: DataSource) -> RunningText:
            return RunningText(
                *(text, tokenizer, preset.training, processes, source.name),
                reads_bos=config.reads_bos,
            )

        self._text = running(text, source)
        self._background, self._background_epochs = self._text, 0
        if data.background:
            self._background = running(background, self.sources[1])
            self._background_epochs = data.background.epochs
        self.model = LanguageModel(config).to(device)
        self._state: StackState | None = None

    def batches(self, epoch: int) -> Iterator[TextBatch]:
        """Those of the background in the first epochs, where there is one, then the text's own."""
        text = self._background if epoch < self._background_epochs else self._text
        for inputs, targets, begins in text.batches(epoch):
            yield inputs.to(self._device), targets.to(self._device), begins

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

    def may_decide(self, epoch: int) -> bool:
        """See :class:`training.task.Task`; the background may be easier than the text."""
        return epoch >= self._background_epochs

    def validate(self) -> dict[str, float]:
        """Loss and perplexity of the held-out text."""
        if not self._held_out:
            return {}
        loss = text_loss(self.model, self._held_out_tokens)
        return {"loss": loss, "perplexity": perplexity(loss, 1)}

    def final_metrics(self) -> dict[str, float]:
        """Perplexity a character, of the held-out text and of the training text."""
        metrics = {}
        for name, text in (("held_out", self._held_out), ("training", self._text.text)):
            if text:
                metrics[f"{name}_perplexity"] = text_perplexity(self.model, self._tokenizer, text)
        return {name: round(value, 4) for name, value in metrics.items()}

    def metrics_note(self) -> str:
        """See :class:`training.task.Task`."""
        where = (
            f"the last {len(self._held_out)} characters, which were held out (but chose the best "
            "checkpoint), and on the training text"
            if self._held_out
            else "the training text itself"
        )
        return (
            f"Perplexity per character in float32 on {where}, read as one row from <bos> on "
            "with the state carried through."
        )

    def samples(self) -> list[Sample]:
        """A greedy continuation of the text's first words."""
        prompt = [BOS_ID, *self._text.tokens[:20].tolist()]
        try:
            with evaluation_mode(self.model):
                _, outputs = next(decode_corpus(self.model, [prompt], DecodingParams(80)))
        except NotGenerativeError as error:
            return [Sample(self._tokenizer.decode(prompt), str(error))]
        output = continuation(self._tokenizer, prompt, outputs[0].token_ids)
        return [Sample(self._tokenizer.decode(prompt), output)]


def text_perplexity(
    model: LanguageModel,
    tokenizer: Tokenizer,
    text: str,
    on_tokens: Callable[[int], object] | None = None,
) -> float:
    """Perplexity a character of a text, whatever its tokens: see :func:`text_loss`.

    Counted are the characters that the tokenizer reads: see
    :func:`training.running_text.text_as_read`.

    Args:
        model: in whatever precision it computes.
        tokenizer: the model's.
        text: at least one character.
        on_tokens: called with the number of tokens after each stretch that was read.

    Raises:
        ValueError: the text has one token, and the model reads one before it writes.
    """
    text = text_as_read(tokenizer, text)
    tokens = tokenizer.encode(text)
    loss = text_loss(model, tokens, on_tokens)
    if model.config.reads_bos:
        return perplexity(loss * len(tokens), len(text))
    if len(tokens) < 2:
        raise ValueError(f"{text!r} is one token: nothing is left for the model to predict")
    return perplexity(loss * (len(tokens) - 1), len(text) - _first_length(tokenizer, text))


def _first_length(tokenizer: Tokenizer, text: str) -> int:
    """Characters of a text's first token, known or not."""
    if isinstance(tokenizer, CharacterTokenizer):
        return 1
    if isinstance(tokenizer, WordTokenizer):
        return len(text.split(maxsplit=1)[0])
    return len(tokenizer.decode(tokenizer.encode(text)[:1]))


@torch.inference_mode()
def text_loss(
    model: LanguageModel,
    tokens: Sequence[int],
    on_tokens: Callable[[int], object] | None = None,
) -> float:
    """Mean negative log-likelihood (nats a token) of a text, read as one row from ``<bos>`` on.

    The state is carried through the whole text. A model that knows no ``<bos>`` reads from the
    first token on, which nothing is then asked about.

    Args:
        model: in whatever precision it computes.
        tokens: of the text, without ``<bos>``.
        on_tokens: called with the number of tokens after each stretch that was read.
    """
    device = next(model.parameters()).device
    begin = [BOS_ID] if model.config.reads_bos else []
    stream = torch.tensor([[*begin, *tokens]], device=device)
    count = max(stream.shape[1] - 1, 0)
    state: StackState | None = None
    total = 0.0
    with evaluation_mode(model):
        for first in range(0, count, EVALUATION_CHUNK):
            last = min(first + EVALUATION_CHUNK, count)
            logits, state = model(stream[:, first:last], state)
            targets = stream[0, first + 1 : last + 1]
            total += float(functional.cross_entropy(logits[0].double(), targets, reduction="sum"))
            if on_tokens:
                on_tokens(last - first)
    return total / max(count, 1)
