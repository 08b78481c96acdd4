"""Plain FastAPI: one request at a time, decoded by the model's own loop."""

import argparse
import asyncio
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.peers.decoding import Translator, add_options, make_translator


class TranslateBody(BaseModel):
    """What to translate."""

    text: str


class TranslateAnswer(BaseModel):
    """Its translation."""

    text: str


def create_app(translator: Translator) -> FastAPI:
    """The application; decoding runs in a single thread, in the order of arrival."""
    app = FastAPI()
    decoding = ThreadPoolExecutor(max_workers=1)

    @app.post("/translate")
    async def translate(body: TranslateBody) -> TranslateAnswer:
        loop = asyncio.get_running_loop()
        (text,) = await loop.run_in_executor(decoding, translator.translate, [body.text])
        return TranslateAnswer(text=text)

    return app


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    arguments = parser.parse_args()
    app = create_app(make_translator(arguments))
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
