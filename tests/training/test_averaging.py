"""The moving average of the weights, alone and in the training loop."""

from functools import partial

import pytest
import torch
from torch import nn

from tests.training.tiny_runs import FakeTask, MakeTrainer, equal
from training.averaging import AveragedWeights
from training.progress import Progress

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_the_average_is_the_weighted_mean_of_the_updates_alone() -> None:
    model = nn.Linear(2, 1, bias=False)
    averaged = AveragedWeights(model, 0.9)
    seen = []
    for step in range(1, 8):
        with torch.no_grad():
            model.weight.normal_(generator=torch.Generator().manual_seed(step))
        seen.append(model.weight.detach().clone())
        averaged.update(step)
        weights = [0.9 ** (step - 1 - i) for i in range(step)]
        pairs = zip(weights, seen, strict=True)
        expected = torch.stack([w * tensor for w, tensor in pairs]).sum(0) / sum(weights)
        torch.testing.assert_close(averaged.state()[0], expected)


def test_shared_weights_are_averaged_once_and_come_back_bit_for_bit() -> None:
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = one.weight
    averaged = AveragedWeights(nn.Sequential(one, other), 0.5)
    assert len(averaged.state()) == 3
    with torch.no_grad():
        one.weight.add_(1.0)
    averaged.update(2)
    before = one.weight.detach().clone()
    with averaged.in_place():
        assert torch.equal(other.weight, averaged.state()[0])
        assert not torch.equal(other.weight, before)
    assert torch.equal(one.weight, before)


def _keep(task: FakeTask, kept: list[torch.Tensor], *progress: Progress) -> str:
    kept.append(task.model[0].weight.detach().clone())
    return ""


def test_the_averages_are_measured_and_stored_while_training_goes_on_without_them(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {}
    for decay in (0.0, 0.9):
        task = FakeTask([3.0, 2.0, 1.0])
        measured: list[torch.Tensor] = []
        stored: list[torch.Tensor] = []
        # Epochs of five steps are then too short for samples of their own.
        settings = {"average_decay": decay, "validate_every_steps": 6}
        trainer = make_trainer(task, f"run{decay}", **settings)
        monkeypatch.setattr(task, "samples", partial(_keep, task, measured))
        monkeypatch.setattr(trainer, "save_best", partial(_keep, task, stored))
        trainer.run()
        assert equal(measured, stored)
        runs[decay] = (task.model[0].weight.detach(), stored)
        if decay:
            state = torch.load(trainer.run_dir / "state.pt", weights_only=True)
            assert torch.equal(state["average"][0], stored[-1])
    assert torch.equal(runs[0.0][0], runs[0.9][0]), "training itself knows nothing of the average"
    assert torch.equal(runs[0.0][1][-1], runs[0.0][0])
    assert not torch.equal(runs[0.9][1][-1], runs[0.9][0])


@pytest.mark.parametrize("stops", [(1,), (5,), (7, 2)])
def test_a_run_that_was_killed_goes_on_with_its_average(
    make_trainer: MakeTrainer, stops: tuple[int, ...]
) -> None:
    whole = make_trainer(FakeTask(), "whole", average_decay=0.9)
    whole.run()
    for stop in (*stops, None):
        parts = make_trainer(FakeTask(), "parts", average_decay=0.9)
        parts.run(stop_after_steps=stop)
    states = [torch.load(t.run_dir / "state.pt", weights_only=True) for t in (whole, parts)]
    assert states[0]["average"]
    assert equal(*states)


def test_a_state_that_knows_of_no_average_goes_on_without_one(make_trainer: MakeTrainer) -> None:
    make_trainer(FakeTask(), record={"training": {"steps": 12}}).run(stop_after_steps=3)
    newer = {"training": {"steps": 12, "average_decay": 0.0}}
    assert make_trainer(FakeTask(), record=newer).progress.step == 3


def test_the_best_step_is_that_of_the_stored_weights(make_trainer: MakeTrainer) -> None:
    best: list[Progress] = []
    trainer = make_trainer(FakeTask([3.0, 1.5, 2.0]), best=best)
    trainer.run()
    assert [progress.best_step for progress in best] == [4, 8]
    assert (trainer.progress.best_step, trainer.progress.step) == (8, 12)
