"""Many checkpoints on few replicas: models are loaded when requests ask for them by a header.

Ray keeps the books: which replica has which model, where a request goes, and which model leaves,
the one that was used least recently. Loading and unloading are Gatehouse's.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext

from ray import serve
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.admission import admission_of
from app.api.authorization import is_open
from app.api.errors import problem_of, told
from app.exceptions import GatehouseError
from app.runtime import Runtime

LoadModel = Callable[[str], Awaitable["ModelInUse"]]


class ModelInUse(AbstractContextManager[None]):
    """A loaded model, from which Ray takes its memory back when others were used since.

    Args:
        runtime: that it was loaded in.
        name: of the model.
    """

    def __init__(self, runtime: Runtime, name: str) -> None:
        self._runtime = runtime
        self._name = name
        self._requests = 0
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        # Ray awaits this when the model has to go. Of the instance, since Python itself would
        # call that of a class once more, and await nothing.
        self.__del__ = self._unload

    def __enter__(self) -> None:
        """A request needs the model."""
        self._requests += 1
        self._is_idle.clear()

    def __exit__(self, *_: object) -> None:
        """It has its answer."""
        self._requests -= 1
        if not self._requests:
            self._is_idle.set()

    async def _unload(self) -> None:
        # Its memory is not free before, in any case; and no request misses it.
        await self._is_idle.wait()
        self._runtime.models_on_demand().unload(self._name)


def multiplexed(runtime: Runtime, models_per_replica: int) -> LoadModel:
    """What loads a model by its name, or takes one that is there.

    Args:
        runtime: of the replica.
        models_per_replica: most models beside those that the service began with.
    """

    async def load(name: str) -> ModelInUse:
        await runtime.models_on_demand().load(name)
        return ModelInUse(runtime, name)

    loader: LoadModel = serve.multiplexed(load, max_num_models_per_replica=models_per_replica)
    return loader


class ModelInHeaderMiddleware:
    """Has the model that a request's header names loaded while the request is served.

    It belongs behind the check of API keys: nobody loads a model whom the service would not
    answer. A key that comes in a form's or a LibreTranslate body is read too late for that.

    Args:
        app: the application behind.
        runtime: of the replica.
        load: see :func:`multiplexed`.
    """

    def __init__(self, app: ASGIApp, runtime: Runtime, load: LoadModel) -> None:
        self._app = app
        self._runtime = runtime
        self._load = load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        name = _wanted_model(scope)
        if not name:
            await self._app(scope, receive, send)
            return
        try:
            model = await self._model(name)
        except GatehouseError as error:
            await told(scope, problem_of(error))(scope, receive, send)
            return
        with model:
            await self._app(scope, receive, send)

    async def _model(self, name: str) -> AbstractContextManager[None]:
        models = self._runtime.models_on_demand()
        if name in models.resident:
            return nullcontext()
        # Before Ray makes room for it: a name that nobody knows is no reason to drop a model.
        await models.check(name)
        return await self._load(name)


def _wanted_model(scope: Scope) -> str:
    """The model that a request names in Ray's header, if it may have one loaded."""
    if scope["type"] != "http" or is_open(scope["path"]) or not admission_of(scope).is_granted:
        return ""
    name: str = serve.get_multiplexed_model_id()
    return name
