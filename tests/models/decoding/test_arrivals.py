"""Reading by another thread, beside the rows that run."""

import ctypes
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from models.decoding import arrivals
from models.decoding.arrivals import PIECES_PER_STEP, Arrivals, ReadingThread
from models.decoding.params import DecodingParams
from models.decoding.step import BatchedDecoder
from models.decoding.task import DecodingTask
from models.encoder_decoder import Reading, StepModel
from models.precision import set_precision
from tests.models.decoding.toy_models import random_language_model

MODEL = random_language_model()
PATIENCE_SECONDS = 60.0


class HeldUp:
    """A model that reads prompts of two tokens and more on demand only."""

    def __init__(self, model: StepModel) -> None:
        self.vocabulary_size = model.vocabulary_size
        self.prompt_vocabulary_size = model.prompt_vocabulary_size
        self.continues_prompt = model.continues_prompt
        self.step = model.step
        self._model = model
        self.may_read = threading.Event()
        self.readers: list[str] = []
        self.pieces = 0
        self.is_broken = False

    def read(self, prompts: Sequence[Sequence[int]]) -> Reading:
        if max(map(len, prompts)) > 1:
            self.readers.append(threading.current_thread().name)
            for _ in range(2 * PIECES_PER_STEP):
                assert self.may_read.wait(PATIENCE_SECONDS)
                self.pieces += 1
                yield
            if self.is_broken:
                raise ArithmeticError("no such number")
        return (yield from self._model.read(prompts))


@pytest.fixture
def executor() -> Iterator[ReadingThread]:
    with ReadingThread() as executor:
        yield executor


def _task(key: int, length: int, tokens: int = 5) -> DecodingTask:
    return DecodingTask(key, (1, 4, 5, 6, 7)[:length], DecodingParams(tokens))


def _tokens(decoder: BatchedDecoder, key: int) -> list[int]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        result = decoder.step()
        assert not result.failed
        for emission in result.emissions.get(key, []):
            return [token for token, *_ in emission.tokens]
    raise AssertionError(f"{key} never ended")


def _alone(task: DecodingTask) -> list[int]:
    decoder = BatchedDecoder(MODEL)
    decoder.admit([task])
    return _tokens(decoder, task.key)


def test_rows_go_on_while_another_thread_reads(executor: ReadingThread) -> None:
    model = HeldUp(MODEL)
    decoder = BatchedDecoder(model, executor=executor)
    decoder.admit([_task(1, 1, 30)])
    decoder.step()
    decoder.admit([_task(2, 3), _task(3, 5)])
    assert decoder.keys == [2, 3, 1]
    assert _tokens(decoder, 1) == _alone(_task(1, 1, 30))
    assert decoder.rows == 2
    model.may_read.set()
    assert _tokens(decoder, 2) == _alone(_task(2, 3))
    assert model.readers == ["reading_0"]
    assert decoder.rows == 0


def test_there_are_news_when_another_thread_has_read(executor: ReadingThread) -> None:
    arrivals = Arrivals(executor)
    news = (ctypes.c_int64).from_address(arrivals.news)
    model = HeldUp(MODEL)
    arrivals.add([_task(1, 3)], model.read([(1, 4, 5)]), rows_run=True)
    time.sleep(0.05)
    assert news.value == 0
    model.may_read.set()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not news.value and time.monotonic() < deadline:
        time.sleep(0.001)
    assert news.value == 1
    assert len(list(arrivals.proceed(rows_run=True))) == 1
    assert news.value == 0


def test_while_this_thread_reads_steps_are_made_one_by_one() -> None:
    """So that the reading goes on as fast as it did."""
    model = set_precision(random_language_model(), "int8")
    decoder = BatchedDecoder(model)
    decoder.admit([_task(1, 1, 200)])
    assert len(decoder.step(4).rows) == 4
    decoder.admit([DecodingTask(2, [1] + [4, 5] * 700, DecodingParams(200))])
    rows = [decoder.step(4).rows for _ in range(40)]
    reading = rows.index([2] * 4)
    assert reading > 2
    assert all(len(steps) == 1 for steps in rows[:reading])


def test_a_step_without_rows_waits_rather_than_spins(executor: ReadingThread) -> None:
    model = HeldUp(MODEL)
    decoder = BatchedDecoder(model, executor=executor)
    decoder.admit([_task(1, 1, 2)])
    decoder.step()
    decoder.admit([_task(2, 3)])
    _tokens(decoder, 1)
    began, used = time.monotonic(), time.thread_time()
    for _ in range(20):
        decoder.step()
    waited = time.monotonic() - began
    assert waited > 0.015
    assert time.thread_time() - used < waited / 2
    model.may_read.set()
    assert _tokens(decoder, 2) == _alone(_task(2, 3))


def test_while_nothing_runs_there_is_no_need_of_another_thread(
    executor: ReadingThread,
) -> None:
    model = HeldUp(MODEL)
    model.may_read.set()
    decoder = BatchedDecoder(model, executor=executor)
    decoder.admit([_task(1, 3)])
    assert _tokens(decoder, 1) == _alone(_task(1, 3))
    assert model.readers == [threading.current_thread().name]


def test_what_goes_wrong_concerns_those_who_were_read(executor: ReadingThread) -> None:
    model = HeldUp(MODEL)
    model.is_broken = True
    model.may_read.set()
    decoder = BatchedDecoder(model, executor=executor)
    decoder.admit([_task(1, 1, 2000)])
    decoder.step()
    decoder.admit([_task(2, 3), _task(3, 5)])
    deadline = time.monotonic() + PATIENCE_SECONDS
    failed: dict[int, str] = {}
    while not failed and time.monotonic() < deadline:
        failed = decoder.step().failed
    assert failed == dict.fromkeys([2, 3], "ArithmeticError: no such number")
    assert not {2, 3} & set(decoder.keys)
    model.is_broken = False
    decoder.admit([_task(4, 3)])
    assert _tokens(decoder, 4) == _alone(_task(4, 3))


def test_what_nobody_waits_for_is_not_read_to_its_end(executor: ReadingThread) -> None:
    model = HeldUp(MODEL)
    decoder = BatchedDecoder(model, executor=executor)
    decoder.admit([_task(1, 1, 2000)])
    decoder.step()
    decoder.admit([_task(2, 3), _task(3, 5)])
    decoder.remove([2])
    decoder.step()
    decoder.remove([3])
    assert not {2, 3} & set(decoder.keys)
    model.may_read.set()
    executor.submit(int).result(PATIENCE_SECONDS)  # behind the first pieces
    executor.submit(int).result(PATIENCE_SECONDS)  # and what they led to
    assert model.pieces == PIECES_PER_STEP
    decoder.admit([_task(2, 3)])
    assert _tokens(decoder, 2) == _alone(_task(2, 3))


def test_an_abandoned_decoder_reads_for_nobody(executor: ReadingThread) -> None:
    model = HeldUp(MODEL)
    decoder = BatchedDecoder(model, executor=executor)
    decoder.admit([_task(1, 1, 2000)])
    decoder.step()
    decoder.admit([_task(2, 3), _task(3, 5)])
    decoder.abandon()
    model.may_read.set()
    executor.submit(int).result(PATIENCE_SECONDS)  # behind the first pieces
    executor.submit(int).result(PATIENCE_SECONDS)  # and what they led to
    assert model.pieces == PIECES_PER_STEP


@pytest.fixture
def waiting(
    executor: ReadingThread, monkeypatch: pytest.MonkeyPatch
) -> tuple[HeldUp, BatchedDecoder]:
    """A row that runs, and a prompt that the thread has been at for longer than it should."""
    monkeypatch.setattr(arrivals, "HANG_SECONDS", 0.2)
    model = HeldUp(MODEL)
    decoder = BatchedDecoder(model, executor=executor)
    decoder.admit([_task(1, 1, 2000)])
    decoder.step()
    decoder.admit([_task(2, 3)])
    time.sleep(0.3)
    return model, decoder


def _lasts_until_released(model: HeldUp, decoder: BatchedDecoder, seconds: float) -> bool:
    """Whether a step lasts until the thread may read, which it may after so many seconds."""
    timer = threading.Timer(seconds, model.may_read.set)
    timer.start()
    decoder.step()
    was_released = model.may_read.is_set()
    timer.cancel()
    model.may_read.set()
    return was_released


def test_a_thread_that_reads_for_another_model_does_not_hang(
    executor: ReadingThread, waiting: tuple[HeldUp, BatchedDecoder]
) -> None:
    executor.heard_at = time.monotonic() + PATIENCE_SECONDS  # a piece of the other's
    assert not _lasts_until_released(*waiting, seconds=PATIENCE_SECONDS / 6)


def test_a_thread_that_hangs_holds_up_the_steps_for_all_to_see(
    waiting: tuple[HeldUp, BatchedDecoder],
) -> None:
    assert _lasts_until_released(*waiting, seconds=0.3)
    assert _tokens(waiting[1], 2) == _alone(_task(2, 3))
