"""Stopping, killing and resuming the training loop."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.tiny_runs import FakeTask, MakeTrainer, equal, history
from training.interruption import InterruptedRunError
from training.progress import Progress
from training.resuming import RunError, differences

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("stops", [(1,), (4,), (5,), (7,), (10,), (11,), (2, 3, 4)])
def test_a_run_that_was_killed_ends_as_one_that_was_not(
    make_trainer: MakeTrainer, optimizer: str, stops: tuple[int, ...]
) -> None:
    losses = [3.0, 1.5, 2.0]
    best: list[Progress] = []
    whole = make_trainer(FakeTask(list(losses)), "whole", best, optimizer=optimizer)
    whole.run()
    parts: list[Progress] = []
    for stop in (*stops, None):
        task = FakeTask()
        trainer = make_trainer(task, "parts", parts, optimizer=optimizer)
        task.validation = losses[trainer.progress.step // 4 :]
        trainer.run(stop_after_steps=stop)
    states = [torch.load(t.run_dir / "state.pt", weights_only=True) for t in (whole, trainer)]
    assert equal(*states)
    assert history(whole.run_dir) == history(trainer.run_dir)
    assert (parts[-1].step, parts[-1].best_loss) == (best[-1].step, best[-1].best_loss) == (8, 1.5)


def test_a_line_of_the_log_covers_the_steps_before_a_kill_too(make_trainer: MakeTrainer) -> None:
    settings = {"log_every_steps": 5, "save_every_steps": 3, "steps": 5}
    whole = make_trainer(FakeTask(), "whole", **settings)
    whole.run()
    make_trainer(FakeTask(), "parts", **settings).run(stop_after_steps=4)
    resumed = make_trainer(FakeTask(), "parts", **settings)
    assert resumed.progress.step == 3
    resumed.run()
    assert history(resumed.run_dir) == history(whole.run_dir)


def test_figures_behind_the_saved_state_are_not_doubled(make_trainer: MakeTrainer) -> None:
    settings = {"log_every_steps": 1, "save_every_steps": 5}
    make_trainer(FakeTask(), **settings).run(stop_after_steps=8)
    trainer = make_trainer(FakeTask(), **settings)
    assert [row["step"] for row in history(trainer.run_dir)] == [1, 2, 3, 4, 5]
    with (trainer.run_dir / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "train_l')
    make_trainer(FakeTask(), **settings).run()
    steps = [row["step"] for row in history(trainer.run_dir) if "train_loss" in row]
    assert steps == list(range(1, 13))


@pytest.mark.parametrize(
    ("record", "named"),
    [
        ({"training": {"steps": 13, "seed": 1}, "texts": ["a"]}, "training.steps"),
        ({"training": {"steps": 12, "seed": 1}, "texts": ["b"]}, "texts"),
        ({"training": {"steps": 12}, "texts": ["a"]}, "training.seed"),
        ({"training": {"steps": 12, "seed": 1}, "texts": ["a"], "model": {}}, "model"),
    ],
)
def test_a_state_of_another_run_is_refused_by_name(
    make_trainer: MakeTrainer, record: dict[str, Any], named: str
) -> None:
    first = {"training": {"steps": 12, "seed": 1}, "texts": ["a"]}
    make_trainer(FakeTask(), record=first).run(stop_after_steps=3)
    with pytest.raises(RunError) as raised:
        make_trainer(FakeTask(), record=record)
    assert f"other settings ({named}); choose another --out" in str(raised.value)


@pytest.mark.parametrize(
    ("saved", "present", "named"),
    [
        ({}, {"reads_bos": False}, ["model.reads_bos"]),
        ({"reads_bos": False}, {}, ["model.reads_bos"]),
        ({}, {"reads_bos": True, "dropout": 0.0, "cell": "gru"}, []),
        ({"dropout": 0.1}, {}, ["model.dropout"]),
    ],
)
def test_what_a_preset_leaves_out_of_its_model_is_the_default(
    saved: dict[str, Any], present: dict[str, Any], named: list[str]
) -> None:
    kind = {"kind": "language_model"}
    assert differences({"model": kind | saved}, {"model": kind | present}) == named


def test_the_words_of_a_card_may_change_on_the_way(make_trainer: MakeTrainer) -> None:
    make_trainer(FakeTask(), record={"card": {"title": "a"}}).run(stop_after_steps=3)
    assert make_trainer(FakeTask(), record={"card": {"title": "b"}}).progress.step == 3


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "other model", "no record"])
def test_a_damaged_state_is_named(make_trainer: MakeTrainer, damage: str) -> None:
    trainer = make_trainer(FakeTask())
    trainer.run(stop_after_steps=3)
    file = trainer.run_dir / "state.pt"
    content = file.read_bytes()
    state = torch.load(file, weights_only=True)
    if damage == "other model":
        torch.save({**state, "model": {"0.weight": torch.zeros(2, 2)}}, file)
    elif damage == "no record":
        torch.save({"model": state["model"]}, file)
    else:
        half = len(content) // 2
        file.write_bytes(
            {
                "empty": b"",
                "cut": content[:half],
                "flipped": content[:40] + b"\xff\x00\xff" * 50 + content[190:],
                "text": b"not a state at all\n" * 9,
            }[damage]
        )
    with pytest.raises(RunError, match=r"state\.pt is damaged .* delete .*run to begin anew"):
        make_trainer(FakeTask())


def test_a_pickle_in_the_place_of_a_state_is_not_run(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    trainer = make_trainer(FakeTask())
    trainer.run(stop_after_steps=3)

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save(Trap(), trainer.run_dir / "state.pt")
    with pytest.raises(RunError, match="damaged"):
        make_trainer(FakeTask())
    assert not (tmp_path / "sprung").exists()


def test_a_full_disk_keeps_the_last_state(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(FakeTask())
    trainer.run(stop_after_steps=3)
    before = (trainer.run_dir / "state.pt").read_bytes()

    def refuse(state: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(RunError, match=r"state\.pt: .*No space left"):
        trainer.save_state()
    assert (trainer.run_dir / "state.pt").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_loses_no_step(make_trainer: MakeTrainer, number: signal.Signals) -> None:
    whole = make_trainer(FakeTask([3.0, 2.0, 1.0]), "whole", save_every_steps=100)
    whole.run()
    task = FakeTask([3.0])
    task.on_batch = lambda epoch, batch: (
        os.kill(os.getpid(), number) if (epoch, batch) == (1, 1) else None
    )
    trainer = make_trainer(task, "parts", save_every_steps=100)
    handlers = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(InterruptedRunError, match=rf"{number.name}: stopped at step 7; give"):
        trainer.run()
    assert [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)] == handlers
    resumed = make_trainer(FakeTask([2.0, 1.0]), "parts", save_every_steps=100)
    assert resumed.progress.step == 7
    resumed.run()
    states = [torch.load(t.run_dir / "state.pt", weights_only=True) for t in (whole, resumed)]
    assert equal(*states)
    assert history(whole.run_dir) == history(resumed.run_dir)


def test_a_request_to_stop_in_the_last_step_is_heard_after_it(make_trainer: MakeTrainer) -> None:
    task = FakeTask()
    task.on_batch = lambda epoch, batch: (
        os.kill(os.getpid(), signal.SIGINT) if (epoch, batch) == (0, 1) else None
    )
    trainer = make_trainer(task, steps=2)
    with pytest.raises(InterruptedRunError, match="step 2"):
        trainer.run()
    assert make_trainer(FakeTask(), steps=2).progress.step == 2


def test_another_precision_is_refused_by_name(make_trainer: MakeTrainer) -> None:
    make_trainer(FakeTask(), precision="bfloat16").run(stop_after_steps=3)
    with pytest.raises(RunError) as raised:
        make_trainer(FakeTask(), precision="float32")
    assert (
        "other settings (training.precision, which was bfloat16 and is float32 here: --set "
        "training.precision=bfloat16 goes on with it); choose another --out" in str(raised.value)
    )


def test_the_precision_that_auto_stood_for_may_be_named(make_trainer: MakeTrainer) -> None:
    auto, named = ({"training": {"precision": name}} for name in ("auto", "bfloat16"))
    first = make_trainer(FakeTask(), record=auto, precision="bfloat16")
    first.run(stop_after_steps=3)
    resumed = make_trainer(FakeTask(), record=named, precision="bfloat16")
    assert resumed.progress.step == 3


def test_a_state_that_does_not_say_its_precision_is_resumed(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(FakeTask())
    trainer.run(stop_after_steps=3)
    file = trainer.run_dir / "state.pt"
    state = torch.load(file, weights_only=True)
    del state["precision"]
    torch.save(state, file)
    assert make_trainer(FakeTask()).progress.step == 3
