"""One request to an application by hand: a test says when the client goes away."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from app.catalog import ServedModel
from app.main import create_app
from app.runtime import Runtime
from app.service.service import Service
from models.tokenizers import Tokenizer
from tests.app.conftest import make_settings
from tests.app.service.scripted_engine import (
    Script,
    ScriptedEngine,
    language_model,
    make_service,
    translator,
)
from tests.app.service.test_detokenization import TOKENIZERS


class ScriptedRuntime(Runtime):
    """Ready at once, over an engine that does as a test tells it."""

    def __init__(self, script: Script, models: Sequence[ServedModel], **settings: Any) -> None:
        super().__init__(make_settings(Path(), **settings))
        self.scripted = ScriptedEngine(script)
        self._scripted_service = make_service(
            self.scripted, models, metrics=self.metrics, **settings
        )

    def service(self) -> Service:
        return self._scripted_service


def scripted_app(
    script: Script, *, written_in: Tokenizer = TOKENIZERS["character"], **settings: Any
) -> tuple[FastAPI, ScriptedRuntime]:
    """An application with a language model, of characters by default, and a translator of words."""
    words = TOKENIZERS["word"]
    models = [language_model("letters", written_in), translator("en-fr", words, words)]
    runtime = ScriptedRuntime(script, models, **settings)
    return create_app(runtime=runtime), runtime


class Exchange:
    """What goes between a client and an application for one request.

    Attributes:
        gone: set when the client goes away.
        sent: set whenever the application sends something.
        messages: what it sent.
    """

    def __init__(self, app: FastAPI, path: str, body: dict[str, Any], *, cut: bool = False) -> None:
        self._app = app
        self._path = path
        content = json.dumps(body).encode()
        self._parts = [content[:5]] if cut else [content[:5], content[5:]]
        self._length = len(content)
        self.gone = asyncio.Event()
        self.sent = asyncio.Event()
        self.messages: list[Any] = []
        if cut:
            self.gone.set()

    async def run(self) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(self._length).encode()),
        ]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "server": ("testserver", 80),
            "client": ("testclient", 50_000),
            "root_path": "",
            "path": self._path,
            "raw_path": self._path.encode(),
            "query_string": b"",
            "headers": headers,
        }
        await self._app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        if self._parts:
            part = self._parts.pop(0)
            more = bool(self._parts) or self.gone.is_set()
            return {"type": "http.request", "body": part, "more_body": more}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.messages.append(message)
        self.sent.set()

    @property
    def status(self) -> int:
        status: int = self.messages[0]["status"]
        return status

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def is_complete(self) -> bool:
        return len(self.messages) > 1 and not self.messages[-1].get("more_body", False)

    @property
    def events(self) -> list[tuple[str, Any]]:
        return read_events(self.body.decode())


def read_events(text: str) -> list[tuple[str, Any]]:
    """The names and data of server-sent events; comments are left out."""
    assert text.endswith("\n\n"), text
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        assert name.startswith("event: "), block
        assert data.startswith("data: "), block
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events
