"""Where the outputs of each prompt begin: with the prompt itself, or from a state before it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from app.catalog import ServedModel
from app.engine.request import DecodingParams, SavedState
from app.exceptions import InvalidRequestError
from app.service.outputs import OpenText
from app.service.state_token import StateTokens, TravellingState
from models.decoding.draws import uniform_number
from models.decoding.params import MAX_SEED

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where the outputs of one prompt begin.

    Attributes:
        prompt: the text of the prompt.
        tokens: to be read; behind a state, the last token of its window and those of the prompt.
        params: of its outputs.
        resume: the state before the tokens, or None.
        end: the end of the text that goes on as if it had never ended; None where the prompt
            begins something new.
    """

    prompt: str
    tokens: tuple[int, ...]
    params: DecodingParams
    resume: SavedState | None = None
    end: OpenText | None = None


def open_states(
    states: StateTokens, model: ServedModel, tokens: Sequence[str]
) -> list[TravellingState]:
    """The states of a request.

    Raises:
        StateTokenError: one cannot be gone on from by this model.
    """
    many = len(tokens) > 1
    return [
        states.open(model, token, f"state.{index}" if many else "state")
        for index, token in enumerate(tokens)
    ]


def begin_behind(
    states: Sequence[TravellingState],
    prompts: Sequence[tuple[str, Sequence[int]]],
    params: DecodingParams,
    *,
    keep_seed: bool,
) -> list[Beginning]:
    """Where outputs begin that go on from states.

    A single state is for all prompts, a single prompt for all states.

    Args:
        states: at least one.
        prompts: texts with their tokens, ``<bos>`` in front; none is the empty text.
        params: of the request.
        keep_seed: whether a state's seed goes before that of the params.

    Raises:
        InvalidRequestError: there are several of both, and not as many of the one as of the other.
    """
    given = prompts or [("", (0,))]
    count = max(len(states), len(given))
    if len(states) not in (1, count) or len(given) not in (1, count):
        raise InvalidRequestError(
            "state",
            f"{len(states)} states and {len(given)} prompts do not go together: give one of the "
            "two, or as many of the one as of the other",
        )
    pairs = zip(_repeated(states, count), _repeated(given, count), strict=True)
    return [_begin(state, text, tokens[1:], params, keep_seed) for state, (text, tokens) in pairs]


def _begin(
    state: TravellingState,
    prompt: str,
    added: Sequence[int],
    params: DecodingParams,
    keep_seed: bool,
) -> Beginning:
    saved, seed = state.saved, None
    if keep_seed and state.seed is not None:
        seed = (state.seed + state.output_index) % (MAX_SEED + 1)
    if added:
        # A new output behind a longer prompt, as if all of it had been sent. Its first numbers
        # must not be those that drew the text before: what would be drawn next is its seed.
        if seed is not None:
            seed = int(uniform_number(seed, saved.position) * (MAX_SEED + 1))
        saved = replace(saved, position=0)
    own = params if seed is None else replace(params, seed=seed)
    end = None if added else state.end
    return Beginning(prompt, (saved.window[-1], *added), own, saved, end)


def _repeated(values: Sequence[T], count: int) -> Sequence[T]:
    return list(values) * count if len(values) == 1 else values
