"""The application: wiring and lifespan, nothing else."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from app import VERSION
from app.api.admin import router as admin_router
from app.api.authorization import AuthorizationMiddleware
from app.api.dialects import DialectMiddleware
from app.api.direct import DirectMiddleware
from app.api.docs_page import install_docs
from app.api.errors import install_error_handlers
from app.api.head import HeadMiddleware
from app.api.libretranslate.routes import router as libretranslate_router
from app.api.limits import BodyLimitMiddleware
from app.api.observation import ObservationMiddleware
from app.api.openai.routes import router as openai_router
from app.api.openapi import install_openapi
from app.api.request_id import HEADER as REQUEST_ID_HEADER
from app.api.request_id import RequestIdMiddleware
from app.api.routes import page_files, router
from app.api.security_headers import SecurityHeadersMiddleware
from app.api.shedding import SheddingMiddleware
from app.api.unexpected import UnexpectedErrorMiddleware
from app.key_limits import KeyLimits
from app.keys import read_keys
from app.runtime import Runtime
from app.settings import Settings, load_settings


def create_app(settings: Settings | None = None, runtime: Runtime | None = None) -> FastAPI:
    """Build the service; its models are loaded once it is started.

    Args:
        settings: None reads them from the environment.
        runtime: None makes one of the settings; the command line and tests bring their own.

    Raises:
        StartupError: a setting is unknown or refused, or an API key cannot be read.
    """
    if runtime is None:
        runtime = Runtime(settings or load_settings())
    started = runtime

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await started.start()
        yield
        await started.stop()

    # Like FastAPI, but with Swagger's files from a package instead of a foreign server.
    app = FastAPIOffline(
        title="Gatehouse",
        summary="Gated recurrent models over HTTP: text generation, translation, BLEU.",
        # Relative, for a service that stands behind another's path.
        description="To try it without writing JSON, open [the page](./).",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.runtime = runtime
    app.state.keys = read_keys(runtime.settings)
    install_docs(app)
    app.include_router(router)
    app.include_router(admin_router)
    app.include_router(openai_router)
    app.include_router(libretranslate_router)
    app.mount("/static", page_files)
    install_error_handlers(app)
    install_openapi(app, runtime)
    _add_middleware(app, runtime)
    return app


def _add_middleware(app: FastAPI, runtime: Runtime) -> None:
    """What every request goes through: the last one added sees it first."""
    settings = runtime.settings
    app.add_middleware(DirectMiddleware, routers=(router, openai_router, libretranslate_router))
    app.add_middleware(
        BodyLimitMiddleware,
        max_body_bytes=settings.max_body_bytes,
        timeout_seconds=settings.receive_timeout_seconds,
    )
    app.add_middleware(
        AuthorizationMiddleware,
        keys=app.state.keys,
        limits=KeyLimits(settings.key_requests_per_minute, settings.key_tokens_per_minute),
    )
    app.add_middleware(UnexpectedErrorMiddleware)
    app.add_middleware(ObservationMiddleware, metrics=runtime.metrics)
    app.add_middleware(HeadMiddleware)
    app.add_middleware(SheddingMiddleware, queue_full=runtime.queue_full, metrics=runtime.metrics)
    app.add_middleware(DialectMiddleware)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # no cookies, and so nothing that a header could misuse
            expose_headers=["Retry-After", REQUEST_ID_HEADER],
        )
    app.add_middleware(SecurityHeadersMiddleware)
    app.add_middleware(RequestIdMiddleware)
