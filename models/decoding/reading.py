"""Reading prompts from where their past is known: from nothing, a saved state, a prefix."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.decoding.capture import read_vectors, starting_state
from models.decoding.params import StateReturn
from models.decoding.prefixes import PrefixCache, PrefixCounts
from models.decoding.task import DecodingTask
from models.encoder_decoder import Reading, StepModel, require_resumable
from models.state import DecodeState

_BYTES_PER_NUMBER = 4


class Beginning(NamedTuple):
    """Where the reading of a prompt begins.

    Attributes:
        task: whose prompt it is.
        tokens: those of the prompt that are to be read.
        start: the state before them, ``[F]``; None: that of no text.
    """

    task: DecodingTask
    tokens: Sequence[int]
    start: Tensor | None


class PromptReader:
    """Reads the prompts of one model.

    Args:
        model: in evaluation mode.
        prefix_bytes: memory for the states of prompts that were read before; 0 keeps none. Only
            for a language model whose answers do not depend on how much of a prompt is read at
            once, as in int8: in float a prompt that is read in two parts rounds differently.
    """

    def __init__(self, model: StepModel, prefix_bytes: int = 0) -> None:
        self._model = model
        self._prefixes = PrefixCache(prefix_bytes) if prefix_bytes else None

    def check(self, task: DecodingTask) -> None:
        """See whether a task's prompt can be read.

        Raises:
            ValueError: the prompt is empty or has tokens that the model does not know, its state
                does not travel, or it is another model's.
        """
        if not task.prompt:
            raise ValueError("a prompt needs at least one token")
        # Kernels check no index: what lies beside the embeddings would pass for one.
        known = range(self._model.prompt_vocabulary_size)
        if task.resume is None and not (min(task.prompt) in known and max(task.prompt) in known):
            raise ValueError("the prompt has tokens outside the model's vocabulary")
        if task.resume is None and task.params.return_state is StateReturn.NEVER:
            return
        size = require_resumable(self._model).initial_state(1).flat().shape[1]
        if task.resume is None:
            return
        tokens = (*task.resume.window, *task.prompt)
        if len(task.resume.vectors) != _BYTES_PER_NUMBER * size or not (
            0 <= min(tokens) <= max(tokens) < self._model.vocabulary_size
        ):
            raise ValueError("the state is that of another model")

    def begin(self, task: DecodingTask) -> Beginning:
        """Where the reading of a task's prompt begins."""
        if task.resume is not None:
            return Beginning(task, task.prompt, read_vectors(task.resume.vectors))
        if self._prefixes is None:
            return Beginning(task, task.prompt, None)
        # The last token is fed by the first step, and is in no state yet.
        length, start = self._prefixes.longest(task.prompt[:-1])
        return Beginning(task, task.prompt[length:], start)

    @torch.inference_mode()
    def read(self, beginnings: Sequence[Beginning]) -> Reading:
        """Read prompts together: see :meth:`StepModel.read`."""
        prompts = [beginning.tokens for beginning in beginnings]
        starts = [beginning.start for beginning in beginnings]
        if all(start is None for start in starts):
            return self._model.read(prompts)
        model = require_resumable(self._model)
        return model.resume(prompts, starting_state(model, starts))

    def keep(self, tasks: Sequence[DecodingTask], state: DecodeState) -> None:
        """Remember the states ``[N]`` behind the prompts that were read."""
        if self._prefixes is None:
            return
        flat = state.flat()
        for row, task in enumerate(tasks):
            # Of a text that goes on from a state nobody here knows the beginning.
            if task.resume is None and len(task.prompt) > 1:
                self._prefixes.put(task.prompt[:-1], flat[row])

    def take_counts(self) -> PrefixCounts:
        """What the known prefixes were good for since this was last asked."""
        return PrefixCounts() if self._prefixes is None else self._prefixes.take_counts()
