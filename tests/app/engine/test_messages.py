"""What is sent is what arrives."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.messages import (
    EngineMessage,
    Hello,
    Loaded,
    ModelLoaded,
    ModelNotLoaded,
    ModelRevision,
    NotLoaded,
    Orders,
    Turn,
    decode_message,
    decode_orders,
    encode,
)
from app.engine.request import (
    DecodeRequest,
    DecodingParams,
    EndEvent,
    EndReason,
    FinishReason,
    SavedState,
    StateReturn,
    StepReport,
    TokensEvent,
)
from models.decoding.params import MAX_SEED, KeptCandidate

IDS = st.integers(0, 2**40)
SECONDS = st.floats(0, allow_nan=False)  # inf is a float like any other here
FLOATS = st.floats(allow_nan=False)
TOKENS = st.lists(st.integers(0, 2**20), max_size=5).map(tuple)
PARAMS = st.one_of(
    st.builds(
        DecodingParams,
        max_new_tokens=st.integers(1, 2**31),
        temperature=st.just(0.0) | st.floats(0.01, 100),
        top_k=st.integers(0, 100),
        top_p=st.floats(0.001, 1),
        repetition_penalty=st.floats(0.01, 100),
        seed=st.integers(0, MAX_SEED),
        num_outputs=st.integers(1, 16),
        return_attention=st.booleans(),
        return_state=st.sampled_from(StateReturn),
    ),
    st.builds(
        DecodingParams,
        max_new_tokens=st.just(9),
        beam_size=st.integers(2, 16),
        num_outputs=st.integers(1, 2),
        length_penalty=st.floats(0, 5),
        return_beam_trace=st.booleans(),
    ),
)
STATES = st.none() | st.builds(SavedState, st.binary(max_size=40), TOKENS, IDS)
REQUESTS = st.builds(
    DecodeRequest, IDS, st.text(), TOKENS, PARAMS, SECONDS, st.booleans(), STATES, IDS
)
MODELS = st.builds(ModelRevision, st.text(), IDS, st.text(), st.text())
TOKENS_EVENTS = st.builds(
    TokensEvent,
    IDS,
    st.integers(0, 15),
    TOKENS,
    st.lists(FLOATS, max_size=5).map(tuple),
    st.none() | st.sampled_from(FinishReason),
    st.none() | st.lists(st.lists(FLOATS, max_size=3).map(tuple), max_size=3).map(tuple),
    STATES,
)
KEPT = st.builds(
    KeptCandidate,
    st.none() | st.integers(0, 15),
    IDS,
    FLOATS,
    FLOATS,
    st.none() | st.sampled_from(FinishReason),
)
TRACES = st.lists(st.lists(KEPT, max_size=3).map(tuple), max_size=3).map(tuple)
ENDS = st.builds(
    EndEvent,
    IDS,
    st.sampled_from(EndReason),
    SECONDS,
    st.none() | SECONDS,
    st.text(),
    st.none() | TRACES,
)
STEPS = st.builds(StepReport, st.text(), IDS, SECONDS, IDS, IDS, IDS, IDS, IDS, IDS)


def tuples(of: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(of, max_size=3).map(tuple)


@given(
    st.builds(Orders, tuples(REQUESTS), tuples(IDS), tuples(MODELS), tuples(MODELS), st.booleans())
)
def test_orders_arrive_as_they_are(orders: Orders) -> None:
    assert decode_orders(encode(orders)) == orders


@given(
    st.one_of(
        st.builds(Hello, st.text()),
        st.builds(Loaded, st.text(), st.text(), st.dictionaries(st.text(), SECONDS), st.text()),
        st.builds(NotLoaded, st.text()),
        st.builds(ModelLoaded, MODELS, SECONDS),
        st.builds(ModelNotLoaded, MODELS, st.text()),
        st.builds(
            Turn,
            tuples(IDS),
            tuples(TOKENS_EVENTS),
            tuples(ENDS),
            tuples(STEPS),
            st.dictionaries(st.text(), IDS),
            st.booleans(),
        ),
    )
)
def test_messages_of_the_engine_arrive_as_they_are(message: EngineMessage) -> None:
    assert decode_message(encode(message)) == message


def test_types_survive() -> None:
    request = DecodeRequest(1, "m", (1, 2), DecodingParams(max_new_tokens=1, temperature=1))
    (decoded,) = decode_orders(encode(Orders((request,)))).requests
    assert decoded.timeout_seconds == float("inf")
    assert isinstance(decoded.params.temperature, float)
    assert isinstance(decoded.prompt, tuple)
    turn = Turn(
        tokens=(TokensEvent(1, 0, (1,), (-1.0,), FinishReason.END),),
        ends=(EndEvent(1, EndReason.EXPIRED, 0.0),),
    )
    decoded_turn = decode_message(encode(turn))
    assert isinstance(decoded_turn, Turn)
    assert decoded_turn.tokens[0].finish_reason is FinishReason.END
    assert decoded_turn.ends[0].reason is EndReason.EXPIRED


@pytest.mark.parametrize("data", [b"", b"\xc1", b"hello", encode(Orders()), b"\x91\xa3Bye"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_message(data)


def test_parameters_are_checked_when_they_arrive() -> None:
    request = {"request_id": 1, "model": "m", "prompt": [1], "params": {"max_new_tokens": 0}}
    with pytest.raises(msgspec.ValidationError, match="max_new_tokens must be at least 1"):
        decode_orders(msgspec.msgpack.encode([[request]]))
