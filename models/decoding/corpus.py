"""Many prompts decoded offline, by the same continuous batching as in the service."""

import itertools
from collections.abc import Iterator, Sequence

from models.decoding.params import DecodingParams, Emission, Hypothesis, collect_hypotheses
from models.decoding.step import MOST_STEPS, BatchedDecoder
from models.decoding.task import DecodingTask
from models.encoder_decoder import StepModel


def decode_corpus(
    model: StepModel,
    prompts: Sequence[Sequence[int]],
    params: DecodingParams | Sequence[DecodingParams],
    *,
    max_rows: int = 64,
) -> Iterator[tuple[int, list[Hypothesis]]]:
    """Decode many prompts by continuous batching.

    Args:
        model: in evaluation mode.
        prompts: token ids as :meth:`StepModel.read` takes them.
        params: of all of them, or of each.
        max_rows: rows to run at most (at least one request runs all the same).

    Yields:
        The index of a prompt and its outputs, in the order in which they end.

    Raises:
        ArithmeticError: the model's probabilities are not numbers.
    """
    decoder = BatchedDecoder(model)
    each = [params] * len(prompts) if isinstance(params, DecodingParams) else params
    # Long ones first: the last to run would otherwise leave most of the batch empty.
    waiting = iter(sorted(range(len(prompts)), key=lambda index: -len(prompts[index])))
    width = max((max(one.beam_size, one.num_outputs) for one in each), default=1)
    emitted: dict[int, list[Emission]] = {}
    while True:
        room = max((max_rows - decoder.rows) // width, 0 if decoder.rows else 1)
        # Reading many together is cheaper by far than reading them one by one.
        joining = list(itertools.islice(waiting, room)) if room * width * 4 >= max_rows else []
        decoder.admit([DecodingTask(index, prompts[index], each[index]) for index in joining])
        if not decoder.rows:
            return
        result = decoder.step(MOST_STEPS)
        for key, emissions in result.emissions.items():
            emitted.setdefault(key, []).extend(emissions)
        for message in result.failed.values():
            raise ArithmeticError(message)
        for key in result.complete:
            yield key, collect_hypotheses(emitted.pop(key), each[key].length_penalty)
