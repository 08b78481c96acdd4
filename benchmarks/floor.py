"""The least that a step of decoding could take on a processor.

It is what no implementation can do without: the int8 products of its weights for as many rows,
one pass over the logits, and one pass over the encoded sources.
"""

import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from models.cells import RecurrentCell
from models.kernels.products import LEVELS, make_values, multiply, pack_weight, round_rows
from models.language_model import LanguageModel
from models.seq2seq import Seq2Seq

FLOOR_REPEATS = 10


def step_weights(model: LanguageModel | Seq2Seq) -> list[Tensor]:
    """The shapes ``[O, I]`` of all that a step multiplies rows with, filled with int8.

    Args:
        model: in float32.
    """
    stepping: nn.Module = model
    other: set[nn.Module] = set()
    if isinstance(model, Seq2Seq):
        stepping = model.decoder
        for name, module in stepping.named_modules():
            # These work on sources, not on rows.
            if name.startswith("bridge.") or name.endswith(("key_projection", "attention.score")):
                other.add(module)
    shapes = []
    for module in stepping.modules():
        if isinstance(module, RecurrentCell):
            shapes += [weight.shape for weight, _ in module.products()]
        elif isinstance(module, nn.Linear) and module not in other:
            shapes.append(module.weight.shape)
    return [torch.randint(-LEVELS, LEVELS + 1, tuple(shape), dtype=torch.int8) for shape in shapes]


def floor_seconds(
    weights: Sequence[Tensor], rows: int, vocabulary_size: int, memory_shape: tuple[int, int]
) -> float:
    """The least that a step could take.

    Args:
        weights: see :func:`step_weights`.
        rows: N.
        vocabulary_size: of the logits.
        memory_shape: positions of all running sources together, and numbers of each.
    """
    products = []
    for weight in weights:
        outputs, inputs = weight.shape
        ones, zeros = np.ones(outputs, np.float32), np.zeros(outputs, np.float32)
        packed = pack_weight(weight.numpy(), ones, zeros)
        values, scales = make_values(rows, packed), np.empty(rows, np.float32)
        round_rows(np.random.default_rng(0).random((rows, inputs), np.float32), values, scales)
        products.append((values, scales, packed, np.empty((rows, outputs), np.float32)))
    positions, size = memory_shape
    # Sources are kept as bytes, four of which are as much to read as one of these.
    logits, memory = torch.randn(rows, vocabulary_size), torch.randn(positions, size // 4)
    times = []
    for _ in range(FLOOR_REPEATS):
        began = time.thread_time()
        for product in products:
            multiply(*product, 0, product[2].packed.shape[0])
        logits.amax(-1)
        if memory.numel():
            memory.sum(0)
        times.append(time.thread_time() - began)
    return statistics.median(times)
