import pytest

from app.exceptions import InvalidRequestError
from app.service.limits import Limits

LIMITS = Limits(
    max_texts=2,
    max_segments=3,
    max_characters=4,
    max_new_tokens=5,
    default_max_new_tokens=5,
    max_alignment_cells=100,
    max_decodings=6,
    timeout_seconds=7,
)


def test_what_is_allowed_passes() -> None:
    LIMITS.check_texts("prompt", ["abcd", ""])
    LIMITS.check_texts("hypotheses", ["a", "b", "c"], LIMITS.max_segments)
    LIMITS.check_new_tokens(5)


@pytest.mark.parametrize(
    ("texts", "field"),
    [(["a"] * 3, "prompt"), (["abcde"], "prompt"), (["a", "abcde"], "prompt.1")],
)
def test_the_field_at_fault_is_named(texts: list[str], field: str) -> None:
    with pytest.raises(InvalidRequestError, match="more than the") as caught:
        LIMITS.check_texts("prompt", texts)
    assert caught.value.field == field


def test_too_many_new_tokens() -> None:
    with pytest.raises(InvalidRequestError, match="6 is more than the 5 allowed"):
        LIMITS.check_new_tokens(6)


def test_a_client_may_give_a_request_less_time_not_more() -> None:
    assert LIMITS.timeout_of(None) == 7
    assert LIMITS.timeout_of(6.5) == 6.5
    assert LIMITS.timeout_of(7) == 7
    with pytest.raises(InvalidRequestError, match=r"7\.5 is more than the 7 allowed") as caught:
        LIMITS.timeout_of(7.5)
    assert caught.value.field == "timeout_seconds"


def test_alignments_that_would_grow_too_large() -> None:
    LIMITS.check_alignment_cells(100)
    with pytest.raises(InvalidRequestError, match=r"101 weights .* more than the 100") as caught:
        LIMITS.check_alignment_cells(101)
    assert caught.value.field == "alignments"


def test_beam_traces_that_would_grow_too_large() -> None:
    LIMITS.check_beam_trace_candidates(100)
    with pytest.raises(InvalidRequestError, match=r"101 candidates .* than the 100") as caught:
        LIMITS.check_beam_trace_candidates(101)
    assert caught.value.field == "beam_trace"


def test_texts_that_are_taken_apart_share_what_all_may_have() -> None:
    LIMITS.check_document("text", ["abcdefgh", ""])
    for texts, reason in (
        (["abcdefgh", "i"], "9 characters are more than the 2 times 4 allowed"),
        (["", "", ""], "3 texts are more than the 2 allowed"),
    ):
        with pytest.raises(InvalidRequestError, match=reason) as caught:
            LIMITS.check_document("text", texts)
        assert caught.value.field == "text"


def test_the_sentences_of_a_text_have_limits_of_their_own() -> None:
    LIMITS.check_sentences("text", 6)
    LIMITS.check_sentence("text", "abcd")
    with pytest.raises(InvalidRequestError, match="more than the 6 sentences"):
        LIMITS.check_sentences("text", 7)
    with pytest.raises(InvalidRequestError, match="a sentence of 5 characters is longer than"):
        LIMITS.check_sentence("text", "abcde")
