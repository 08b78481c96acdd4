"""The endpoints for whoever runs the service: nothing that its users need."""

from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import Field

from app.api.access import ADMIN_PROBLEMS, runtime_of
from app.api.openapi import problems
from app.api.responses import Answer
from app.reloading import Reload

router = APIRouter(prefix="/admin", tags=["operation"])


class ReloadAnswer(Answer):
    """The answer of ``POST /admin/models/{name}/reload``."""

    name: str
    changed: bool = Field(description="Whether another checkpoint is serving now.")
    fingerprint: str = Field(description="Fingerprint of the checkpoint that is serving now.")
    previous_fingerprint: str = Field(description="Fingerprint of the one that served before.")
    load_seconds: float = Field(
        description="How long the checkpoint that is serving now took to load."
    )

    @classmethod
    def of(cls, reload: Reload) -> "ReloadAnswer":
        """Tell what a reload did."""
        return cls(
            name=reload.new.name,
            changed=reload.is_changed,
            fingerprint=reload.new.info.fingerprint,
            previous_fingerprint=reload.old.info.fingerprint,
            load_seconds=reload.new.load_seconds,
        )


@router.post(
    "/models/{name}/reload",
    summary="Replace a model with what its folder holds now",
    responses=problems(
        *ADMIN_PROBLEMS, "unknown_model", "reload_failed", "internal_error", "not_ready", "draining"
    ),
)
async def reload_model(
    request: Request,
    name: Annotated[str, Path(description="Name of a model that GET /models lists.")],
) -> ReloadAnswer:
    """No request fails meanwhile; those that run go on over the old one.

    Answers when the new one serves. When the folder holds nothing that could take the model's
    place, the old one goes on.
    """
    return ReloadAnswer.of(await runtime_of(request).reloader().reload(name))
