"""How good a model is: perplexity, and the textbook's BLEU."""

import math
from collections import Counter
from collections.abc import Sequence


def perplexity(total_nll: float, tokens: int) -> float:
    """Give the exponential of the mean negative log-likelihood per token.

    Args:
        total_nll: sum of the negative natural log-likelihoods of all tokens.
        tokens: how many tokens the sum covers.

    Returns:
        At least 1 for a true sum; infinity where the exponential overflows.

    Raises:
        ValueError: there is no token.
    """
    if tokens < 1:
        raise ValueError(f"perplexity needs at least one token, not {tokens}")
    try:
        return math.exp(total_nll / tokens)
    except OverflowError:
        return math.inf


def textbook_bleu(prediction: Sequence[str], label: Sequence[str], k: int) -> float:
    r"""Score one prediction against one label as *Dive into Deep Learning* does.

    .. math::
        \exp(\min(0, 1 - len_{label} / len_{pred})) \prod_{n=1}^{k} p_n^{1/2^n}

    where :math:`p_n` is the share of the prediction's n-grams that occur in the label, each
    counted at most as often as the label has it (section 10.7.6,
    https://d2l.ai/chapter_recurrent-modern/seq2seq.html). It is not the BLEU of Papineni et
    al. (2002), which weighs all n alike and is taken over a whole corpus.

    As in the book's code, the product ends at the prediction's length: a prediction has no
    n-gram longer than itself. The cases that the book leaves open:

    * an empty prediction scores 0, but 1 against an empty label, which it equals;
    * any other prediction scores 0 against an empty label.

    Args:
        prediction: the tokens that were produced.
        label: the tokens that should have been.
        k: longest n-gram to match, at least 1.

    Returns:
        From 0 (no token in common) to 1 (equal).

    Raises:
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"the longest n-gram must have at least 1 token, not {k}")
    if not prediction:
        return 0.0 if label else 1.0
    score = math.exp(min(0.0, 1 - len(label) / len(prediction)))
    for n in range(1, min(k, len(prediction)) + 1):
        predicted = _ngrams(prediction, n)
        matches = (predicted & _ngrams(label, n)).total()
        score *= (matches / predicted.total()) ** (0.5**n)
    return score


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))
