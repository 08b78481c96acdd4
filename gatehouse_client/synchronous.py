"""The client for programs without an event loop."""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx2

from gatehouse_client.answers import (
    BleuAnswer,
    GenerateAnswer,
    Model,
    Models,
    StreamEvent,
    TranslateAnswer,
)
from gatehouse_client.errors import ClientError
from gatehouse_client.exchange import (
    EventReader,
    authorization,
    body_of,
    lost,
    read_answer,
    read_error,
)
from gatehouse_client.options import BleuOptions, GenerateOptions, TranslateOptions
from gatehouse_client.retries import Retries

T = TypeVar("T")
JSON = {"content-type": "application/json"}
DEFAULT_TIMEOUT_SECONDS = 120.0


class Client:
    """A client of one server. Use it as a context manager, or close it; threads may share it.

    Every method raises :class:`AnswerError` where the server refuses or fails, and
    :class:`ServerUnreachableError` where there is no connection, after the retries.

    Args:
        address: of the server, as in ``http://127.0.0.1:8000``.
        api_key: for a server that asks for one.
        timeout_seconds: for the next piece of an answer, not for all of it.
        retries: when to try again.
        transport: in the place of the network, for tests.
    """

    def __init__(
        self,
        address: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        retries: Retries | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._address = address
        self._retries = retries or Retries()
        self._http = httpx2.Client(
            base_url=address,
            headers=authorization(api_key),
            timeout=timeout_seconds,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def generate(
        self, prompt: str | list[str] | None = None, **options: Unpack[GenerateOptions]
    ) -> GenerateAnswer:
        """Continue texts, or outputs whose ``state`` is given: ``POST /generate``."""
        return self._post(GenerateAnswer, "/generate", body_of("prompt", prompt, options))

    def translate(
        self, text: str | list[str], **options: Unpack[TranslateOptions]
    ) -> TranslateAnswer:
        """Translate texts: ``POST /translate``."""
        return self._post(TranslateAnswer, "/translate", body_of("text", text, options))

    def bleu(
        self, references: list[str] | list[list[str]], **options: Unpack[BleuOptions]
    ) -> BleuAnswer:
        """Score hypotheses, or the model's translations of sources: ``POST /bleu``."""
        return self._post(BleuAnswer, "/bleu", body_of("references", references, options))

    def stream_generate(
        self, prompt: str | list[str] | None = None, **options: Unpack[GenerateOptions]
    ) -> Iterator[StreamEvent]:
        """Continue texts, and see them as they are written; the last event is a DoneEvent.

        The request is sent when the first event is asked for. Closing the iterator stops the
        work. A stream that has begun is not tried again.

        Raises:
            StreamBrokenError: it ended before its last event.
        """
        return self._stream("/generate", body_of("prompt", prompt, options, stream=True))

    def stream_translate(
        self, text: str | list[str], **options: Unpack[TranslateOptions]
    ) -> Iterator[StreamEvent]:
        """Translate texts greedily: see :meth:`stream_generate`."""
        return self._stream("/translate", body_of("text", text, options, stream=True))

    def models(self) -> list[Model]:
        """The loaded models: ``GET /models``."""
        return self._exchange(Models, "GET", "/models").models

    def is_ready(self) -> bool:
        """Whether the server would answer now; False too where there is none."""
        try:
            return self._http.get("/health/ready").is_success
        except httpx2.RequestError:
            return False

    def _post(self, kind: type[T], path: str, body: bytes) -> T:
        return self._exchange(kind, "POST", path, body)

    def _exchange(self, kind: type[T], method: str, path: str, body: bytes | None = None) -> T:
        tries = 0
        while True:
            tries += 1
            try:
                answer = self._request(method, path, body)
                return read_answer(kind, answer.status_code, answer.headers, answer.content)
            except ClientError as error:
                self._wait_or_raise(error, tries)

    def _request(self, method: str, path: str, body: bytes | None) -> httpx2.Response:
        try:
            return self._http.request(method, path, content=body, headers=JSON)
        except httpx2.RequestError as error:
            raise lost(self._address, error) from error

    def _wait_or_raise(self, error: ClientError, tries: int) -> None:
        seconds = self._retries.wait_seconds(error, tries)
        if seconds is None:
            raise error
        time.sleep(seconds)

    def _stream(self, path: str, body: bytes) -> Iterator[StreamEvent]:
        tries = 0
        while True:
            tries += 1
            request = self._http.build_request("POST", path, content=body, headers=JSON)
            try:
                answer = self._open(request)
                break
            except ClientError as error:
                self._wait_or_raise(error, tries)
        try:
            yield from self._events(answer)
        finally:
            answer.close()

    def _open(self, request: httpx2.Request) -> httpx2.Response:
        try:
            answer = self._http.send(request, stream=True)
            if answer.is_success:
                return answer
            content = answer.read()
        except httpx2.RequestError as error:
            raise lost(self._address, error) from error
        raise read_error(answer.status_code, answer.headers, content)

    def _events(self, answer: httpx2.Response) -> Iterator[StreamEvent]:
        reader = EventReader()
        try:
            for chunk in answer.iter_bytes():
                yield from reader.feed(chunk)
        except httpx2.RequestError as error:
            raise lost(self._address, error) from error
        reader.close()
