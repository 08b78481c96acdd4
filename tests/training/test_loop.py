"""The training loop: schedule, clipping, the best checkpoint, saving and resuming."""

import json
import logging
import math
import threading

import pytest
import torch

from tests.training.tiny_runs import BATCHES, FakeTask, MakeTrainer, history
from training.progress import Progress
from training.resuming import RunError

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_the_rate_that_the_schedule_says_is_the_one_that_is_used(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(FakeTask(), warmup_steps=6, log_every_steps=1, steps=6)
    trainer.run()
    rates = [row["learning_rate"] for row in history(trainer.run_dir) if "learning_rate" in row]
    assert rates == pytest.approx([0.05 * step / 6 for step in range(1, 7)])


def test_bfloat16_trains_in_bfloat16(make_trainer: MakeTrainer) -> None:
    task = FakeTask()
    seen: list[torch.dtype] = []
    task.model.register_forward_hook(lambda *arguments: seen.append(arguments[-1].dtype))
    make_trainer(task, precision="bfloat16", steps=1).run()
    assert seen == [torch.bfloat16]
    assert task.model[0].weight.dtype is torch.float32


def test_clipping_bounds_an_update(make_trainer: MakeTrainer) -> None:
    moved = {}
    for clip in (1e-3, 1e6):
        task = FakeTask(scale=1000.0)
        before = torch.cat([p.detach().flatten().clone() for p in task.model.parameters()])
        settings = {"optimizer": "sgd", "learning_rate": 1.0, "clip_norm": clip, "steps": 1}
        make_trainer(task, folder=f"run{clip}", **settings).run()
        after = torch.cat([p.detach().flatten() for p in task.model.parameters()])
        moved[clip] = float((after - before).norm())
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert moved[1e6] > 1.0


def test_the_best_validation_loss_decides_and_not_the_last(make_trainer: MakeTrainer) -> None:
    best: list[Progress] = []
    losses = [3.0, 1.5, 2.0, 1.5, 1.7, 1.6]
    make_trainer(FakeTask(losses), best=best, steps=12, validate_every_steps=2).run()
    assert [(progress.step, progress.best_loss) for progress in best] == [(2, 3.0), (4, 1.5)]


def test_without_validation_data_the_training_loss_decides(make_trainer: MakeTrainer) -> None:
    best: list[Progress] = []
    make_trainer(FakeTask(), best=best, steps=30, validate_every_steps=10).run()
    assert best[0].step == 10
    for progress in best[1:]:
        assert progress.best_loss == pytest.approx(math.log(progress.train_perplexity))
    losses = [progress.best_loss for progress in best]
    assert losses == sorted(losses, reverse=True)
    # A loss that rises never makes a new best.
    rising = FakeTask()
    rising.on_batch = lambda epoch, number: setattr(rising, "scale", 1.0 + 10 * epoch)
    best = []
    make_trainer(
        rising, "rising", best, steps=30, validate_every_steps=10, learning_rate=1e-9
    ).run()
    assert [progress.step for progress in best] in ([10], [10, 20])
    assert best[-1].best_loss < 0.5 * math.log(1e9)


def test_without_validation_data_the_end_of_a_run_is_kept(make_trainer: MakeTrainer) -> None:
    best: list[Progress] = []
    make_trainer(FakeTask(), best=best, steps=9, validate_every_steps=2).run()
    # The first epoch ends after five steps, the second one never.
    assert [progress.step for progress in best] == [2, 4, 6, 8, 9]


def test_the_loss_of_a_background_chooses_no_weights(make_trainer: MakeTrainer) -> None:
    task = FakeTask()
    task.background_epochs = 2
    # The text itself is harder, and never becomes as easy.
    task.on_batch = lambda epoch, _: setattr(task, "scale", 1.0 if epoch < 2 else 10.0)
    best: list[Progress] = []
    make_trainer(task, best=best, steps=20, validate_every_steps=5, learning_rate=1e-9).run()
    assert best[-1].step == 20
    assert best[-1].best_loss == pytest.approx(math.log(best[-1].train_perplexity))


def test_a_short_run_without_a_whole_epoch_still_writes_its_model(
    make_trainer: MakeTrainer,
) -> None:
    best: list[Progress] = []
    make_trainer(FakeTask(), best=best, steps=3, validate_every_steps=1).run()
    assert best[-1].step == 3


def test_every_batch_of_every_epoch_is_used_once(make_trainer: MakeTrainer) -> None:
    task = FakeTask()
    trainer = make_trainer(task)
    trainer.run()
    expected = [(step // BATCHES, step % BATCHES) for step in range(12)]
    assert task.seen == expected
    assert (trainer.progress.epoch, trainer.progress.batch) == (2, 2)
    assert trainer.progress.tokens == 36
    assert trainer.progress.tokens_per_second > 0
    trainer.run()
    assert len(task.seen) == 12, "a finished run does nothing more"


@pytest.mark.parametrize("scale", [math.inf, math.nan])
def test_a_loss_that_is_no_number_ends_the_run_before_it_spoils_the_weights(
    make_trainer: MakeTrainer, scale: float
) -> None:
    task = FakeTask()
    trainer = make_trainer(task)

    def spoil(epoch: int, number: int) -> None:
        task.scale = scale if (epoch, number) == (0, 4) else 1.0

    task.on_batch = spoil
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step 4: lower .*learning_rate"):
        trainer.run()
    assert all(torch.isfinite(p).all() for p in task.model.parameters())


def test_a_gradient_that_is_no_number_ends_the_run_too(make_trainer: MakeTrainer) -> None:
    task = FakeTask()
    task.model[0].weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(RunError, match="the gradient's norm is"):
        make_trainer(task).run()
    assert all(torch.isfinite(p).all() for p in task.model.parameters())


def test_a_validation_loss_that_is_no_number_is_never_the_best(make_trainer: MakeTrainer) -> None:
    best: list[Progress] = []
    with pytest.raises(RunError, match="validation loss is nan"):
        make_trainer(FakeTask([math.nan]), best=best).run()
    assert best == []
    diverged = FakeTask()
    diverged.validate = lambda: {"loss": 1e30, "perplexity": math.inf}  # type: ignore[method-assign]
    with pytest.raises(RunError, match="validation perplexity is inf"):
        make_trainer(diverged, best=best).run()
    assert best == []


def test_training_works_outside_the_main_thread(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(FakeTask())
    thread = threading.Thread(target=trainer.run)
    thread.start()
    thread.join()
    assert trainer.progress.step == 12


def test_the_log_tells_the_story(
    make_trainer: MakeTrainer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "training")
    make_trainer(FakeTask([3.0, 1.5, 2.0])).run()
    assert "from step 0 to 12" in caplog.text
    assert "step 8, epoch 1" in caplog.text
    assert "loss 1.5000 (best)" in caplog.text
    assert "loss 2.0000\n" in caplog.text
    assert "sample: a source -> a sample" in caplog.text


@pytest.mark.parametrize(
    ("validate_every", "expected"), [(4, [4, 5, 8, 10, 12]), (5, [5, 10, 12]), (6, [6, 12])]
)
def test_samples_come_with_every_validation_and_after_every_long_epoch(
    make_trainer: MakeTrainer, validate_every: int, expected: list[int]
) -> None:
    trainer = make_trainer(FakeTask(), validate_every_steps=validate_every)
    trainer.run()
    lines = (trainer.run_dir / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == expected
