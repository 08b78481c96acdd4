"""LitServe with dynamic batching over the model's own loop."""

import argparse
from typing import Any

import litserve

from benchmarks.peers.decoding import (
    BATCH_TIMEOUT_SECONDS,
    MAX_BATCH_SIZE,
    add_options,
    make_translator,
)


class TranslationApi(litserve.LitAPI):
    """One model in a process of its own, which is given batches of requests."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(
            max_batch_size=MAX_BATCH_SIZE,
            batch_timeout=BATCH_TIMEOUT_SECONDS,
            api_path="/translate",
        )
        self._arguments = arguments

    def setup(self, device: str) -> None:
        """Load the model, in the worker."""
        self._translator = make_translator(self._arguments)

    def decode_request(self, request: dict[str, Any]) -> str:
        """The text of a request."""
        text: str = request["text"]
        return text

    def batch(self, inputs: list[str]) -> list[str]:
        """Texts are padded when they are tokens."""
        return inputs

    def predict(self, x: list[str]) -> list[str]:
        """Translate a batch."""
        return self._translator.translate(x)

    def unbatch(self, output: list[str]) -> list[str]:
        """One translation for each request."""
        return output

    def encode_response(self, output: str) -> dict[str, str]:
        """The answer of a request."""
        return {"text": output}


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    arguments = parser.parse_args()
    server = litserve.LitServer(
        TranslationApi(arguments),
        accelerator="cpu",
        workers_per_device=arguments.workers,
        timeout=60,
        fast_queue=True,  # "for high-throughput scenarios (>100 RPS)"
    )
    server.run(
        host="127.0.0.1",
        port=arguments.port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
