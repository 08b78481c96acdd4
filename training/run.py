"""A training run from a preset to a checkpoint folder that the service can load."""

import datetime
import logging
import math
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from models.checkpoint import CheckpointError, CheckpointInfo, read_checkpoint
from models.checkpoint_model import Model, load_model, save_checkpoint
from models.checkpoint_schema import InitialCheckpoint, TrainingRecord
from models.config import ModelConfig
from models.precision import keep_float32_exact
from training.card import write_card
from training.distributed import Processes
from training.evaluation_data import knows_validation, may_know_held_out
from training.language_modelling import LanguageModelling
from training.loop import Trainer
from training.optimization import autocast_dtype, precision_name
from training.preset import TRAINING_ONLY_FIELDS, Card, Preset, preset_record
from training.progress import Progress
from training.record import code_commit, gatehouse_version, require_the_same_beginning
from training.resuming import STATE_FILE, RunError
from training.run_lock import run_lock
from training.sources import public_origin
from training.task import Task
from training.translation import Translation

LOGGER = logging.getLogger("training")
LOG_FILE = "train.log"
RUN_FOLDER = "run"


def make_task(
    preset: Preset,
    data_location: str | None,
    cache_dir: Path,
    device: torch.device,
    initial: CheckpointInfo | None = None,
    processes: Processes | None = None,
) -> Task:
    """Read the data, train the tokenizers and build the model of a preset.

    Args:
        preset: what to train.
        data_location: a text to read instead of the preset's, or None.
        cache_dir: where downloads are kept.
        device: where to train.
        initial: a checkpoint to take tokenizers and weights from, or None.
        processes: that train together, or None for this one alone.

    Raises:
        CheckpointError: the initial checkpoint is of another architecture.
        DataError: the data cannot be read or used.
        TokenizerError: the data are too small for the tokenizer asked for.
        pydantic.ValidationError: the model's configuration is impossible.
    """
    if initial and initial.config.kind != preset.model["kind"]:
        raise CheckpointError(
            f"{initial.path}: cannot begin with it, since it is a {initial.config.kind} and the "
            f"preset trains a {preset.model['kind']}"
        )
    tokenizers = initial.tokenizers if initial else None
    task: Task
    if preset.data.kind == "text":
        task = LanguageModelling(
            preset, preset.data, data_location, cache_dir, device, tokenizers, processes
        )
    else:
        task = Translation(
            preset, preset.data, data_location, cache_dir, device, tokenizers, processes
        )
    if initial:
        _take_weights(task.model, initial, device)
    return task


def _take_weights(model: Model, initial: CheckpointInfo, device: torch.device) -> None:
    key = architecture_difference(model.config, initial.config)
    if key is not None:
        raise CheckpointError(
            f"{initial.path}: cannot begin with it, since its model.{key} is "
            f"{getattr(initial.config, key, None)} and the preset's "
            f"{getattr(model.config, key, None)}"
        )
    model.load_state_dict(load_model(initial, device).state_dict())


def architecture_difference(ours: ModelConfig, theirs: ModelConfig) -> str | None:
    """The first field for which weights of one do not fit into the other, or None.

    What only training knows of may differ.
    """
    one, other = (config.model_dump(exclude=set(TRAINING_ONLY_FIELDS)) for config in (ours, theirs))
    keys = [key for key in (*one, *other) if one.get(key) != other.get(key)]
    return keys[0] if keys else None


def train(
    name: str,
    preset: Preset,
    out_dir: Path,
    *,
    cache_dir: Path,
    device: torch.device,
    data_location: str | None = None,
    initial_dir: Path | None = None,
    processes: Processes | None = None,
    arguments: Sequence[str] = (),
    repeats: TrainingRecord | None = None,
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
        initial_dir: a checkpoint folder to begin with the weights and tokenizers of, or None.
        processes: that train together, or None for this one alone. The first alone writes.
        arguments: of the command line, for ``training.json``.
        repeats: the record of the run that this one does again, or None.
        show_progress: whether to draw a progress bar.
        stop_after_steps: stop early, as a kill would, after so many steps.

    Returns:
        The checkpoint folder.

    Raises:
        CheckpointError: the initial checkpoint cannot be read, or is of another architecture.
        DataError: the data cannot be read or used.
        RunError: the folder holds a run with other settings, a model of other data, or another
            process; or the loss is not a number.
        InterruptedRunError: SIGINT or SIGTERM came; the run's state is saved.
        LostProcessError: another process has ended.
        PresetError: the run that is to be done again had another text or initial checkpoint.
    """
    processes = processes or Processes()
    folder = out_dir / name
    run_dir = folder / RUN_FOLDER
    run_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if processes.is_first:
            stack.enter_context(run_lock(run_dir))
            stack.enter_context(_log_file(run_dir / LOG_FILE))
        # The seed also decides the initial weights, which are drawn when the model is built.
        torch.manual_seed(preset.training.seed)
        initial = read_checkpoint(initial_dir) if initial_dir else None
        task = make_task(preset, data_location, cache_dir, device, initial, processes)
        if processes.is_first:
            _require_no_other_model(folder, task)
        if repeats:
            require_the_same_beginning(repeats, task.sources, initial)
        facts = {
            "initial": checkpoint_record(initial) if initial else None,
            "initial_may_know_held_out": _may_know_held_out(initial, preset, task),
            "precision": precision_name(autocast_dtype(preset.training, device)),
            "processes": processes.count,
            "arguments": list(arguments),
        }

        def save(progress: Progress, metrics: dict[str, float] | None = None) -> None:
            record = _record(name, preset, task, progress, metrics, facts, device)
            write_model(folder, task, card_of(name, preset, task), record)

        trainer = Trainer(
            task=task,
            settings=preset.training,
            device=device,
            run_dir=run_dir,
            record={
                **preset_record(preset),
                "texts": [source.sha256 for source in task.sources],
                "initial": initial.fingerprint if initial else None,
            },
            save_best=save,
            show_progress=show_progress,
            processes=processes,
        )
        trainer.run(stop_after_steps)
        if trainer.progress.step < preset.training.steps:
            LOGGER.info("stopped at step %d", trainer.progress.step)
        elif processes.is_first:
            save(trainer.progress, measure_stored(task, folder, device))
        processes.wait()
    return folder


def _may_know_held_out(initial: CheckpointInfo | None, preset: Preset, task: Task) -> bool:
    """Whether the run begins with a model that may know what it is measured on; says so, too."""
    if initial is None:
        return False
    if not may_know_held_out(initial, preset.data, task.sources):
        if knows_validation(initial, preset.data):
            LOGGER.warning(
                "%s was trained on some of the pairs that are for validation here, for its "
                "data.validation_share is smaller: what it knows by heart looks best",
                initial.name,
            )
        return False
    LOGGER.warning(
        "%s was trained on other data, or with another cut: it may have seen some of what is "
        "held out here, and the figures will look better than they are",
        initial.name,
    )
    return True


def note_on_metrics(task: Task, initial_may_know_held_out: bool) -> str:
    """What is to be known of a run's figures, in sentences for the card."""
    if not initial_may_know_held_out:
        return task.metrics_note()
    return (
        f"{task.metrics_note()} The run began with weights that were trained on other data, or "
        "with another cut: they may have been trained on some of what is measured here."
    )


def _require_no_other_model(folder: Path, task: Task) -> None:
    """Refuse to write over a checkpoint of other data that has no run to go on with.

    Where there is a run, its saved state says whether it is this one.
    """
    if has_run(folder):
        return
    try:
        record = read_checkpoint(folder).training
    except CheckpointError:  # none, or one that a kill has left in pieces
        return
    if [source.sha256 for source in record.data] != [source.sha256 for source in task.sources]:
        raise RunError(
            f"{folder}: holds a model that was trained on other data: choose another --out or "
            "--name, or delete it"
        )


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


def measure_stored(task: Task, folder: Path, device: torch.device) -> dict[str, float]:
    """The card's figures, of the best weights as they are stored."""
    keep_float32_exact()
    best = load_model(read_checkpoint(folder), device)
    task.model.load_state_dict(best.state_dict())
    task.model.eval()
    metrics = task.final_metrics()
    LOGGER.info("final: %s", ", ".join(f"{key} {value:g}" for key, value in metrics.items()))
    return metrics


def write_model(folder: Path, task: Task, card: Card, record: TrainingRecord) -> None:
    """Write a task's model as a checkpoint folder, with its record and card."""
    save_checkpoint(
        folder,
        task.model,
        tokenizers=task.tokenizers,
        languages=task.languages,
        training=record,
        card=write_card(card, record, task.model, task.tokenizers),
    )


def card_of(name: str, preset: Preset, task: Task) -> Card:
    """The preset's card, or a plain one for a text that the preset knows nothing of."""
    expected = [(text.name, public_origin(text.location)) for text in preset.data.texts()]
    if [(source.name, source.origin) for source in task.sources] == expected:
        return preset.card
    return Card(title=name, licence="as the training data", limits="Not examined yet.")


def _record(
    name: str,
    preset: Preset,
    task: Task,
    progress: Progress,
    metrics: dict[str, float] | None,
    facts: dict[str, Any],
    device: torch.device,
) -> TrainingRecord:
    card = card_of(name, preset, task)
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
        best_step=progress.best_step,
        **facts,
        metrics={**(metrics or {}), **figures},
        metrics_note=(
            note_on_metrics(task, facts["initial_may_know_held_out"])
            if metrics
            else "The run has not ended yet."
        ),
        preset=preset_record(preset),
        versions=versions_of(device),
    )


def versions_of(device: torch.device) -> dict[str, str]:
    """What weights depend on beside data and settings."""
    commit = code_commit()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sentencepiece": version("sentencepiece"),
        "gatehouse": gatehouse_version(),
        **({"commit": commit} if commit else {}),
        "threads": str(torch.get_num_threads()),
        "device": _device_name(device),
    }


def checkpoint_record(initial: CheckpointInfo) -> InitialCheckpoint:
    """How a record names another checkpoint."""
    return InitialCheckpoint(
        name=initial.name, fingerprint=initial.fingerprint, steps=initial.training.steps
    )


def _device_name(device: torch.device) -> str:
    """What rounding depends on beside the versions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.backends.cpu.get_cpu_capability()}"


def has_run(folder: Path) -> bool:
    """Whether a folder holds a run that can be gone on with."""
    return (folder / RUN_FOLDER / STATE_FILE).exists()
