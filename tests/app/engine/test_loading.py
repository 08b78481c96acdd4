"""From checkpoint folders to an engine that answers."""

import itertools
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from app.engine import loading
from app.engine.engine import Engine
from app.engine.loading import available_cores, default_threads, load_engine
from app.engine.request import DecodeRequest, DecodingParams, EndReason, Event
from app.engine.spec import EngineSpec
from app.exceptions import StartupError
from models.cells import Cell
from models.checkpoint import read_checkpoint
from models.checkpoint_model import load_model
from models.decoding.reference import decode_reference
from models.precision import Precision, set_precision
from models.team import LIGHT_ROWS, TEAM
from models.vocabulary import BOS_ID, EOS_ID
from tests.app.engine.scripted_models import ends_of, tokens_of

PROMPTS = {
    "letters": (BOS_ID, 5, 9, 12),
    "en-fr": (5, 6, 7, EOS_ID),
    "en-fr-small": (5, 6, 7, EOS_ID),
    "fr-en-plain": (5, 6, EOS_ID),
}
PARAMS = DecodingParams(max_new_tokens=6)


def make_spec(*checkpoints: Path, precision: str = "auto", row_budget: int = 16) -> EngineSpec:
    return EngineSpec(checkpoints, "cpu", precision, 1, row_budget)


def all_checkpoints(root: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder for folder in root.iterdir() if folder.is_dir()))


def answer(engine: Engine, *requests: DecodeRequest) -> list[Event]:
    engine.submit(requests)
    events: list[Event] = []
    while not engine.is_idle:
        events += engine.step().events
    return events


@pytest.fixture
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    TEAM.resize(1)


@pytest.mark.parametrize("precision", ["int8", "float32", "bfloat16"])
def test_every_model_that_generates_answers_in_the_precision(
    checkpoints_dir: Path, precision: Precision
) -> None:
    folders = all_checkpoints(checkpoints_dir)
    loaded = load_engine(make_spec(*folders, precision=precision))
    assert (loaded.device, loaded.precision) == ("cpu", precision)
    assert loaded.load_seconds.keys() == {folder.name for folder in folders}
    assert all(seconds > 0 for seconds in loaded.load_seconds.values())
    assert loaded.engine.is_idle
    assert loaded.engine.step().rows_running == dict.fromkeys(PROMPTS, 0)
    requests = [
        DecodeRequest(index, name, prompt, PARAMS)
        for index, (name, prompt) in enumerate(PROMPTS.items())
    ]
    events = answer(loaded.engine, *requests)
    for request in requests:
        info = read_checkpoint(checkpoints_dir / request.model)
        model = set_precision(load_model(info, torch.device("cpu")), precision)
        reference = itertools.chain.from_iterable(decode_reference(model, request.prompt, PARAMS))
        tokens = [token.token for emission in reference for token in emission.tokens]
        assert tokens_of(events, request.request_id) == {0: tokens}
        assert ends_of(events)[request.request_id].reason is EndReason.FINISHED


def test_int8_is_the_choice_of_a_processor(checkpoints_dir: Path) -> None:
    assert load_engine(make_spec(checkpoints_dir / "letters")).precision == "int8"


def test_a_bidirectional_language_model_is_loaded_but_generates_nothing(
    checkpoints_dir: Path,
) -> None:
    loaded = load_engine(make_spec(checkpoints_dir / "both-ways"))
    assert loaded.load_seconds.keys() == {"both-ways"}
    loaded.engine.beat()
    events = answer(loaded.engine, DecodeRequest(1, "both-ways", (BOS_ID,), PARAMS))
    assert ends_of(events)[1].reason is EndReason.FAILED


def test_a_loaded_engine_has_taken_no_notice_of_its_first_steps(checkpoints_dir: Path) -> None:
    """Models warm up before the first request, and their heart beats at once."""
    loaded = load_engine(make_spec(*all_checkpoints(checkpoints_dir)))
    loaded.engine.beat()
    progress = loaded.engine.step()
    assert (progress.started, progress.events, progress.steps) == ((), (), ())


@pytest.mark.parametrize("name", PROMPTS)
def test_a_model_that_cannot_read_is_not_loaded(
    checkpoints_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("lost while it read")

    spec = make_spec(checkpoints_dir / name, precision="float32")
    loaded = load_engine(spec)
    monkeypatch.setattr(Cell, "run", lost)
    # Nor does its heart beat any more.
    for act in (loaded.engine.beat, partial(load_engine, spec)):
        with pytest.raises(RuntimeError, match="lost while it read"):
            act()


def test_the_row_budget_holds_for_each_model(checkpoints_dir: Path) -> None:
    loaded = load_engine(make_spec(*all_checkpoints(checkpoints_dir), row_budget=2))
    requests = [
        DecodeRequest(10 * index + number, name, prompt, PARAMS)
        for index, (name, prompt) in enumerate(PROMPTS.items())
        for number in range(3)
    ]
    loaded.engine.submit(requests)
    assert loaded.engine.step().rows_running == dict.fromkeys(PROMPTS, 2)
    wide = DecodingParams(max_new_tokens=3, beam_size=3)
    events = answer(loaded.engine, DecodeRequest(99, "letters", (BOS_ID,), wide))
    assert ends_of(events)[99].message == "the request needs 3 rows, more than the 2 there are"


@pytest.mark.parametrize(
    ("file", "content"), [("model.safetensors", b"nonsense"), ("config.json", b"{}")]
)
def test_a_damaged_checkpoint_is_one_clear_sentence(
    checkpoints_dir: Path, tmp_path: Path, file: str, content: bytes
) -> None:
    folder = tmp_path / "letters"
    shutil.copytree(checkpoints_dir / "letters", folder)
    (folder / file).write_bytes(content)
    with pytest.raises(StartupError, match=rf"^damaged checkpoint: .*{file}"):
        load_engine(make_spec(checkpoints_dir / "en-fr", folder))


def test_a_checkpoint_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"^damaged checkpoint: .*gone"):
        load_engine(make_spec(tmp_path / "gone"))


def test_what_the_device_cannot_do_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="precision float16 was asked for on cpu"):
        load_engine(make_spec(tmp_path / "gone", precision="float16"))


@pytest.mark.usefixtures("_threads_as_before")
def test_threads_are_as_many_as_asked_for() -> None:
    load_engine(EngineSpec((), "cpu", "float32", 3, 16))
    assert torch.get_num_threads() == 3
    load_engine(EngineSpec((), "cpu", "float32", None, 16))
    assert torch.get_num_threads() == default_threads(available_cores())


@pytest.mark.usefixtures("_threads_as_before")
def test_in_int8_the_threads_are_the_kernels_own(monkeypatch: pytest.MonkeyPatch) -> None:
    load_engine(EngineSpec((), "cpu", "auto", 3, 16))
    assert (TEAM.threads, torch.get_num_threads()) == (3, 1)
    TEAM.suit(rows=1)
    assert TEAM.threads == 3
    monkeypatch.setattr(loading, "available_cores", lambda: 2)
    load_engine(EngineSpec((), "cpu", "auto", None, 16))
    assert (TEAM.threads, torch.get_num_threads()) == (1, 1)
    TEAM.suit(LIGHT_ROWS)
    assert TEAM.threads == 2, "while few rows run, HTTP leaves its core"
    TEAM.suit(LIGHT_ROWS + 1)
    assert TEAM.threads == 1


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (4, 2), (64, 8)])
def test_cores_are_left_for_http_and_reading(cores: int, threads: int) -> None:
    assert default_threads(cores) == threads


def test_cores_that_are_not_ours_do_not_count() -> None:
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, mine)


def test_what_a_container_may_not_use_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux says it, of whose files loky reads one."""
    monkeypatch.setattr("loky.backend.context._cpu_count_cgroup", lambda _: 1)
    assert available_cores() == 1


@pytest.fixture
def _tf32_as_before() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("_tf32_as_before")
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_float32_is_float32_on_a_gpu(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    monkeypatch.setattr(loading, "resolve_device", lambda _: torch.device(device))
    monkeypatch.setattr(loading, "CudaCapture", lambda _: None)
    monkeypatch.setattr(loading, "describe_arithmetic", lambda _: "")
    loaded = load_engine(EngineSpec((), device, "float32", 1, 16))
    assert loaded.device == device
    inexact = device == "cpu"
    assert torch.backends.cuda.matmul.allow_tf32 is inexact
    assert torch.backends.cudnn.allow_tf32 is inexact
    assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is inexact


@pytest.mark.gpu
@pytest.mark.usefixtures("_tf32_as_before")
def test_a_gpu_answers_as_the_processor_does(checkpoints_dir: Path) -> None:
    folders = all_checkpoints(checkpoints_dir)
    requests = [
        DecodeRequest(10 * index + number, name, prompt, params)
        for index, (name, prompt) in enumerate(PROMPTS.items())
        for number, params in enumerate((PARAMS, DecodingParams(6, beam_size=4, num_outputs=2)))
    ]
    told = {}
    for device in ("cpu", "cuda"):
        engine = load_engine(EngineSpec(folders, device, "float32", 1, 16)).engine
        events = answer(engine, *requests)
        told[device] = {r.request_id: tokens_of(events, r.request_id) for r in requests}
    assert told["cuda"] == told["cpu"]
