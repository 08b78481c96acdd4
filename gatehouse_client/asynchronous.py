"""The client for programs with an event loop."""

import asyncio
from collections.abc import AsyncIterator
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
from gatehouse_client.synchronous import DEFAULT_TIMEOUT_SECONDS, JSON

T = TypeVar("T")


class AsyncClient:
    """As :class:`gatehouse_client.Client`, with methods to await and streams to iterate over.

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
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._address = address
        self._retries = retries or Retries()
        self._http = httpx2.AsyncClient(
            base_url=address,
            headers=authorization(api_key),
            timeout=timeout_seconds,
            transport=transport,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def generate(
        self, prompt: str | list[str] | None = None, **options: Unpack[GenerateOptions]
    ) -> GenerateAnswer:
        """See :meth:`gatehouse_client.Client.generate`."""
        return await self._post(GenerateAnswer, "/generate", body_of("prompt", prompt, options))

    async def translate(
        self, text: str | list[str], **options: Unpack[TranslateOptions]
    ) -> TranslateAnswer:
        """See :meth:`gatehouse_client.Client.translate`."""
        return await self._post(TranslateAnswer, "/translate", body_of("text", text, options))

    async def bleu(
        self, references: list[str] | list[list[str]], **options: Unpack[BleuOptions]
    ) -> BleuAnswer:
        """See :meth:`gatehouse_client.Client.bleu`."""
        return await self._post(BleuAnswer, "/bleu", body_of("references", references, options))

    def stream_generate(
        self, prompt: str | list[str] | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncIterator[StreamEvent]:
        """See :meth:`gatehouse_client.Client.stream_generate`."""
        return self._stream("/generate", body_of("prompt", prompt, options, stream=True))

    def stream_translate(
        self, text: str | list[str], **options: Unpack[TranslateOptions]
    ) -> AsyncIterator[StreamEvent]:
        """See :meth:`gatehouse_client.Client.stream_translate`."""
        return self._stream("/translate", body_of("text", text, options, stream=True))

    async def models(self) -> list[Model]:
        """See :meth:`gatehouse_client.Client.models`."""
        answer = await self._exchange(Models, "GET", "/models")
        return answer.models

    async def is_ready(self) -> bool:
        """See :meth:`gatehouse_client.Client.is_ready`."""
        try:
            return (await self._http.get("/health/ready")).is_success
        except httpx2.RequestError:
            return False

    async def _post(self, kind: type[T], path: str, body: bytes) -> T:
        return await self._exchange(kind, "POST", path, body)

    async def _exchange(
        self, kind: type[T], method: str, path: str, body: bytes | None = None
    ) -> T:
        tries = 0
        while True:
            tries += 1
            try:
                answer = await self._request(method, path, body)
                return read_answer(kind, answer.status_code, answer.headers, answer.content)
            except ClientError as error:
                await self._wait_or_raise(error, tries)

    async def _request(self, method: str, path: str, body: bytes | None) -> httpx2.Response:
        try:
            return await self._http.request(method, path, content=body, headers=JSON)
        except httpx2.RequestError as error:
            raise lost(self._address, error) from error

    async def _wait_or_raise(self, error: ClientError, tries: int) -> None:
        seconds = self._retries.wait_seconds(error, tries)
        if seconds is None:
            raise error
        await asyncio.sleep(seconds)

    async def _stream(self, path: str, body: bytes) -> AsyncIterator[StreamEvent]:
        tries = 0
        while True:
            tries += 1
            request = self._http.build_request("POST", path, content=body, headers=JSON)
            try:
                answer = await self._open(request)
                break
            except ClientError as error:
                await self._wait_or_raise(error, tries)
        try:
            async for event in self._events(answer):
                yield event
        finally:
            await answer.aclose()

    async def _open(self, request: httpx2.Request) -> httpx2.Response:
        try:
            answer = await self._http.send(request, stream=True)
            if answer.is_success:
                return answer
            content = await answer.aread()
        except httpx2.RequestError as error:
            raise lost(self._address, error) from error
        raise read_error(answer.status_code, answer.headers, content)

    async def _events(self, answer: httpx2.Response) -> AsyncIterator[StreamEvent]:
        reader = EventReader()
        try:
            async for chunk in answer.aiter_bytes():
                for event in reader.feed(chunk):
                    yield event
        except httpx2.RequestError as error:
            raise lost(self._address, error) from error
        reader.close()
