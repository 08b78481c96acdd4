"""Minimum risk training: a model learns from how good its own translations are.

Teacher forcing asks for each token of the reference; what is measured in the end is the BLEU of
what a beam search finds. Minimum risk training (Shen et al. 2016) lowers the expected cost of the
hypotheses y that the search finds now for a source x,

    risk = sum over y of Q(y | x) (1 - BLEU(y, reference)),

where Q shares out probability among these hypotheses alone (equation 11 there), and BLEU is the
mean over the references that the training pairs have for the source: by one alone a model would
learn by heart which of several good translations stands there. Q follows the score by which a
beam ranks them, log P(y | x) / length^alpha, times a sharpness. The references' cross-entropy is
kept beside it, and the references are not among the hypotheses, as Edunov et al. 2018 (section 5)
found best.

Shape legend: ``N`` pairs, ``R`` hypotheses of all pairs, ``M`` their tokens.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import cast

import torch
from sacrebleu.metrics.bleu import BLEU
from torch import Tensor

from models.decoding.params import DecodingParams
from models.decoding.step import decode_corpus
from models.encoder_decoder import EncodedSource, pad_tokens
from models.placement import on_device
from models.precision import choose_precision, set_precision
from models.seq2seq import Seq2Seq, Seq2SeqDecoder
from models.tokenizers import BOS_ID
from training.batches import Batch
from training.token_logprobs import pad_rows, token_logprobs

LENGTH_PENALTY = 0.75
"""Alpha of the scores: the service's default."""


@dataclass(frozen=True)
class Hypotheses:
    """What a model says itself to the sources of some pairs.

    Attributes:
        pairs: of each hypothesis the place of its pair, rising.
        tokens: of each, ``<eos>`` last where the model ended it.
        costs: of each, from 0 (equal to the reference) to 1.
    """

    pairs: list[int]
    tokens: list[tuple[int, ...]]
    costs: list[float]


@torch.inference_mode()
def find_hypotheses(
    model: Seq2Seq,
    decode: Callable[[Sequence[int]], str],
    sources: Sequence[Sequence[int]],
    references: Sequence[Sequence[str]],
    max_new_tokens: Sequence[int],
    beam_size: int,
) -> Hypotheses:
    """Search by the weights as they are now, in the precision that the service would take.

    Args:
        model: in training; is left as it is.
        decode: target tokens to text.
        sources: N sources, ``<eos>`` included.
        references: of each source its translations, one at least. The cost of a hypothesis is
            the mean of what each of them says of it.
        max_new_tokens: of the hypotheses of each source.
        beam_size: hypotheses of each pair.

    Raises:
        ArithmeticError: the model's probabilities are not numbers.
    """
    device = next(model.parameters()).device
    params = [
        DecodingParams(
            max_new_tokens=length,
            beam_size=beam_size,
            num_outputs=beam_size,
            length_penalty=LENGTH_PENALTY,
        )
        for length in max_new_tokens
    ]
    found: dict[int, list[tuple[int, ...]]] = {}
    with torch.autocast(device.type, enabled=False):
        served = set_precision(copy.deepcopy(model).eval(), choose_precision("auto", device))
        rows = len(sources) * beam_size
        for place, outputs in decode_corpus(served, sources, params, max_rows=rows):
            found[place] = [output.token_ids for output in outputs]
    hypotheses = Hypotheses([], [], [])
    for place, own in enumerate(references):
        texts = {tokens: decode(tokens) for tokens in found[place]}
        costs = {
            tokens: 1 - fmean(sentence_bleu(text, reference) for reference in own)
            for tokens, text in texts.items()
        }
        hypotheses.pairs.extend([place] * len(costs))
        hypotheses.tokens.extend(costs)
        hypotheses.costs.extend(costs.values())
    return hypotheses


_SENTENCE_BLEU = BLEU(smooth_method="add-k", smooth_value=1, effective_order=True)


def sentence_bleu(hypothesis: str, reference: str) -> float:
    """BLEU of one sentence from 0 to 1, a match added to all n-grams of two words or more.

    Lin & Och 2004, section 4: without it, most sentences would have no BLEU at all.
    """
    return float(_SENTENCE_BLEU.sentence_score(hypothesis, [reference]).score) / 100


def summed_risk(
    model: Seq2Seq, encoded: EncodedSource, batch: Batch, hypotheses: Hypotheses, sharpness: float
) -> Tensor:
    """The risk of the pairs of a batch, each counted as often as its reference has tokens.

    So it weighs beside their cross-entropy, and in the BLEU of a corpus.

    Args:
        model: in training.
        encoded: the batch's sources as it has read them.
        batch: N pairs.
        hypotheses: of these.
        sharpness: see :func:`expected_costs`.
    """
    device = batch.targets.device
    decoder = cast(Seq2SeqDecoder, model.decoder)
    pairs = on_device(hypotheses.pairs, device)
    targets, lengths = pad_tokens(hypotheses.tokens, device)
    size = targets.shape[1]
    real = [
        row * size + position
        for row, tokens in enumerate(hypotheses.tokens)
        for position in range(len(tokens))
    ]
    places = on_device(real, device)
    begin = torch.full_like(targets[:, :1], BOS_ID)
    inputs = torch.cat([begin, targets[:, :-1]], dim=1)
    features = decoder.features(inputs, decoder.start(encoded.select(pairs)))
    features = features.flatten(0, 1).index_select(0, places)
    tokens = targets.flatten().index_select(0, places)
    narrow = decoder.narrow(pad_rows(features))
    logprobs = token_logprobs(narrow, decoder.output_layer, tokens)
    costs = torch.tensor(hypotheses.costs, dtype=logprobs.dtype, device=device)
    risks = expected_costs(logprobs, lengths, pairs, costs, sharpness)
    return (risks * batch.target_lengths).sum()


def expected_costs(
    logprobs: Tensor, lengths: Tensor, pairs: Tensor, costs: Tensor, sharpness: float
) -> Tensor:
    """The expected cost of the hypotheses of each pair.

    Args:
        logprobs: ``[M]`` float, of the hypotheses' tokens, one hypothesis after the other.
        lengths: ``[R]`` int64, their tokens.
        pairs: ``[R]`` int64, the places of their pairs, rising, none left out.
        costs: ``[R]`` float.
        sharpness: of the distribution over the hypotheses of a pair: 0 makes all equal.

    Returns:
        ``[N]``, of the type of the log-probabilities.
    """
    rows = torch.repeat_interleave(lengths)
    sums = logprobs.new_zeros(len(lengths)).index_add(0, rows, logprobs)
    scores = sharpness * sums / lengths.to(sums.dtype) ** LENGTH_PENALTY
    number = int(pairs[-1]) + 1
    highest = scores.new_full((number,), -torch.inf)
    highest = highest.scatter_reduce(0, pairs, scores.detach(), "amax")
    shares = (scores - highest[pairs]).exp()
    masses = shares.new_zeros(number).index_add(0, pairs, shares)
    weighted = shares.new_zeros(number).index_add(0, pairs, shares * costs)
    return weighted / masses
