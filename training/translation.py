"""Training a translation model on sentence pairs, by teacher forcing.

*Dive into Deep Learning*, section 10.7: the decoder reads the reference shifted right and is
asked for its next token at every position; padded positions have no loss.

Shape legend: ``N`` pairs, ``S`` source positions, ``T`` target positions, ``V`` vocabulary size.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from sacrebleu.metrics.bleu import BLEU
from torch import Tensor

from models.checkpoint_schema import Languages
from models.config import Seq2SeqConfig
from models.decoding.corpus import decode_corpus
from models.decoding.params import DecodingParams
from models.encoder_decoder import pad_tokens
from models.evaluation import perplexity
from models.placement import on_device
from models.seq2seq import Seq2Seq, Seq2SeqDecoder
from models.tokenizers import BOS_ID, EOS_ID, Tokenizer, source_prompt
from training.batches import POSITIONS_TOGETHER, Batch, TokenPair, plan_batches
from training.corpora import read_cut, read_synthetic
from training.decoding import translate_texts
from training.distributed import Processes
from training.parallel import Pair, ParallelCut, TestSentence, first_targets, group_references
from training.preset import ParallelData, Preset
from training.samples import AttentionWeights, Sample, attention_weights
from training.scoring import (
    CARD_FIGURES,
    MOSES_FIGURE,
    mean_textbook_bleu,
    score_by_moses,
    score_sentences,
)
from training.smoothing import pad_rows, smoothed_output_loss
from training.sources import DataError
from training.task import BatchLoss, evaluation_mode
from training.tokenization import sample_encodings, train_tokenizer

LOGGER = logging.getLogger("training")
VALIDATION_BLEU_SENTENCES = 200
"""Sentences decoded at each validation: enough for a curve, few enough to be quick."""
TEXTBOOK_BLEU_SENTENCES = 1000
"""Training sentences decoded at the end where no test sentences are held out."""
TEXTBOOK_FIGURE = "training_textbook_bleu_k2"


class Translation:
    """See :class:`training.task.Task`.

    Args:
        preset: the whole preset.
        data: its sentence pairs.
        data_location: other sentence pairs to read instead, or None.
        cache_dir: where downloads are kept.
        device: where to train.
        tokenizers: those of an initial checkpoint, or None to train new ones.
        processes: that train together; each takes its share of a batch's pairs.

    Raises:
        DataError: the pairs cannot be read, or the cut leaves nothing to train on, or nothing
            that is short enough.
    """

    def __init__(
        self,
        preset: Preset,
        data: ParallelData,
        data_location: str | None,
        cache_dir: Path,
        device: torch.device,
        tokenizers: Mapping[str, Tokenizer] | None = None,
        processes: Processes | None = None,
    ) -> None:
        self._settings = preset.training
        self._processes = processes or Processes()
        self._data = data
        self.languages = Languages(source=data.source_language, target=data.target_language)
        self._cut, self.sources = read_cut(data, data_location, cache_dir)
        self.tokenizers: dict[str, Tokenizer] = (
            dict(tokenizers) if tokenizers else self._train_tokenizers(preset)
        )
        synthetic, read = read_synthetic(data, self._cut, cache_dir)
        self.sources += read
        kept = first_targets(self._cut.train, data.targets_per_source)
        self._training_pairs = (*kept, *synthetic)
        self._pairs = self._encode(self._training_pairs, "pair")
        self._validation_pairs = self._encode(self._cut.validation, "validation pair")
        config = Seq2SeqConfig.model_validate(
            {
                **preset.model,
                "source_vocabulary_size": self.tokenizers["source"].vocabulary_size,
                "target_vocabulary_size": self.tokenizers["target"].vocabulary_size,
            }
        )
        self.model = Seq2Seq(config).to(device)
        self._device = device
        self._signature = ""

    def _train_tokenizers(self, preset: Preset) -> dict[str, Tokenizer]:
        sources = [pair.source for pair in self._cut.train]
        targets = [pair.target for pair in self._cut.train]

        def train(texts: Sequence[str]) -> Tokenizer:
            preparation = self._data.preparation
            return train_tokenizer(preset.tokenizer, texts, preparation, add_dummy_prefix=True)

        if preset.model.get("tie_embeddings"):
            joint = train(sources + targets)
            return {"source": joint, "target": joint}
        return {"source": train(sources), "target": train(targets)}

    def _encode(self, pairs: Sequence[Pair], kind: str) -> list[TokenPair]:
        """Those of some pairs that are short enough; their kind is for what is told of others."""
        source, target = self.tokenizers["source"], self.tokenizers["target"]
        fitting = self._fitting(
            [source.encode(pair.source) for pair in pairs],
            [target.encode(pair.target) for pair in pairs],
        )
        limit = self._data.max_tokens
        if pairs and not fitting:
            raise DataError(
                f"{self.sources[0].name}: no {kind} is short enough: raise data.max_tokens "
                f"({limit})"
            )
        if left_out := len(pairs) - len(fitting):
            LOGGER.info("left out %d %ss of more than %d tokens", left_out, kind, limit)
        return fitting

    def _epoch_pairs(self, epoch: int) -> list[TokenPair]:
        """The training pairs, split in pieces anew where the settings ask for that."""
        smoothing, pairs = self._settings.subword_smoothing, self._training_pairs
        if smoothing is None:
            return self._pairs
        source, target = self.tokenizers["source"], self.tokenizers["target"]
        seed = f"{self._settings.seed} {epoch}"
        return self._fitting(
            sample_encodings(source, [p.source for p in pairs], smoothing, f"{seed} source"),
            sample_encodings(target, [p.target for p in pairs], smoothing, f"{seed} target"),
        )

    def _fitting(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]
    ) -> list[TokenPair]:
        """Pairs with their ``<eos>``, those that are too long left out or cut."""
        limit, cut = self._data.max_tokens, self._data.truncate_to
        encoded = (
            TokenPair((*source, EOS_ID), (*target, EOS_ID))
            for source, target in zip(sources, targets, strict=True)
        )
        if cut is not None:
            return [TokenPair(pair.source[:cut], pair.target[:cut]) for pair in encoded]
        return [pair for pair in encoded if max(len(pair.source), len(pair.target)) <= limit]

    def batches(self, epoch: int) -> Iterator[Batch | None]:
        """Batches of pairs of similar lengths, in random order.

        Of several processes each is given its share, None where that is empty.
        """
        for pairs in plan_batches(self._epoch_pairs(epoch), self._settings, epoch):
            own = self._processes.deal(pairs)
            yield self._batch(own) if own else None

    def _batch(self, pairs: Sequence[TokenPair]) -> Batch:
        read = [self.model.read_part(pair.source) for pair in pairs]
        sources = pad_tokens(read, self._device, POSITIONS_TOGETHER)
        targets = pad_tokens([pair.target for pair in pairs], self._device)
        size = targets[0].shape[1]
        # Found here, where a GPU need not be asked, and waited for.
        real = [
            row * size + position
            for row, pair in enumerate(pairs)
            for position in range(len(pair.target))
        ]
        return Batch(*sources, *targets, on_device(real, self._device))

    def loss(self, batch: Batch) -> BatchLoss:
        """Teacher forcing on one batch; logits are computed at real positions only."""
        consistency = self._settings.consistency if self.model.training else 0.0
        if consistency:
            batch = batch.twice()
        encoded = self.model.encoder(batch.sources, batch.source_lengths)
        begin = torch.full_like(batch.targets[:, :1], BOS_ID)
        inputs = torch.cat([begin, batch.targets[:, :-1]], dim=1)
        decoder = cast(Seq2SeqDecoder, self.model.decoder)
        features = decoder.features(inputs, decoder.start(encoded))
        targets = batch.targets.flatten().index_select(0, batch.real_targets)
        real = features.flatten(0, 1).index_select(0, batch.real_targets)
        tokens = len(targets) // 2 if consistency else len(targets)
        objective, likelihood = smoothed_output_loss(
            decoder.narrow(pad_rows(real)),
            decoder.output_layer,
            targets[:tokens],
            self._settings.label_smoothing,
            consistency,
        )
        objective = objective / len(targets)
        return BatchLoss(objective, likelihood * tokens / len(targets), tokens)

    def carried(self) -> list[Tensor]:
        """Nothing: pairs are independent."""
        return []

    def restore(self, carried: list[Tensor]) -> None:
        """Nothing to put back."""

    @torch.inference_mode()
    def may_decide(self, epoch: int) -> bool:
        """See :class:`training.task.Task`."""
        return True

    def validate(self) -> dict[str, float]:
        """Loss and perplexity of the validation pairs, and BLEU of some by greedy decoding."""
        if not self._validation_pairs:
            return {}
        total, tokens = 0.0, 0
        with evaluation_mode(self.model):
            for first in range(0, len(self._validation_pairs), 64):
                loss = self.loss(self._batch(self._validation_pairs[first : first + 64]))
                total += float(loss.negative_log_likelihood)
                tokens += loss.tokens
        figures = {"loss": total / tokens, "perplexity": perplexity(total, tokens)}
        if not math.isfinite(figures["perplexity"]):
            return figures  # weights that have diverged so far cannot decode
        sentences = group_references(self._cut.validation)[:VALIDATION_BLEU_SENTENCES]
        hypotheses = self.translate([s.source for s in sentences], beam_size=1)
        bleu = BLEU().corpus_score(hypotheses, [[s.references[0] for s in sentences]])
        return figures | {"bleu": float(bleu.score)}

    def translate(self, texts: Sequence[str], *, beam_size: int) -> list[str]:
        """Translate texts by continuous batching."""
        return translate_texts(
            self.model,
            self.tokenizers,
            texts,
            beam_size=beam_size,
            max_new_tokens=longest_translation(self._data),
        )

    def final_metrics(self) -> dict[str, float]:
        """BLEU and chrF of the test or else validation sentences.

        The textbook BLEU of the training pairs where neither are held out.
        """
        measured = measured_sentences(self._data, self._cut)
        if not measured:
            return self._textbook_metrics(textbook_sentences(self._cut))
        metrics = {f"{self._measured_part()}_sentences": float(len(measured))}
        sources = [sentence.source for sentence in measured]
        for name, beam_size in (("greedy", 1), ("beam4", 4)):
            hypotheses = self.translate(sources, beam_size=beam_size)
            scores = score_sentences(hypotheses, measured, CARD_FIGURES)
            self._signature = scores["bleu_first_reference"].signature or ""
            if self._data.moses_bleu:
                scores[MOSES_FIGURE] = score_by_moses(
                    hypotheses, measured, self._data.target_language
                )
            metrics |= {f"{name}_{figure}": score.rounded for figure, score in scores.items()}
        return metrics

    def _measured_part(self) -> str:
        return "test" if self._cut.test else "validation"

    def _textbook_metrics(self, sentences: Sequence[TestSentence]) -> dict[str, float]:
        hypotheses = self.translate([s.source for s in sentences], beam_size=1)
        return {TEXTBOOK_FIGURE: round(mean_textbook_bleu(hypotheses, sentences, k=2), 4)}

    def metrics_note(self) -> str:
        """See :class:`training.task.Task`."""
        measured = measured_sentences(self._data, self._cut)
        if not measured:
            return (
                f"Mean textbook BLEU (k = 2) over the first {TEXTBOOK_BLEU_SENTENCES} training "
                "sentences (or all, if there are fewer) by greedy decoding, each against its best "
                "reference: no test sentences are held out."
            )
        part = self._measured_part()
        given = part == "validation" and self._data.validation_source is not None
        notes = (
            f"sacreBLEU (cased, tokenizer 13a, {self._signature}) and chrF of "
            f"{len(measured)} {part} sentences in float32.",
            "They have files of their own."
            if given
            else f"The {part} sentences are cut by a hash of the normalised source; no pair with "
            "a normalised side of theirs is in the training data.",
            "" if self._cut.test else "They also chose the best checkpoint.",
            "first_reference scores against the first translation that the data give, "
            "all_references against all.",
            "moses is BLEU of lower-cased text in Moses' tokens (sacremoses), as papers on "
            "Multi30k give it: compare it with theirs only."
            if self._data.moses_bleu
            else "",
        )
        return " ".join(note for note in notes if note)

    def samples(self) -> list[Sample]:
        """Three sentences that the model has not trained on (or the first, where it has)."""
        pairs = (self._cut.validation or self._cut.train)[::97][:3]
        return [self._sample(pair) for pair in pairs]

    def _sample(self, pair: Pair) -> Sample:
        source, target = self.tokenizers["source"], self.tokenizers["target"]
        prompt = source_prompt(source, pair.source)
        params = DecodingParams(max_new_tokens=longest_translation(self._data))
        with evaluation_mode(self.model):
            _, outputs = next(decode_corpus(self.model, [prompt], params))
            written = outputs[0].token_ids
            weights = attention_weights(self.model, prompt, written) if written else None
        attention = None
        if weights is not None:
            tokens = (tuple(map(source.token, prompt)), tuple(map(target.token, written)))
            attention = AttentionWeights(*tokens, weights)
        return Sample(pair.source, target.decode(written), pair.target, attention)


def measured_sentences(data: ParallelData, cut: ParallelCut) -> tuple[TestSentence, ...]:
    """What the card's figures are measured on: the test or else the validation sentences.

    Sentences of a validation file are measured line by line, as benchmarks are.
    """
    if cut.test or data.validation_source is None:
        return cut.test or group_references(cut.validation)
    return tuple(TestSentence(pair.source, (pair.target,)) for pair in cut.validation)


def textbook_sentences(cut: ParallelCut) -> tuple[TestSentence, ...]:
    """What is measured on where no sentences are held out: the first that were trained on."""
    return group_references(cut.train)[:TEXTBOOK_BLEU_SENTENCES]


def longest_translation(data: ParallelData) -> int:
    """Tokens that a translation of the preset's own sentences may have, ``<eos>`` included."""
    return data.truncate_to or data.max_tokens
