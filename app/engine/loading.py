"""Loading weights and starting the engine over them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from app.engine.client import EngineClient
from app.engine.device import resolve_device
from app.engine.request import DecodingParams
from app.engine.worker import WorkerEngine, WorkerModel
from app.exceptions import StartupError
from models.checkpoint import CheckpointError, CheckpointInfo, Model, load_model
from models.config import LanguageModelConfig
from models.decoding.params import Emission
from models.decoding.reference import decode_reference
from models.vocabulary import BOS_ID, EOS_ID


@dataclass(frozen=True)
class StartedEngine:
    """A running engine and what became of the models.

    Attributes:
        client: how to reach it.
        device: where the models are.
        precision: what they compute in.
        load_seconds: how long each took to load, by name.
    """

    client: EngineClient
    device: str
    precision: str
    load_seconds: Mapping[str, float]


def start_engine(
    checkpoints: Sequence[CheckpointInfo],
    *,
    device: str,
    num_threads: int | None,
    queue_capacity: int,
) -> StartedEngine:
    """Load the weights of the checkpoints and start an engine over them.

    Takes as long as loading takes: call it in a thread.

    Raises:
        StartupError: the device is not there or a checkpoint is damaged.
    """
    torch_device = resolve_device(device)
    if torch_device.type == "cuda":
        _keep_float32_exact()
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    models: dict[str, WorkerModel] = {}
    load_seconds: dict[str, float] = {}
    for info in checkpoints:
        started_at = time.monotonic()
        try:
            model = load_model(info, torch_device)
        except CheckpointError as error:
            raise StartupError(f"damaged checkpoint: {error}") from error
        load_seconds[info.name] = time.monotonic() - started_at
        if worker_model := _worker_model(info, model):
            models[info.name] = worker_model
    engine = WorkerEngine(models, queue_capacity=queue_capacity)
    engine.start()
    return StartedEngine(engine, str(torch_device), "float32", load_seconds)


def _keep_float32_exact() -> None:
    """Switch off TF32, in which a GPU computes float32 products with 10 bits of mantissa.

    cuDNN's recurrent layers use it unless told otherwise, and answers would then differ from
    the CPU's in the third digit.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    # Setting `fp32_precision` of single operators instead would have `cudnn.flags()` raise.
    torch.backends.cudnn.allow_tf32 = False


def _worker_model(info: CheckpointInfo, model: Model) -> WorkerModel | None:
    """None for a bidirectional language model, which has nothing to decode."""
    if isinstance(info.config, LanguageModelConfig) and info.config.bidirectional:
        return None

    def decode(prompt: Sequence[int], params: DecodingParams) -> Iterator[list[Emission]]:
        return decode_reference(model, prompt, params)

    is_language_model = isinstance(info.config, LanguageModelConfig)
    return WorkerModel(decode, (BOS_ID,) if is_language_model else (EOS_ID,))
