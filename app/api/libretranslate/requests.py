"""The bodies of the LibreTranslate dialect, and their way into the service's own request."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from app.api.body import StrictBody
from app.api.fields import Document, Language, OneOrManyDocuments
from app.api.libretranslate.errors import libretranslate_error
from app.engine.request import MAX_ROWS_PER_REQUEST
from app.service.translation import DEFAULT_BEAM_SIZE, TranslationRequest

AUTO = "auto"
"""The source language that is to be detected."""
_FIELD = "q"


class _LibreTranslateBody(StrictBody):
    selected_by: ClassVar[str | None] = _FIELD
    is_form_too: ClassVar[bool] = True
    dialect_error: ClassVar[Any] = staticmethod(libretranslate_error)

    api_key: str | None = Field(
        default=None,
        description="API key, if the service requires one; the header Authorization: Bearer works "
        "as well.",
    )


class LibreTranslateBody(_LibreTranslateBody):
    """What to translate: a body of ``POST /translate`` with ``q``."""

    q: OneOrManyDocuments = Field(
        description="Text of any length to translate, or a list of texts. All are in one language."
    )
    source: Language = Field(
        default=AUTO, description="Language of the texts; auto: it is detected."
    )
    target: Language | None = Field(
        default=None,
        description="Language to translate to; null: the target language of the model for source.",
    )
    format: Literal["text", "html"] = Field(
        default="text", description="html: tags are kept, and the text between them is translated."
    )
    alternatives: int = Field(
        default=0,
        ge=0,
        lt=MAX_ROWS_PER_REQUEST,
        description="How many other translations to return per text, best first; fewer if the "
        "beam finds fewer.",
    )

    @property
    def texts(self) -> list[str]:
        """The texts, also where there is but one."""
        return [self.q] if isinstance(self.q, str) else self.q

    def to_request(self, texts: Sequence[str], source: str) -> TranslationRequest:
        """Ask the service.

        Args:
            texts: those of the body, without HTML.
            source: their language.
        """
        return TranslationRequest(
            texts=tuple(texts),
            source=source,
            target=self.target,
            beam_size=max(DEFAULT_BEAM_SIZE, self.alternatives + 1),
            num_hypotheses=self.alternatives + 1,
            split=True,
            field=_FIELD,
        )


class DetectBody(_LibreTranslateBody):
    """The body of ``POST /detect``."""

    q: Document = Field(description="Text whose language is to be detected.")
