"""mosec with dynamic batching over the model's own loop."""

import argparse
from typing import Any

import mosec

from benchmarks.peers.decoding import (
    BATCH_TIMEOUT_SECONDS,
    MAX_BATCH_SIZE,
    add_options,
    make_translator,
)

FORWARD_TIMEOUT_SECONDS = 60


def parse_arguments() -> argparse.Namespace:
    """The options of this program; mosec reads its own from the same command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    arguments, _ = parser.parse_known_args()
    return arguments


class TranslationWorker(mosec.Worker):
    """One model in a process of its own, which is given batches of requests."""

    def __init__(self) -> None:
        super().__init__()
        self._translator = make_translator(parse_arguments())

    def forward(self, data: list[dict[str, Any]]) -> list[dict[str, str]]:
        """Translate a batch."""
        texts = self._translator.translate([request["text"] for request in data])
        return [{"text": text} for text in texts]


def main() -> None:
    """Serve until a signal comes; ``--address``, ``--port`` and ``--timeout`` are mosec's own."""
    server = mosec.Server()
    server.append_worker(
        TranslationWorker,
        num=parse_arguments().workers,
        max_batch_size=MAX_BATCH_SIZE,
        max_wait_time=round(BATCH_TIMEOUT_SECONDS * 1000),
        timeout=FORWARD_TIMEOUT_SECONDS,
        route="/translate",
    )
    server.run()


if __name__ == "__main__":
    main()
