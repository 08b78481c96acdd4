"""When another try is made, and after what wait."""

import pytest

from gatehouse_client.errors import (
    AnswerError,
    AnswerTimeoutError,
    ClientError,
    ServerUnreachableError,
    StreamBrokenError,
)
from gatehouse_client.retries import Retries

PATIENT = Retries(attempts=4, first_wait_seconds=1.0, longest_wait_seconds=3.0)


@pytest.mark.parametrize("status", [429, 502, 503])
def test_the_wait_is_what_the_server_asks_for(status: int) -> None:
    error = AnswerError(status, "queue_full", "", retry_after_seconds=2.0)
    assert [PATIENT.wait_seconds(error, tries) for tries in (1, 2, 3, 4)] == [2.0, 2.0, 2.0, None]


def test_a_server_that_asks_for_too_much_is_not_asked_again() -> None:
    assert PATIENT.wait_seconds(AnswerError(503, "", "", retry_after_seconds=3.5), 1) is None


@pytest.mark.parametrize("error", [ServerUnreachableError(""), AnswerError(502, None, "")])
def test_without_word_of_the_server_waits_double_up_to_the_longest(error: ClientError) -> None:
    for tries, longest in ((1, 1.0), (2, 2.0), (3, 3.0)):
        waits = [PATIENT.wait_seconds(error, tries) for _ in range(200)]
        assert all(wait is not None and longest / 2 <= wait <= longest for wait in waits)
        assert len(set(waits)) > 1


@pytest.mark.parametrize(
    "error",
    [
        AnswerError(422, "invalid_request", ""),
        AnswerError(504, "deadline_exceeded", ""),
        AnswerError(500, "internal_error", ""),
        AnswerTimeoutError(""),
        StreamBrokenError(""),
    ],
)
def test_what_another_try_cannot_mend_gets_none(error: ClientError) -> None:
    assert PATIENT.wait_seconds(error, 1) is None
