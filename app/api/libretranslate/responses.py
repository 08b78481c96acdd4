"""The answers of the LibreTranslate dialect, with its names for everything."""

from functools import cache

from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel

from app.api.responses import Answer
from app.catalog import Catalog
from app.service.detection import DetectedLanguage


class _CamelCaseAnswer(Answer):
    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, serialize_by_alias=True
    )


class DetectedAnswer(Answer):
    """A language that a text may be in."""

    confidence: float = Field(description="Percent, among the languages of the loaded models.")
    language: str

    @classmethod
    def of(cls, detected: DetectedLanguage) -> "DetectedAnswer":
        """Copy from the service's."""
        return cls(confidence=round(100 * detected.confidence, 1), language=detected.language)


class LibreTranslateAnswer(_CamelCaseAnswer):
    """The answer of ``POST /translate`` to a body with ``q``."""

    translated_text: str | list[str] = Field(description="One text, or a list if q is a list.")
    alternatives: list[str] | list[list[str]] | None = Field(
        default=None, description="Only with alternatives: for each text a list, best first."
    )
    detected_language: DetectedAnswer | list[DetectedAnswer] | None = Field(
        default=None,
        description="Only with source auto; a list of identical entries if q is a list.",
    )


class LanguageAnswer(Answer):
    """A language of the loaded models."""

    code: str
    name: str = Field(description="In English.")
    targets: list[str] = Field(description="Languages that it can be translated to.")


class NamedLanguage(Answer):
    """A language with its name."""

    code: str
    name: str


class DefaultLanguages(Answer):
    """What a page may choose at first."""

    source: NamedLanguage
    target: NamedLanguage


class SettingsAnswer(_CamelCaseAnswer):
    """What a page for people needs to know."""

    api_keys: bool = Field(description="Whether there are API keys.")
    char_limit: int = Field(description="Maximum number of characters of all texts of a request.")
    files_translation: bool = Field(description="Always false: files are not supported.")
    frontend_timeout: int = Field(description="Milliseconds that a page waits for more typing.")
    key_required: bool = Field(description="Whether every request needs a key.")
    language: DefaultLanguages
    suggestions: bool = Field(description="Always false: none are accepted.")
    supported_files_format: list[str] = Field(description="Always empty.")


def languages_of(catalog: Catalog) -> list[LanguageAnswer]:
    """Every language that a loaded model reads or writes, by name."""
    pairs = catalog.language_pairs
    codes = {code for pair in pairs for code in pair}
    answers = [
        LanguageAnswer(
            code=code,
            name=name_of(code),
            targets=[target for source, target in pairs if source == code],
        )
        for code in codes
    ]
    return sorted(answers, key=lambda answer: (answer.name, answer.code))


def named(code: str) -> NamedLanguage:
    """A language with its name."""
    return NamedLanguage(code=code, name=name_of(code))


@cache
def name_of(code: str) -> str:
    """The English name of a language, or its code where ISO 639 has none."""
    from iso639 import Language, LanguageNotFoundError  # reads its tables, for half a second

    try:
        return Language.match(code).name
    except LanguageNotFoundError:
        return code
