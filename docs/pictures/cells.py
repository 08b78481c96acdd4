"""The GRU and the LSTM, as :mod:`models.cells` computes them."""

from docs.pictures.svg import Ink, Picture, Point

_HIDDEN_BUS, _INPUT_BUS, _GATES, _HIGHWAY = 318.0, 364.0, 240.0, 84.0


def gru() -> Picture:
    """The form of :class:`models.cells.GRUCell`: the reset gate acts behind the product."""
    picture = Picture(
        "One step of a GRU: reset gate R, update gate Z and candidate N make the new hidden "
        "state out of the old one and the input",
        900,
        448,
    )
    update, reset, product, candidate, total = 215.0, 385.0, 520.0, 640.0, 780.0
    _input_bus(picture, candidate + 16)
    # The old state on its way to the new one.
    picture.text((34, _HIGHWAY - 20), "H_{t-1}", ink="blue", size=17, anchor="start")
    picture.wire([(34, _HIGHWAY), (update - 14, _HIGHWAY)], ink="blue")
    picture.wire([(update + 14, _HIGHWAY), (total - 14, _HIGHWAY)], ink="blue")
    picture.wire([(total + 14, _HIGHWAY), (872, _HIGHWAY)], ink="blue")
    picture.text((868, _HIGHWAY - 20), "H_t", ink="blue", size=17, anchor="end")
    picture.dot((78, _HIGHWAY), ink="blue")
    picture.wire(
        [(78, _HIGHWAY), (78, _HIDDEN_BUS), (product, _HIDDEN_BUS), (product, 300)], ink="blue"
    )
    for gate in (update, reset):
        _feed(picture, gate)
    picture.wire([(candidate + 16, _INPUT_BUS), (candidate + 16, _GATES + 25)], ink="green")
    # Z opens the way of the old state, 1 - Z that of the candidate.
    picture.wire([(update, _GATES - 25), (update, _HIGHWAY + 14)], ink="orange")
    picture.dot((update, 146), ink="orange")
    picture.wire([(update, 146), (candidate - 62 - 20, 146)], ink="orange")
    picture.wire([(candidate - 62 + 20, 146), (candidate - 14, 146)], ink="orange")
    picture.box((candidate - 62, 146), "1 - Z_t", width=64, height=30, ink="orange")
    # R acts on the hidden product of the candidate.
    picture.wire(
        [(reset, _GATES - 25), (reset, 186), (product, 186), (product, _GATES - 14)], ink="orange"
    )
    picture.wire([(product, 270), (product, _GATES + 14)], ink="blue")
    picture.wire([(product + 14, _GATES), (candidate - 49, _GATES)], ink="blue")
    picture.wire([(candidate, _GATES - 25), (candidate, 160)], ink="purple")
    picture.wire([(candidate + 14, 146), (total, 146), (total, _HIGHWAY + 14)], ink="purple")
    picture.box((product, 286), "W_{hn} \N{MIDDLE DOT} + b_{hn}", width=106, height=32, ink="blue")
    _gate(picture, update, "Z_t", "update")
    _gate(picture, reset, "R_t", "reset")
    picture.box((candidate, _GATES), "N_t = tanh", ink="purple", note="candidate", width=98)
    for center, sign in (
        ((update, _HIGHWAY), "\N{MULTIPLICATION SIGN}"),
        ((product, _GATES), "\N{MULTIPLICATION SIGN}"),
        ((candidate, 146), "\N{MULTIPLICATION SIGN}"),
        ((total, _HIGHWAY), "+"),
    ):
        picture.knob(center, sign)
    _legend(picture, "R and Z lie between 0 and 1. A Z near 1 keeps the old state as it is.")
    return picture


def lstm() -> Picture:
    """As :class:`models.cells.LSTMCell` computes it."""
    picture = Picture(
        "One step of an LSTM: the forget gate F thins the memory C, the input gate I lets the "
        "candidate G in, the output gate O shows the memory as the hidden state H",
        900,
        448,
    )
    forget, let_in, candidate, output, shown = 190.0, 330.0, 470.0, 610.0, 750.0
    _input_bus(picture, output + 16)
    picture.text((34, _HIGHWAY - 20), "C_{t-1}", ink="red", size=17, anchor="start")
    picture.wire([(34, _HIGHWAY), (forget - 14, _HIGHWAY)], ink="red")
    picture.wire([(forget + 14, _HIGHWAY), (candidate - 14, _HIGHWAY)], ink="red")
    picture.wire([(candidate + 14, _HIGHWAY), (872, _HIGHWAY)], ink="red")
    picture.text((868, _HIGHWAY - 20), "C_t", ink="red", size=17, anchor="end")
    picture.text((34, _HIDDEN_BUS - 18), "H_{t-1}", ink="blue", size=17, anchor="start")
    picture.wire([(34, _HIDDEN_BUS), (output - 16, _HIDDEN_BUS)], ink="blue", arrow=False)
    for gate in (forget, let_in, candidate, output):
        _feed(picture, gate)
    picture.wire([(forget, _GATES - 25), (forget, _HIGHWAY + 14)], ink="orange")
    picture.wire([(let_in, _GATES - 25), (let_in, 150), (candidate - 14, 150)], ink="orange")
    picture.wire([(candidate, _GATES - 25), (candidate, 164)], ink="purple")
    picture.wire([(candidate, 136), (candidate, _HIGHWAY + 14)], ink="purple")
    picture.dot((shown, _HIGHWAY), ink="red")
    picture.wire([(shown, _HIGHWAY), (shown, 132)], ink="red")
    picture.wire([(shown, 166), (shown, _GATES - 14)], ink="red")
    picture.wire([(output + 42, _GATES), (shown - 14, _GATES)], ink="orange")
    picture.wire([(shown + 14, _GATES), (872, _GATES)], ink="blue")
    picture.text((868, _GATES - 20), "H_t", ink="blue", size=17, anchor="end")
    _gate(picture, forget, "F_t", "forget")
    _gate(picture, let_in, "I_t", "input")
    picture.box((candidate, _GATES), "G_t = tanh", ink="purple", note="candidate", width=98)
    _gate(picture, output, "O_t", "output")
    picture.box((shown, 149), "tanh", width=64, height=34, ink="red")
    for center, sign in (
        ((forget, _HIGHWAY), "\N{MULTIPLICATION SIGN}"),
        ((candidate, 150), "\N{MULTIPLICATION SIGN}"),
        ((shown, _GATES), "\N{MULTIPLICATION SIGN}"),
        ((candidate, _HIGHWAY), "+"),
    ):
        picture.knob(center, sign)
    _legend(
        picture, "On its way the memory C meets a multiplication and an addition, and no weights."
    )
    return picture


def _input_bus(picture: Picture, until: float) -> None:
    """The input's wire below all gates."""
    picture.text((34, _INPUT_BUS - 18), "X_t", ink="green", size=17, anchor="start")
    picture.wire([(34, _INPUT_BUS), (until, _INPUT_BUS)], ink="green", arrow=False)


def _feed(picture: Picture, gate: float) -> None:
    """What a gate reads: the hidden state and the input."""
    hidden: Point = (gate - 16, _HIDDEN_BUS)
    picture.dot(hidden, ink="blue")
    picture.wire([hidden, (gate - 16, _GATES + 25)], ink="blue")
    picture.dot((gate + 16, _INPUT_BUS), ink="green")
    picture.wire([(gate + 16, _INPUT_BUS), (gate + 16, _GATES + 25)], ink="green")


def _gate(picture: Picture, at: float, name: str, note: str, ink: Ink = "orange") -> None:
    picture.box((at, _GATES), f"{name} = \N{GREEK SMALL LETTER SIGMA}", ink=ink, note=note)


def _legend(picture: Picture, sentence: str) -> None:
    for height, text in (
        (
            406,
            "\N{MULTIPLICATION SIGN} and + act number by number. A box with "
            "\N{GREEK SMALL LETTER SIGMA} or tanh multiplies what comes from below by its own "
            "weights first.",
        ),
        (426, sentence),
    ):
        picture.text((34, height), text, ink="muted", size=13, anchor="start")
