"""Draws the pictures of docs/how-it-works.md anew: ``python -m docs.pictures``.

``recorded.json`` holds what a shipped model answered to two requests, with an alignment and a beam
trace; ``python -m docs.pictures ADDRESS`` asks a running server anew first.
"""

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

from docs.pictures.cells import gru, lstm
from docs.pictures.decoding import batching, beam, request
from docs.pictures.translation import alignment, attention, seq2seq

IMAGES = Path(__file__).parents[1] / "images"
RECORDED = Path(__file__).with_name("recorded.json")
ASKED: dict[str, dict[str, Any]] = {
    "alignment": {"text": "She has a black cat and a red car.", "beam_size": 4, "alignments": True},
    "beam_trace": {
        "text": "I am cold.",
        "beam_size": 3,
        "num_hypotheses": 3,
        "beam_trace": True,
    },
}
"""What is asked for each field that a picture shows."""


def pictures() -> dict[str, str]:
    """Every picture, by the name of its file."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    aligned, asked = recorded["alignment"], ASKED["beam_trace"]
    drawn = {
        "request": request(),
        "gru": gru(),
        "lstm": lstm(),
        "seq2seq": seq2seq(),
        "attention": attention(),
        "alignment": alignment(
            aligned["source_tokens"], aligned["target_tokens"], aligned["weights"]
        ),
        "beam": beam(recorded["beam_trace"], asked["text"], asked["beam_size"]),
        "batching": batching(),
    }
    return {f"{name}.svg": picture.svg() for name, picture in drawn.items()}


def record(address: str) -> None:
    """Keep what a server answers to :data:`ASKED`."""
    kept = {}
    for field, asked in ASKED.items():
        body = json.dumps({"model": "en-fr", **asked}).encode()
        headers = {"Content-Type": "application/json"}
        request_ = urllib.request.Request(f"{address}/translate", body, headers)
        with urllib.request.urlopen(request_) as answer:
            [translation] = json.load(answer)["translations"]
        kept[field] = translation[field]
    text = json.dumps(kept, ensure_ascii=False, indent=1)
    RECORDED.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:]:
        record(sys.argv[1])
    IMAGES.mkdir(exist_ok=True)
    for name, text in pictures().items():
        (IMAGES / name).write_text(text, encoding="utf-8")
