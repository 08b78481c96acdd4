"""The models that :mod:`benchmarks.decode` measures, and what they are asked for."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.checkpoint import CheckpointInfo, find_checkpoints, read_checkpoint
from models.checkpoint_model import load_model
from models.config import LanguageModelConfig, Seq2SeqConfig
from models.decoding.params import DecodingParams
from models.decoding.task import DecodingTask
from models.language_model import LanguageModel
from models.seq2seq import Seq2Seq
from models.tokenizers import BOS_ID, EOS_ID

ROOT = Path(__file__).parent.parent
FIXED = "gru-512-8000"
"""A model that stays as it is while those that ship get better: 2 layers, random weights."""
FIXED_CONFIG = LanguageModelConfig(
    vocabulary_size=8_000, cell="gru", embedding_size=512, hidden_size=512, num_layers=2
)


@dataclass(frozen=True)
class Subject:
    """A model and prompts for it.

    Attributes:
        name: in the tables.
        build: makes it, in float32.
        prompts: token ids as it takes them.
        lengths: the most tokens that each may bring.
    """

    name: str
    build: Callable[[], LanguageModel | Seq2Seq]
    prompts: Sequence[tuple[int, ...]]
    lengths: Sequence[int]

    def tasks(self, beam_size: int) -> Iterator[DecodingTask]:
        """Requests without end."""
        params = [DecodingParams(length, beam_size=beam_size) for length in self.lengths]
        for key in itertools.count():
            index = key % len(self.prompts)
            yield DecodingTask(key, self.prompts[index], params[index])


def all_subjects(sentences: Sequence[str]) -> list[Subject]:
    """The fixed model, and those that ship and generate."""
    subjects = [_fixed_subject(sentences)]
    for folder in find_checkpoints(ROOT / "checkpoints"):
        info = read_checkpoint(folder)
        if isinstance(info.config, Seq2SeqConfig):
            encode = info.tokenizers["source"].encode
            prompts = [(*encode(sentence), EOS_ID) for sentence in sentences]
            lengths = [3 * len(prompt) + 16 for prompt in prompts]
        elif info.config.bidirectional:
            continue
        else:
            encode = info.tokenizers["text"].encode
            prompts = [(BOS_ID, *encode(sentence)) for sentence in sentences]
            lengths = _as_long_as_another(prompts)

        def build(info: CheckpointInfo = info) -> LanguageModel | Seq2Seq:
            return load_model(info, torch.device("cpu"))

        subjects.append(Subject(info.name, build, prompts, lengths))
    return subjects


def _fixed_subject(sentences: Sequence[str]) -> Subject:
    """A token for each word: which ones makes no difference to a model that has learnt nothing."""
    generator = random.Random(0)
    size = FIXED_CONFIG.vocabulary_size
    prompts = [
        (BOS_ID, *(generator.randrange(4, size) for _ in sentence.split()))
        for sentence in sentences
    ]

    def build() -> LanguageModel:
        torch.manual_seed(0)
        return LanguageModel(FIXED_CONFIG).eval()

    return Subject(FIXED, build, prompts, _as_long_as_another(prompts))


def _as_long_as_another(prompts: Sequence[Sequence[int]]) -> list[int]:
    lengths = [len(prompt) for prompt in prompts]
    return [*lengths[1:], lengths[0]]
