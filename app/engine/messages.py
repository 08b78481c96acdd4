"""What the two sides of the engine tell each other, and its form on the wire (MessagePack).

The HTTP side sends :class:`Orders`; the engine's side sends :class:`Hello`, then
:class:`Loaded` or :class:`NotLoaded`, then :class:`Turn` after :class:`Turn`, and between them
what became of models that were ordered. What they carry are the data of
:mod:`app.engine.request` themselves.
"""

import msgspec

from app.engine.request import DecodeRequest, EndEvent, StepReport, TokensEvent


class ModelRevision(msgspec.Struct, frozen=True, array_like=True):
    """One state of a model whose checkpoint may be replaced while it serves.

    Attributes:
        name: of the model.
        revision: 0 at the start of the service, one more with each reload.
        path: the checkpoint's folder.
        fingerprint: what the checkpoint must have.
    """

    name: str
    revision: int
    path: str
    fingerprint: str


class Orders(msgspec.Struct, frozen=True, array_like=True):
    """What the engine is to do, in this order.

    Attributes:
        requests: to be submitted.
        cancelled: ids of requests to be dropped.
        loads: models to be loaded beside those that run.
        retired: models that get no more requests: dropped when their last request has ended.
        stop: whether to leave.
    """

    requests: tuple[DecodeRequest, ...] = ()
    cancelled: tuple[int, ...] = ()
    loads: tuple[ModelRevision, ...] = ()
    retired: tuple[ModelRevision, ...] = ()
    stop: bool = False


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The engine process runs and has found the socket.

    Attributes:
        token: what it was given, which no other process knows.
    """

    token: str


class Loaded(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Every model is loaded and has taken a real step.

    Attributes:
        device: where the models are.
        precision: what they compute in.
        load_seconds: how long each took to load, by name.
        capability: what its arithmetic depends on besides: see
            :func:`app.engine.device.describe_arithmetic`.
    """

    device: str
    precision: str
    load_seconds: dict[str, float]
    capability: str = ""


class NotLoaded(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The models could not be loaded; the engine waits for the order to stop.

    Attributes:
        reason: one clear sentence for a person.
    """

    reason: str


class ModelLoaded(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A model that was ordered serves beside the others.

    Attributes:
        model: which one.
        load_seconds: how long it took.
    """

    model: ModelRevision
    load_seconds: float


class ModelNotLoaded(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A model that was ordered cannot be loaded; the others go on.

    Attributes:
        model: which one.
        reason: one clear sentence for a person.
    """

    model: ModelRevision
    reason: str


class Turn(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What one or several turns of the engine brought.

    Tokens and ends stand apart, since a list of both kinds would need a tag on each. Nothing
    is lost: a request's tokens keep their order, and its end comes last.

    Attributes:
        started: ids of the requests that got their rows.
        tokens: tokens for the requests.
        ends: requests that are over.
        steps: what the models did.
        rows_running: rows in use, by model.
        stepped: whether a model took a real step, for a request or as a heartbeat.
    """

    started: tuple[int, ...] = ()
    tokens: tuple[TokensEvent, ...] = ()
    ends: tuple[EndEvent, ...] = ()
    steps: tuple[StepReport, ...] = ()
    rows_running: dict[str, int] = {}
    stepped: bool = False


EngineMessage = Hello | Loaded | NotLoaded | ModelLoaded | ModelNotLoaded | Turn
"""What the engine's side sends."""

_encoder = msgspec.msgpack.Encoder()
_orders_decoder = msgspec.msgpack.Decoder(Orders)
_message_decoder: msgspec.msgpack.Decoder[EngineMessage] = msgspec.msgpack.Decoder(EngineMessage)


def encode(message: Orders | EngineMessage) -> bytes:
    """The bytes of a message."""
    return _encoder.encode(message)


def decode_orders(data: bytes) -> Orders:
    """What :func:`encode` was given.

    Raises:
        msgspec.DecodeError: the bytes are no such message.
    """
    return _orders_decoder.decode(data)


def decode_message(data: bytes) -> EngineMessage:
    """What :func:`encode` was given.

    Raises:
        msgspec.DecodeError: the bytes are no such message.
    """
    return _message_decoder.decode(data)
