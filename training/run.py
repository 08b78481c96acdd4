"""A training run from a preset to a checkpoint folder that the service can load."""

import datetime
import logging
import math
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from models.checkpoint import (
    TrainingRecord,
    load_model,
    read_checkpoint,
    save_checkpoint,
)
from training.card import write_card
from training.language_modelling import LanguageModelling
from training.loop import STATE_FILE, Progress, Trainer
from training.preset import Card, Preset, preset_record
from training.task import Task
from training.translation import Translation

LOGGER = logging.getLogger("training")
LOG_FILE = "train.log"
RUN_FOLDER = "run"


def make_task(
    preset: Preset, data_location: str | None, cache_dir: Path, device: torch.device
) -> Task:
    """Read the data, train the tokenizers and build the model of a preset.

    Raises:
        DataError: the data cannot be read or used.
        TokenizerError: the data are too small for the tokenizer asked for.
        pydantic.ValidationError: the model's configuration is impossible.
    """
    if preset.data.kind == "text":
        return LanguageModelling(preset, preset.data, data_location, cache_dir, device)
    return Translation(preset, preset.data, data_location, cache_dir, device)


def train(
    name: str,
    preset: Preset,
    out_dir: Path,
    *,
    cache_dir: Path,
    device: torch.device,
    data_location: str | None = None,
    show_progress: bool = True,
    stop_after_steps: int | None = None,
) -> Path:
    """Train a preset, or go on with a run that was stopped.

    Args:
        name: of the model: its folder below ``out_dir``.
        preset: what to train.
        out_dir: where the checkpoint folder goes.
        cache_dir: where downloads are kept.
        device: where to train.
        data_location: a text to read instead of the preset's, or None.
        show_progress: whether to draw a progress bar.
        stop_after_steps: stop early, as a kill would, after so many steps.

    Returns:
        The checkpoint folder.

    Raises:
        DataError: the data cannot be read or used.
        RunError: the folder holds a run with other settings, or the loss is not a number.
        InterruptedRunError: SIGINT or SIGTERM came; the run's state is saved.
    """
    folder = out_dir / name
    run_dir = folder / RUN_FOLDER
    run_dir.mkdir(parents=True, exist_ok=True)
    with _log_file(run_dir / LOG_FILE):
        # The seed also decides the initial weights, which are drawn when the model is built.
        torch.manual_seed(preset.training.seed)
        task = make_task(preset, data_location, cache_dir, device)

        def save(progress: Progress, metrics: dict[str, float] | None = None) -> None:
            _save(name, preset, task, folder, progress, metrics)

        trainer = Trainer(
            task=task,
            settings=preset.training,
            device=device,
            run_dir=run_dir,
            record={**preset_record(preset), "texts": [s.sha256 for s in task.sources]},
            save_best=save,
            show_progress=show_progress,
        )
        trainer.run(stop_after_steps)
        if trainer.progress.step < preset.training.steps:
            LOGGER.info("stopped at step %d", trainer.progress.step)
        else:
            save(trainer.progress, _measure(task, folder, device))
    return folder


@contextmanager
def _log_file(file: Path) -> Iterator[None]:
    """Write the run's log to a file, too."""
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        handler.close()


def _measure(task: Task, folder: Path, device: torch.device) -> dict[str, float]:
    """The card's figures, of the best weights as they are stored."""
    best = load_model(read_checkpoint(folder), device)
    task.model.load_state_dict(best.state_dict())
    task.model.eval()
    metrics = task.final_metrics()
    LOGGER.info("final: %s", ", ".join(f"{key} {value:g}" for key, value in metrics.items()))
    return metrics


def _save(
    name: str,
    preset: Preset,
    task: Task,
    folder: Path,
    progress: Progress,
    metrics: dict[str, float] | None,
) -> None:
    record = _record(name, preset, task, progress, metrics)
    save_checkpoint(
        folder,
        task.model,
        tokenizers=task.tokenizers,
        languages=task.languages,
        training=record,
        card=write_card(_card(name, preset, task), record, task.model, task.tokenizers),
    )


def _card(name: str, preset: Preset, task: Task) -> Card:
    """The preset's card, or a plain one for a text that the preset knows nothing of."""
    if task.sources[0].origin == preset.data.source.location:
        return preset.card
    return Card(title=name, licence="as the training data", limits="Not examined yet.")


def _record(
    name: str,
    preset: Preset,
    task: Task,
    progress: Progress,
    metrics: dict[str, float] | None,
) -> TrainingRecord:
    card = _card(name, preset, task)
    figures = {"training_tokens_per_second": round(progress.tokens_per_second, 0)}
    if math.isfinite(progress.train_perplexity):
        figures["last_epoch_training_perplexity"] = round(progress.train_perplexity, 4)
    return TrainingRecord(
        name=name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        data=task.sources,
        licence=card.licence,
        attribution=card.attribution,
        seed=preset.training.seed,
        steps=progress.step,
        metrics={**(metrics or {}), **figures},
        metrics_note=task.metrics_note() if metrics else "The run has not ended yet.",
        preset=preset_record(preset),
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "sentencepiece": version("sentencepiece"),
            "gatehouse": _gatehouse_version(),
            "threads": str(torch.get_num_threads()),
        },
    )


def _gatehouse_version() -> str:
    try:
        return version("gatehouse")
    except PackageNotFoundError:
        return "not installed"  # run from a checkout; no reason to lose a training run


def has_run(folder: Path) -> bool:
    """Whether a folder holds a run that can be gone on with."""
    return (folder / RUN_FOLDER / STATE_FILE).exists()
