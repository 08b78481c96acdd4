"""BLEU as papers on Multi30k give it: lower-cased and tokenized by the rules of Moses.

The rules are those of the script with which the data set was prepared (lower case, punctuation
normalised, tokenized), by way of sacremoses. Such scores compare with those papers only:
sacreBLEU's own tokenization of the raw text is what compares everywhere else.
"""

from collections.abc import Sequence

from sacrebleu.metrics.bleu import BLEU


def moses_bleu(hypotheses: Sequence[str], references: Sequence[str], language: str) -> float:
    """Corpus BLEU in percent, of lower-cased tokens, without smoothing (as multi-bleu.perl).

    Args:
        hypotheses: plain text.
        references: plain text, one for each hypothesis.
        language: ISO 639-1 code of both.
    """
    # ``force``: sacreBLEU warns of tokenized text, which is what is wanted here.
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    tokenized = [moses_sentences(texts, language) for texts in (hypotheses, references)]
    return float(metric.corpus_score(tokenized[0], [tokenized[1]]).score)


def moses_sentences(texts: Sequence[str], language: str) -> list[str]:
    """Lower-case and tokenize sentences; the tokens of each are joined by spaces.

    Args:
        texts: the sentences.
        language: their ISO 639-1 code; one that Moses has no rules for is treated as English.
    """
    # Slow to import, and needed once in a run of few presets.
    from sacremoses import MosesPunctNormalizer, MosesTokenizer

    normalizer, tokenizer = MosesPunctNormalizer(language), MosesTokenizer(language)
    return [
        tokenizer.tokenize(normalizer.normalize(text.lower()), return_str=True) for text in texts
    ]
