"""Loading weights and building the engine over them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from loky import cpu_count

from app.damage import damage_as
from app.engine.device import describe_arithmetic, resolve_device, resolve_precision
from app.engine.engine import Engine
from app.engine.graphs import CudaCapture, GraphedModel
from app.engine.messages import ModelRevision
from app.engine.runner import Runner
from app.engine.spec import EngineSpec
from app.exceptions import StartupError
from models.checkpoint import CheckpointInfo, checkpoint_name, read_checkpoint
from models.checkpoint_model import Model, load_model
from models.config import LanguageModelConfig
from models.decoding.arrivals import ReadingThread
from models.precision import keep_float32_exact, set_precision, use_threads
from models.vocabulary import BOS_ID, EOS_ID

_LIGHT_THREADS = 2
"""Where there are two cores, neither HTTP nor reading needs one of its own for a few rows."""
_MOST_THREADS = 8
"""More of them wait for each other longer than they compute, in steps as small as these."""


@dataclass(frozen=True)
class LoadedEngine:
    """An engine and what became of the models.

    Attributes:
        engine: ready to step.
        device: where the models are.
        precision: what they compute in.
        load_seconds: how long each took to load, by name.
        capability: what their arithmetic depends on besides.
        loader: loads others beside them.
    """

    engine: Engine
    device: str
    precision: str
    load_seconds: Mapping[str, float]
    capability: str
    loader: "ModelLoader"

    def prepare(self, model: ModelRevision) -> Callable[[], None]:
        """Load another revision of a model; to be called on any thread.

        Returns:
            What has the engine serve it; to be called on the engine's own thread.

        Raises:
            StartupError: its checkpoint is damaged, or is not the one that was meant.
        """
        path = Path(model.path)
        make_runner = self.loader.prepare(path, model.revision)
        # Read again: whoever replaces files may have done it while they were being loaded.
        with damage_as(StartupError):
            now = read_checkpoint(path)
        if now.fingerprint != model.fingerprint:
            raise StartupError(f"checkpoint {model.name} changed while it was being loaded")

        def serve() -> None:
            runner = make_runner()
            if runner is not None:
                self.engine.add(runner)

        return serve


class ModelLoader:
    """From checkpoint folders to runners on one device.

    Args:
        spec: of the engine.

    Raises:
        StartupError: the device is not there, or it cannot run the precision.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.device = resolve_device(spec.device)
        self.precision = resolve_precision(spec.precision, self.device)
        self._row_budget = spec.row_budget
        # Only in int8 does a prompt read in parts give the same bits as read at once.
        self._prefix_bytes = spec.prefix_cache_bytes if self.precision == "int8" else 0
        self._capture: CudaCapture | None = None
        self._reading: ReadingThread | None = None
        if self.device.type == "cuda":
            keep_float32_exact()
            self._capture = CudaCapture(self.device)
        elif available_cores() > 1:
            # One for all models, whose prompts take turns.
            self._reading = ReadingThread()

    def prepare(self, folder: Path, revision: int = 0) -> Callable[[], Runner | None]:
        """Read, check and build a model; on any thread.

        A GPU is left alone meanwhile: the engine may be recording a graph on it just now.

        Args:
            folder: of the checkpoint.
            revision: see :class:`app.engine.messages.ModelRevision`.

        Returns:
            What gives its runner, which is warm, or None for a model with nothing to decode; to
            be called on the engine's own thread, where it takes long on a GPU alone.

        Raises:
            StartupError: the checkpoint is damaged.
        """
        with damage_as(StartupError):
            info = read_checkpoint(folder)
            model = load_model(info, torch.device("cpu"))
        if self._capture is not None:
            return lambda: self._runner(info, model.to(self.device), revision)
        runner = self._runner(info, model, revision)
        return lambda: runner

    def _runner(self, info: CheckpointInfo, model: Model, revision: int) -> Runner | None:
        model = set_precision(model, self.precision)
        if not _can_decode(info):
            return None
        is_language_model = isinstance(info.config, LanguageModelConfig)
        runner = Runner(
            info.name,
            model if self._capture is None else GraphedModel(model, self._capture),
            # A language model reads all of a prompt but its last token.
            heartbeat_prompt=(BOS_ID, EOS_ID) if is_language_model else (EOS_ID,),
            row_budget=self._row_budget,
            single_lane=self._capture is not None,
            prefix_bytes=self._prefix_bytes if is_language_model else 0,
            executor=self._reading,
            revision=revision,
        )
        runner.warm_up()
        return runner


def load_engine(spec: EngineSpec) -> LoadedEngine:
    """Load the weights of the checkpoints and build an engine over them.

    Raises:
        StartupError: the device is not there, it cannot run the precision, or a checkpoint is
            damaged.
    """
    loader = ModelLoader(spec)
    cores = available_cores()
    threads = spec.num_threads or default_threads(cores)
    use_threads(threads, loader.precision, spec.num_threads or min(cores, _LIGHT_THREADS))
    runners: list[Runner] = []
    load_seconds: dict[str, float] = {}
    for folder in spec.checkpoints:
        started_at = time.monotonic()
        name = checkpoint_name(folder)
        runner = loader.prepare(folder, spec.revisions.get(name, 0))()
        load_seconds[name] = time.monotonic() - started_at
        if runner is not None:
            runners.append(runner)
    return LoadedEngine(
        Engine(runners),
        str(loader.device),
        loader.precision,
        load_seconds,
        describe_arithmetic(loader.device),
        loader,
    )


def available_cores() -> int:
    """Cores that this process may use: ``taskset`` or a container's limit may leave it a few."""
    return int(cpu_count())


def default_threads(cores: int) -> int:
    """Two less than there are cores: one for the HTTP side, one for reading; at most 8."""
    return min(max(cores - 2, 1), _MOST_THREADS)


def _can_decode(info: CheckpointInfo) -> bool:
    """Not a bidirectional language model, which has nothing to decode."""
    return not (isinstance(info.config, LanguageModelConfig) and info.config.bidirectional)
