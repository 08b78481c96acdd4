"""The model's own decoding loop for a padded batch, as the peers run it.

Written as somebody would write it who serves a PyTorch model through a general server: pad the
batch, step until every row is done, return all answers together. The rules (tokens that are
never generated, length limit, length penalty, when a search is over) are Gatehouse's, so that
the answers can be compared.

Shape legend: ``N`` sentences, ``K`` hypotheses of each, ``V`` vocabulary size.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoint import read_checkpoint
from models.checkpoint_model import load_model
from models.decoding.sampling import NEVER_GENERATED
from models.encoder_decoder import EncoderDecoder, pad_tokens
from models.state import DecodeState
from models.tokenizers import BOS_ID, EOS_ID, PAD_ID

MAX_BATCH_SIZE = 64
BATCH_TIMEOUT_SECONDS = 0.005
LENGTH_PENALTY = 0.75
TOKENS_PER_SOURCE_TOKEN, SPARE_TOKENS = 3, 16
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_NEVER = torch.tensor(NEVER_GENERATED)
_NEGATIVE_INFINITY = float("-inf")


class Translator:
    """A translation checkpoint and its decoding loop.

    Args:
        checkpoint: the folder.
        precision: a key of :data:`PRECISIONS`.
        beam_size: 1 is greedy.
        num_threads: of PyTorch's operations.
    """

    def __init__(self, checkpoint: Path, precision: str, beam_size: int, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        info = read_checkpoint(checkpoint)
        self._source, self._target = info.tokenizers["source"], info.tokenizers["target"]
        model = load_model(info, torch.device("cpu"))
        if not isinstance(model, EncoderDecoder):
            raise TypeError(f"{checkpoint} is no translation model")
        self._model = model.to(PRECISIONS[precision])
        self._beam_size = beam_size

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Translate all texts in one batch."""
        prompts = [[*self._source.encode(text), EOS_ID] for text in texts]
        if self._beam_size == 1:
            rows = decode_greedy(self._model, prompts)
        else:
            rows = decode_beam(self._model, prompts, self._beam_size)
        return [self._target.decode(row) for row in rows]


def length_limits(prompts: Sequence[Sequence[int]]) -> Tensor:
    """How many tokens each sentence may have, ``[N]`` int64."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return TOKENS_PER_SOURCE_TOKEN * lengths + SPARE_TOKENS


def _start(model: EncoderDecoder, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, DecodeState]:
    """Encode a padded batch: the first token to feed ``[N]`` int64, and the decoder's state."""
    sources, lengths = pad_tokens(prompts, torch.device("cpu"))
    state = model.decoder.start(model.encoder(sources, lengths))
    return torch.full((len(prompts),), BOS_ID), state


def _reorder(state: DecodeState, rows: Tensor) -> DecodeState:
    """Rows ``[M]`` change places with others of their own sentence, which share its source."""
    return replace(replace(state, memory=None).select(rows), memory=state.memory)


@torch.inference_mode()
def decode_greedy(model: EncoderDecoder, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The most probable token at each step, until every row has ended."""
    tokens, state = _start(model, prompts)
    limits = length_limits(prompts)
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    steps = []
    for position in range(1, int(limits.max()) + 1):
        logits, state, _ = model.decoder.step(tokens, state)
        tokens = logits.index_fill_(1, _NEVER, _NEGATIVE_INFINITY).argmax(-1)
        steps.append(tokens.masked_fill(ended, PAD_ID))
        ended |= (tokens == EOS_ID) | (limits == position)
        if ended.all():
            break
    return _token_lists(torch.stack(steps, dim=1))


@torch.inference_mode()
def decode_beam(
    model: EncoderDecoder, prompts: Sequence[Sequence[int]], beam_size: int
) -> list[list[int]]:
    """The best hypothesis of a beam search for each sentence, until all searches are over.

    Every sentence keeps ``K`` slots. A finished hypothesis stays in its slot; the best
    continuations of the living ones take the other slots, in order.
    """
    count, width = len(prompts), beam_size
    tokens, state = _start(model, prompts)
    state = state.select(torch.arange(count).repeat_interleave(width))
    tokens = tokens.repeat_interleave(width)
    limits = length_limits(prompts)
    best_length = limits.double().pow(LENGTH_PENALTY)
    sentences = torch.arange(count)[:, None]
    # Only the first slot lives at first, or all would hold the same hypotheses.
    totals = torch.full((count, width), _NEGATIVE_INFINITY)
    totals[:, 0] = 0.0
    finished = torch.zeros(count, width, dtype=torch.bool)
    scores = torch.full((count, width), _NEGATIVE_INFINITY, dtype=torch.float64)
    texts = torch.empty(count, width, 0, dtype=torch.int64)
    for position in range(1, int(limits.max()) + 1):
        logits, state, _ = model.decoder.step(tokens, state)
        best, parents, chosen = _expand(logits, totals.masked_fill(finished, _NEGATIVE_INFINITY))
        # The j-th free slot of a sentence takes its j-th best continuation.
        rank = ((~finished).cumsum(1) - 1).clamp(min=0)
        slots = torch.arange(width).expand(count, width)
        parents = torch.where(finished, slots, parents.gather(1, rank))
        tokens = chosen.gather(1, rank).masked_fill(finished, PAD_ID)
        totals = torch.where(finished, totals, best.gather(1, rank))
        texts = torch.cat([texts[sentences, parents], tokens[:, :, None]], dim=2)
        state = _reorder(state, (sentences * width + parents).flatten())
        at_limit = (limits == position)[:, None]
        ending = ~finished & ((tokens == EOS_ID) | at_limit) & totals.isfinite()
        scores = torch.where(ending, totals.double() / position**LENGTH_PENALTY, scores)
        finished |= ending
        # No sum of log-probabilities rises: this is the best that a living one can reach.
        living = totals.masked_fill(finished, _NEGATIVE_INFINITY).amax(1).double()
        over = living / best_length <= scores.amax(1)
        finished |= over[:, None]
        if finished.all():
            break
        tokens = tokens.flatten()
    return _token_lists(texts[torch.arange(count), scores.argmax(1)])


def _expand(logits: Tensor, totals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The best ``K`` continuations of each sentence's hypotheses, best first.

    Args:
        logits: ``[N * K, V]``.
        totals: ``[N, K]``, sums of log-probabilities; minus infinity has no continuation.

    Returns:
        Their sums, parents and tokens, each ``[N, K]``.
    """
    count, width = totals.shape
    normaliser = logits.logsumexp(-1, keepdim=True)
    logits.index_fill_(1, _NEVER, _NEGATIVE_INFINITY)
    # The best K of a sentence are among the best K of each of its hypotheses.
    logprobs, candidates = logits.topk(width)
    sums = (totals.view(-1, 1) + logprobs - normaliser).view(count, width * width)
    best, index = sums.topk(width)
    return best, index // width, candidates.view(count, width * width).gather(1, index)


def _token_lists(texts: Tensor) -> list[list[int]]:
    """Padded rows ``[N, T]`` to lists without the padding."""
    lengths = (texts != PAD_ID).sum(1).tolist()
    return [row[:length] for row, length in zip(texts.tolist(), lengths, strict=True)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare what every peer's command line has."""
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--beam", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--port", type=int, required=True)


def make_translator(arguments: argparse.Namespace) -> Translator:
    """The translator that the options ask for."""
    return Translator(arguments.checkpoint, arguments.precision, arguments.beam, arguments.threads)
