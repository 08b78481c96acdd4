"""The application: wiring and lifespan, nothing else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app import VERSION
from app.api.admin import router as admin_router
from app.api.dialects import DialectMiddleware
from app.api.errors import install_error_handlers
from app.api.head import HeadMiddleware
from app.api.libretranslate.routes import router as libretranslate_router
from app.api.limits import BodyLimitMiddleware
from app.api.observation import ObservationMiddleware
from app.api.openai.routes import router as openai_router
from app.api.openapi import install_openapi
from app.api.request_id import RequestIdMiddleware
from app.api.routes import page_files, router
from app.runtime import Runtime
from app.settings import Settings, load_settings


def create_app(settings: Settings | None = None, runtime: Runtime | None = None) -> FastAPI:
    """Build the service; its models are loaded once it is started.

    Args:
        settings: None reads them from the environment.
        runtime: None makes one of the settings; the command line and tests bring their own.

    Raises:
        StartupError: a setting is unknown or refused.
    """
    if runtime is None:
        runtime = Runtime(settings or load_settings())
    started = runtime

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await started.start()
        yield
        await started.stop()

    # Like FastAPI, but /docs takes Swagger's files from a package instead of a foreign server.
    app = FastAPIOffline(
        title="Gatehouse",
        summary="Gated recurrent models over HTTP: text generation, translation, BLEU.",
        # Relative, for a service that stands behind another's path.
        description="To try it without writing JSON, open [the page](./).",
        version=VERSION,
        lifespan=lifespan,
        redoc_url=None,
        # Folds the list of schemas at the end of the page.
        swagger_ui_parameters={"defaultModelsExpandDepth": 0},
    )
    app.state.runtime = runtime
    app.include_router(router)
    app.include_router(admin_router)
    app.include_router(openai_router)
    app.include_router(libretranslate_router)
    app.mount("/static", page_files)
    install_error_handlers(app)
    install_openapi(app, runtime)
    app.add_middleware(BodyLimitMiddleware, max_body_bytes=runtime.settings.max_body_bytes)
    app.add_middleware(ObservationMiddleware, metrics=runtime.metrics)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(DialectMiddleware)
    app.add_middleware(RequestIdMiddleware)
    return app
