"""Translating many texts at once, with the decoder and the rules of the service."""

from collections.abc import Callable, Mapping, Sequence

from models.decoding.corpus import decode_corpus
from models.decoding.params import DecodingParams, default_translation_length
from models.seq2seq import Seq2Seq
from models.tokenizers import Tokenizer, source_prompt
from training.task import evaluation_mode


def translate_texts(
    model: Seq2Seq,
    tokenizers: Mapping[str, Tokenizer],
    texts: Sequence[str],
    *,
    beam_size: int,
    length_penalty: float = 0.75,
    max_new_tokens: int | None = None,
    on_translation: Callable[[], object] | None = None,
) -> list[str]:
    """Translate texts by continuous batching.

    A text without tokens has the empty translation, as in the service.

    Args:
        model: in whatever precision it computes.
        tokenizers: ``source`` and ``target``.
        texts: in the source language.
        beam_size: width of the beam search; 1 is greedy.
        length_penalty: alpha of the beam's score.
        max_new_tokens: longest translation in tokens, ``<eos>`` included; None leaves each text
            as many as the service would.
        on_translation: called after each translation.

    Raises:
        ArithmeticError: the model's probabilities are not numbers.
        ValueError: a decoding parameter is out of range.
    """
    source, target = tokenizers["source"], tokenizers["target"]
    read = [source_prompt(source, text) for text in texts]
    places = [index for index, prompt in enumerate(read) if prompt]
    prompts = [read[index] for index in places]
    params = [
        DecodingParams(
            max_new_tokens=max_new_tokens or default_translation_length(len(prompt)),
            beam_size=beam_size,
            length_penalty=length_penalty,
        )
        for prompt in prompts
    ]
    report = on_translation or (lambda: None)
    translations = [""] * len(texts)
    with evaluation_mode(model):
        for index, outputs in decode_corpus(model, prompts, params):
            translations[places[index]] = target.decode(outputs[0].token_ids)
            report()
    for _ in range(len(texts) - len(places)):
        report()
    return translations
