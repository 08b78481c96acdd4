"""Seq2Seq, attention and a real alignment."""

from collections.abc import Sequence

from docs.pictures.svg import Ink, Picture

_SOURCE = ("I", "am", "cold", ".", "<eos>")
_TARGET = ("<bos>", "J'ai", "froid", ".")
_WRITTEN = ("J'ai", "froid", ".", "<eos>")


def seq2seq() -> Picture:
    """The shipped translators: :class:`models.seq2seq.ParallelAttentionDecoder`, two layers."""
    picture = Picture(
        "A Seq2Seq model with attention: a bidirectional encoder reads the source, a bridge turns "
        "its last state into the decoder's first, and at each step the decoder attends to the "
        "source and writes a token",
        1000,
        520,
    )
    sources = [90.0 + 84 * index for index in range(len(_SOURCE))]
    targets = [650.0 + 94 * index for index in range(len(_TARGET))]
    _encoder(picture, sources)
    first, second = 356.0, 156.0
    picture.text((targets[0] - 66, 496), "decoder", ink="muted", anchor="end", bold=True)
    for index, (x, token, written) in enumerate(zip(targets, _TARGET, _WRITTEN, strict=True)):
        picture.text((x, 460), token, ink="green", size=15)
        picture.wire([(x, 446), (x, first + 18)], ink="green")
        picture.wire([(x, first - 18), (x, 276)], ink="blue")
        picture.wire([(x, 244), (x, second + 18)], ink="purple")
        picture.wire([(x, second - 18), (x, 110)], ink="blue")
        picture.wire([(x, 80), (x, 58)], ink="ink")
        picture.text((x, 42), written, ink="orange", size=15, bold=True)
        if index:
            for y in (first, second):
                picture.wire([(targets[index - 1] + 30, y), (x - 30, y)], ink="blue")
        picture.box((x, first), "GRU 1", width=60, height=36, ink="blue")
        picture.box((x, second), "GRU 2", width=60, height=36, ink="blue")
        picture.box((x, 95), "output", width=72, height=30)
    # The state, through the bridge.
    bridge = (sources[-1] + 118, first)
    picture.wire([(bridge[0] + 34, first), (targets[0] - 30, first)], ink="blue")
    side = bridge[0] + 50
    picture.wire([(side, first), (side, second), (targets[0] - 30, second)], ink="blue")
    picture.dot((side, first), ink="blue")
    # Its last state is at the right for one direction, at the left for the other.
    picture.wire([(sources[-1] + 28, 316), (bridge[0], 316), (bridge[0], first - 18)], ink="blue")
    around = [(sources[0] - 28, 386), (40, 386), (40, 424), (bridge[0], 424)]
    picture.wire([*around, (bridge[0], first + 18)], ink="blue")
    picture.box(bridge, "bridge", width=68, height=36)
    # Attention over the encoder's outputs.
    picture.wire([(sources[-1] + 34, 260), (targets[0] - 38, 260)], ink="purple")
    picture.rect(
        targets[0] - 38,
        244,
        targets[-1] - targets[0] + 76,
        32,
        fill="var(--box)",
        stroke="var(--purple)",
    )
    picture.text(
        ((targets[0] + targets[-1]) / 2, 260),
        "attention: GRU 1 asks, state and context go on",
        ink="purple",
    )
    return picture


def _encoder(picture: Picture, sources: Sequence[float]) -> None:
    forward, backward, outputs = 316.0, 386.0, 260.0
    picture.text((sources[0] - 34, 496), "encoder", ink="muted", anchor="start", bold=True)
    for index, (x, token) in enumerate(zip(sources, _SOURCE, strict=True)):
        picture.text((x, 460), token, ink="green", size=15)
        picture.wire([(x, 446), (x, backward + 16)], ink="green")
        if index:
            picture.wire([(sources[index - 1] + 28, forward), (x - 28, forward)], ink="blue")
            picture.wire([(x - 28, backward), (sources[index - 1] + 28, backward)], ink="blue")
    for x in sources:
        picture.wire([(x, backward - 16), (x, forward + 16)], ink="muted", arrow=False)
        picture.wire([(x, forward - 16), (x, outputs + 16)], ink="muted")
        picture.box((x, forward), "GRU \N{RIGHTWARDS ARROW}", width=56, height=32, ink="blue")
        picture.box((x, backward), "\N{LEFTWARDS ARROW} GRU", width=56, height=32, ink="blue")
    picture.rect(
        sources[0] - 34, outputs - 16, sources[-1] - sources[0] + 68, 32, stroke="var(--purple)"
    )
    picture.text(
        ((sources[0] + sources[-1]) / 2, outputs),
        "outputs, one for each source token",
        ink="purple",
        size=13,
    )


def attention() -> Picture:
    """Both of :mod:`models.attention`, from the bottom to the top."""
    picture = Picture(
        "Attention: each encoder output gives a key, a query is scored against every key, the "
        "softmax of the scores weighs the encoder outputs, and their sum is the context",
        900,
        500,
    )
    columns = [150.0 + 110 * index for index in range(len(_SOURCE))]
    weights = (0.06, 0.13, 0.68, 0.09, 0.04)
    query, context = 790.0, 790.0
    for height, words in (
        (444, "source"),
        (388, "encoder"),
        (310, "keys"),
        (232, "scores"),
        (150, "weights"),
        (64, "context"),
    ):
        picture.text((24, height), words, ink="muted", anchor="start", size=13)
    picture.wire([(query, 360), (query, 247)], ink="orange")
    picture.wire([(query - 54, 232), (columns[0] + 34, 232)], ink="orange")
    for x, token, weight in zip(columns, _SOURCE, weights, strict=True):
        number = columns.index(x) + 1
        picture.text((x, 444), token, ink="green", size=15)
        picture.wire([(x, 430), (x, 404)], ink="green")
        picture.wire([(x, 372), (x, 326)], ink="blue")
        picture.wire([(x, 294), (x, 248)], ink="blue")
        picture.wire([(x, 216), (x, 192)], ink="ink")
        picture.rect(x - 30, 176 - 70 * weight, 60, 70 * weight + 6, fill="var(--purple)")
        picture.text((x, 166 - 70 * weight), f"a_{number}", ink="purple", size=15)
        picture.box((x, 388), f"h_{number}", width=64, height=32, ink="blue")
        picture.box((x, 310), f"W_k h_{number}", width=72, height=32, ink="blue")
        picture.box((x, 232), f"e_{number}", width=64, height=32)
    picture.text((columns[-1] + 44, 150), "softmax", ink="ink", anchor="start", size=13)
    picture.wire([(columns[0] - 1, 64), (context - 86, 64)], ink="purple")
    for x in columns:
        picture.wire([(x, 94), (x, 65)], ink="purple", arrow=False)
    picture.box(
        (context, 64), "c = \N{N-ARY SUMMATION} a_s h_s", width=170, ink="purple", height=40
    )
    picture.box((query, 232), "W_q q", width=108, height=32, ink="orange")
    picture.box((query, 380), "q", width=108, height=44, ink="orange", note="decoder state")
    for place, formula in (
        (24, "additive: e = v^T tanh(W_q q + W_k h)"),
        (330, "dot: e = (W_q q) \N{MIDDLE DOT} (W_k h) / \N{SQUARE ROOT}A, A numbers in a key"),
    ):
        picture.text((place, 480), formula, size=13, anchor="start")
    picture.text((876, 480), "the weights are made up", ink="muted", size=13, anchor="end")
    return picture


def alignment(
    source: Sequence[str], target: Sequence[str], weights: Sequence[Sequence[float]]
) -> Picture:
    """Where a model looked: a row for each target token, a column for each source token.

    Args:
        source: S tokens.
        target: T tokens.
        weights: T rows of S weights.
    """
    cell, left, top = 74, 150, 92
    picture = Picture(
        "Attention weights of a translation: rows are the tokens that the model wrote, columns "
        "those that it looked at",
        left + cell * len(source) + 30,
        top + 44 * len(target) + 30,
    )
    picture.text((24, 36), "looked at \N{RIGHTWARDS ARROW}", ink="green", anchor="start", bold=True)
    picture.text((24, 60), "wrote \N{DOWNWARDS ARROW}", ink="orange", anchor="start", bold=True)
    for column, token in enumerate(source):
        picture.text((left + cell * (column + 0.5), 66), shown(token), ink="green", size=15)
    for row, token in enumerate(target):
        y = top + 44 * row
        picture.text((left - 14, y + 22), shown(token), ink="orange", size=15, anchor="end")
        for column, weight in enumerate(weights[row]):
            x = left + cell * column
            picture.rect(x + 2, y + 2, cell - 4, 40, stroke="var(--edge)")
            picture.rect(x + 2, y + 2, cell - 4, 40, fill="var(--purple)", opacity=weight)
            ink: Ink = "ink" if weight < 0.6 else "panel"
            picture.text((x + cell / 2, y + 22), f"{weight:.2f}", ink=ink, size=13)
    return picture


def shown(token: str) -> str:
    """A token as a reader reads it: SentencePiece's sign for a space is a low line."""
    return token.replace("\N{LOWER ONE EIGHTH BLOCK}", "\N{OPEN BOX}")
