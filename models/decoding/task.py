"""What the batched decoder is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from models.decoding.params import DecodingParams, SavedState


@dataclass(frozen=True, slots=True)
class DecodingTask:
    """One request for the decoder.

    Attributes:
        key: the caller's name for it, unique among those in the decoder.
        prompt: token ids as :meth:`StepModel.read` takes them; behind a state its last token,
            which it has not seen, and what follows.
        params: how to choose tokens.
        stream: whether to emit each token as it is chosen, or outputs as a whole. Beam searches
            do the latter always.
        is_dropped: whether it left before its prompt was read.
        resume: the state that it goes on from; None begins with no text.
    """

    key: int
    prompt: Sequence[int]
    params: DecodingParams
    stream: bool = False
    is_dropped: bool = False
    resume: SavedState | None = None

    @property
    def rows(self) -> int:
        """Rows that it has at most."""
        return 0 if self.is_dropped else max(self.params.beam_size, self.params.num_outputs)

    @property
    def first_rows(self) -> int:
        """Rows that it begins with."""
        return 1 if self.params.is_beam else self.params.num_outputs

    def dropped(self) -> "DecodingTask":
        """The same, marked as dropped. Its key may come again."""
        return replace(self, is_dropped=True, key=-1)
