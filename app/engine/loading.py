"""Loading weights and building the engine over them."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from app.engine.device import describe_arithmetic, resolve_device, resolve_precision
from app.engine.engine import Engine
from app.engine.graphs import CudaCapture, GraphedModel
from app.engine.runner import Runner
from app.exceptions import StartupError
from models.checkpoint import CheckpointError, CheckpointInfo, load_model, read_checkpoint
from models.config import LanguageModelConfig
from models.precision import keep_float32_exact, set_precision
from models.vocabulary import BOS_ID, EOS_ID

_MOST_THREADS = 8
"""More of them wait for each other longer than they compute, in steps as small as these."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What an engine is to run.

    Attributes:
        checkpoints: folders.
        device: the setting: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: the setting: ``auto`` or a :data:`models.precision.Precision`.
        num_threads: threads of one tensor operation; None: see :func:`default_threads`.
        row_budget: rows of each model that may run at once.
        prefix_cache_bytes: memory for states of prompts that each language model has read.
    """

    checkpoints: tuple[Path, ...]
    device: str
    precision: str
    num_threads: int | None
    row_budget: int
    prefix_cache_bytes: int = 0


@dataclass(frozen=True)
class LoadedEngine:
    """An engine and what became of the models.

    Attributes:
        engine: ready to step.
        device: where the models are.
        precision: what they compute in.
        load_seconds: how long each took to load, by name.
        capability: what their arithmetic depends on besides.
    """

    engine: Engine
    device: str
    precision: str
    load_seconds: Mapping[str, float]
    capability: str


def load_engine(spec: EngineSpec) -> LoadedEngine:
    """Load the weights of the checkpoints and build an engine over them.

    Raises:
        StartupError: the device is not there, it cannot run the precision, or a checkpoint is
            damaged.
    """
    device = resolve_device(spec.device)
    precision = resolve_precision(spec.precision, device)
    capture = None
    if device.type == "cuda":
        keep_float32_exact()
        capture = CudaCapture(device)
    torch.set_num_threads(spec.num_threads or default_threads(available_cores()))
    runners: list[Runner] = []
    load_seconds: dict[str, float] = {}
    for folder in spec.checkpoints:
        started_at = time.monotonic()
        try:
            info = read_checkpoint(folder)
            model = set_precision(load_model(info, device), precision)
        except CheckpointError as error:
            raise StartupError(f"damaged checkpoint: {error}") from error
        load_seconds[info.name] = time.monotonic() - started_at
        if _can_decode(info):
            is_language_model = isinstance(info.config, LanguageModelConfig)
            runner = Runner(
                info.name,
                model if capture is None else GraphedModel(model, capture),
                heartbeat_prompt=(BOS_ID,) if is_language_model else (EOS_ID,),
                row_budget=spec.row_budget,
                single_lane=capture is not None,
                # Only in int8 does a prompt read in parts give the same bits as read at once.
                prefix_bytes=spec.prefix_cache_bytes
                if is_language_model and precision == "int8"
                else 0,
            )
            runner.warm_up()
            runners.append(runner)
    capability = describe_arithmetic(device)
    return LoadedEngine(Engine(runners), str(device), precision, load_seconds, capability)


def available_cores() -> int:
    """Cores that this process may use: a container or ``taskset`` may leave it a few."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads(cores: int) -> int:
    """One thread less than there are cores, which leaves one for the HTTP side; at most 8."""
    return min(max(cores - 1, 1), _MOST_THREADS)


def _can_decode(info: CheckpointInfo) -> bool:
    """Not a bidirectional language model, which has nothing to decode."""
    return not (isinstance(info.config, LanguageModelConfig) and info.config.bidirectional)
