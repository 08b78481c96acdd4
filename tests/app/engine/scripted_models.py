"""Models without weights that do as they are told, a clock that does too, and runners over them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from app.engine.request import DecodeRequest, DecodingParams, EndEvent, Event, TokensEvent
from app.engine.runner import Runner
from models.encoder_decoder import Reading, StepModel, StepOutput
from models.language_model import LanguageModel
from models.precision import set_precision
from models.state import DecodeState
from models.vocabulary import EOS_ID
from tests.models.decoding.toy_models import TableModel, make_model

VOCABULARY_SIZE = 40
FIRST, LAST = 4, VOCABULARY_SIZE - 2
BROKEN = VOCABULARY_SIZE - 1
"""A token whose successors have no probabilities, but NaN."""


class ManualClock:
    """Stands still unless it is moved."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def _counting_table() -> Tensor:
    """Each token is followed by the next one, the last one by ``<eos>``; others may come too."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(VOCABULARY_SIZE, VOCABULARY_SIZE, generator=generator)
    for token in range(FIRST, LAST):
        table[token, token + 1] = 12.0
    table[LAST, EOS_ID] = 12.0
    table[BROKEN] = torch.nan
    table[:, BROKEN] = -12.0
    return table


class CountingModel(TableModel):
    """Counts on from the last token of a prompt, up to :data:`LAST`, then ends.

    Args:
        pauses: while it reads a batch of prompts.
        on_step: called at every step, for the clock to move.

    Attributes:
        pieces: pieces that were read.
        step_rows: rows of every step.
        failure: raised by the next step, once.
        reading_failure: raised by the next piece of reading, once.
    """

    def __init__(self, pauses: int = 0, on_step: Callable[[], None] | None = None) -> None:
        super().__init__(_counting_table())
        self.pauses = pauses
        self.pieces = 0
        self.step_rows: list[int] = []
        self.failure: Exception | None = None
        self.reading_failure: Exception | None = None
        self._on_step = on_step

    def read(self, prompts: Sequence[Sequence[int]]) -> Reading:
        for _ in range(self.pauses):
            self._read_piece()
            yield
        self._read_piece()
        return (yield from super().read(prompts))

    def step(self, tokens: Tensor, state: DecodeState) -> StepOutput:
        if self._on_step is not None:
            self._on_step()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        self.step_rows.append(len(tokens))
        return super().step(tokens, state)

    def _read_piece(self) -> None:
        self.pieces += 1
        if self.reading_failure is not None:
            failure, self.reading_failure = self.reading_failure, None
            raise failure


def greedy(tokens: int) -> DecodingParams:
    return DecodingParams(max_new_tokens=tokens)


def counting_request(
    request_id: int,
    tokens: int = 3,
    *,
    first: int = FIRST,
    params: DecodingParams | None = None,
    model: str = "model",
    stream: bool = False,
    timeout_seconds: float = float("inf"),
) -> DecodeRequest:
    """Asks for the tokens behind ``first``."""
    params = params or greedy(tokens)
    return DecodeRequest(request_id, model, (first,), params, timeout_seconds, stream)


def tokens_of(events: Sequence[Event], request_id: int) -> dict[int, list[int]]:
    """What a request was told, by output."""
    told: dict[int, list[int]] = {}
    for event in events:
        if isinstance(event, TokensEvent) and event.request_id == request_id:
            told.setdefault(event.output_index, []).extend(event.tokens)
    return told


def ends_of(events: Sequence[Event]) -> dict[int, EndEvent]:
    """The ends by request; each has one at most."""
    ends = [event for event in events if isinstance(event, EndEvent)]
    assert len({end.request_id for end in ends}) == len(ends), "a request ended twice"
    return {end.request_id: end for end in ends}


def endless_model() -> StepModel:
    """Of which several steps can be made at once, and whose outputs only end at their limit."""
    model = make_model("embedded", "gru", 29)
    assert isinstance(model, LanguageModel)
    with torch.no_grad():
        model.output.bias[EOS_ID] = -1e3
    return set_precision(model, "int8")


def make_runner(
    model: StepModel, row_budget: int = 16, clock: Callable[[], float] | None = None
) -> Runner:
    return Runner(
        "model",
        model,
        heartbeat_prompt=(FIRST,),
        row_budget=row_budget,
        clock=clock or ManualClock(),
    )


def run_to_end(runner: Runner) -> list[Event]:
    events: list[Event] = []
    for _ in range(1_000):
        if runner.is_idle:
            return events
        events += runner.turn().events
    raise AssertionError("the runner does not come to an end")


def run_alone(request: DecodeRequest, model: StepModel) -> list[Event]:
    runner = make_runner(model)
    runner.submit(request)
    return run_to_end(runner)
