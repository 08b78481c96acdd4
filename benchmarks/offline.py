"""Offline decoding throughput: ``python -m benchmarks.offline``, for :mod:`benchmarks.serving`.

All sentences are there from the start and nobody waits for one of them: the most that the same
decoder can do on the same core, which a server can come close to but not beat.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from app.engine.device import resolve_precision
from models.checkpoint import read_checkpoint
from models.checkpoint_model import load_model
from models.decoding.corpus import decode_corpus
from models.decoding.params import DecodingParams
from models.precision import set_precision
from models.seq2seq import Seq2Seq
from models.tokenizers import EOS_ID

ROWS = (64, 128, 256)
"""Widths of the batch to try; the best counts."""
MIN_SENTENCES = 512
"""Fewer are repeated: the batch is not full while the last ones end."""


@dataclass(frozen=True)
class OfflineFigures:
    """Throughput of one decoder.

    Attributes:
        rows: width of its batch.
        requests_per_second: sentences.
        tokens_per_second: target tokens, ``<eos>`` included.
        tokens_per_request: target tokens of a sentence, on average.
    """

    rows: int
    requests_per_second: float
    tokens_per_second: float
    tokens_per_request: float


class OfflineDecoder:
    """What decodes offline: the one place that knows how.

    Args:
        checkpoint: the folder.
        precision: as the service's setting.
        beam_size: 1 is greedy.
    """

    def __init__(self, checkpoint: Path, precision: str, beam_size: int) -> None:
        device = torch.device("cpu")
        info = read_checkpoint(checkpoint)
        model = load_model(info, device)
        if not isinstance(model, Seq2Seq):
            raise TypeError(f"{checkpoint} is no translation model")
        self._model = set_precision(model, resolve_precision(precision, device))
        self._tokenizer = info.tokenizers["source"]
        self._beam_size = beam_size

    def prompts(self, sentences: Sequence[str]) -> list[list[int]]:
        """Token ids as the model reads them."""
        return [[*self._tokenizer.encode(sentence), EOS_ID] for sentence in sentences]

    def decode(self, prompts: Sequence[Sequence[int]], max_rows: int) -> Iterator[int]:
        """Decode everything; yields the number of tokens of each translation."""
        longest = max(map(len, prompts))
        params = DecodingParams(max_new_tokens=3 * longest + 16, beam_size=self._beam_size)
        for _, outputs in decode_corpus(self._model, prompts, params, max_rows=max_rows):
            yield len(outputs[0].tokens)


def measure(decoder: OfflineDecoder, sentences: Sequence[str], seconds: float) -> OfflineFigures:
    """The best throughput over the widths, each measured for some seconds."""
    prompts = decoder.prompts(sentences) * math.ceil(MIN_SENTENCES / len(sentences))
    figures = []
    for rows in ROWS:
        sum(decoder.decode(prompts[:rows], rows))  # warm up
        requests = tokens = 0
        started_at = time.perf_counter()
        while (elapsed := time.perf_counter() - started_at) < seconds:
            tokens += sum(decoder.decode(prompts, rows))
            requests += len(prompts)
        figures.append(
            OfflineFigures(rows, requests / elapsed, tokens / elapsed, tokens / requests)
        )
    return max(figures, key=lambda figure: figure.requests_per_second)


def main() -> int:
    """Read sentences from standard input, one a line; write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--beam", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each width of the batch")
    parser.add_argument("--core", type=int, help="processor core to run on")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, [arguments.core])
    torch.set_num_threads(1)
    decoder = OfflineDecoder(arguments.checkpoint, arguments.precision, arguments.beam)
    sentences = sys.stdin.read().splitlines()
    json.dump(asdict(measure(decoder, sentences, arguments.seconds)), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
