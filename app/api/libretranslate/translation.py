"""Translation as LibreTranslate has it: texts of any length, HTML, detected languages."""

import asyncio

from starlette.requests import Request

from app.api.disconnect import while_connected
from app.api.libretranslate.html import HtmlDocument
from app.api.libretranslate.requests import AUTO, LibreTranslateBody
from app.api.libretranslate.responses import DetectedAnswer, LibreTranslateAnswer
from app.api.observation import MODEL_SCOPE_KEY
from app.exceptions import UnknownLanguagePairError
from app.service.deadline import Deadline
from app.service.detection import DetectedLanguage
from app.service.service import Service


async def answer_libretranslate(
    request: Request, service: Service, body: LibreTranslateBody
) -> LibreTranslateAnswer:
    """Translate one text or a list of texts.

    Raises:
        RequestError: the request cannot be served as it stands.
        UnavailableError: it cannot be served now.
        DeadlineError: it took too long.
        ClientGoneError: the client went away.
    """
    with service.request() as deadline:
        work = _answer(request, service, body, deadline)
        return await while_connected(request.scope, request.receive, work)


async def _answer(
    request: Request, service: Service, body: LibreTranslateBody, deadline: Deadline
) -> LibreTranslateAnswer:
    service.limits.check_document("q", body.texts)
    pages: list[HtmlDocument] = []
    texts = body.texts
    if body.format == "html":
        reading = asyncio.to_thread(lambda: [HtmlDocument(text) for text in body.texts])
        pages = await deadline.wait_for(reading)
        texts = [page.text for page in pages]
    detected = None
    if body.source == AUTO:
        ranked = await service.detect("\n".join(texts), within=deadline)
        detected = _likeliest(ranked, body.target)
    source = body.source if detected is None else detected.language
    if source == body.target and any(source in pair for pair in service.catalog.language_pairs):
        # Where languages are detected, a text may turn out to need no translation.
        return _shaped(body, [[text] for text in body.texts], detected)
    model = service.catalog.for_translation(None, source, body.target)
    request.scope[MODEL_SCOPE_KEY] = model.name
    result = await service.translate(body.to_request(texts, source), within=deadline)
    translations = [[best.text for best in hypotheses] for hypotheses in result.translations]
    if pages:
        translations = [
            [page.with_text(text) for text in own]
            for page, own in zip(pages, translations, strict=True)
        ]
    return _shaped(body, translations, detected)


def _likeliest(ranked: list[DetectedLanguage], target: str | None) -> DetectedLanguage:
    """The likeliest language; among equals rather one that the text would not be wanted in."""
    if not ranked:
        raise UnknownLanguagePairError("the languages of the loaded models cannot be detected")
    equals = [each for each in ranked if each.is_as_likely_as(ranked[0])]
    return next((each for each in equals if each.language != target), ranked[0])


def _shaped(
    body: LibreTranslateBody, translations: list[list[str]], detected: DetectedLanguage | None
) -> LibreTranslateAnswer:
    """The answer: one text where q is one, else a list.

    Args:
        body: the request.
        translations: of each text, the best first.
        detected: the language of all texts, where it was asked for.
    """
    alternatives = [list(dict.fromkeys(own))[1:] for own in translations]
    one = isinstance(body.q, str)
    answer = LibreTranslateAnswer(
        translated_text=translations[0][0] if one else [own[0] for own in translations]
    )
    if body.alternatives:
        answer.alternatives = alternatives[0] if one else alternatives
    if detected is not None:
        language = DetectedAnswer.of(detected)
        answer.detected_language = language if one else [language] * len(translations)
    return answer
