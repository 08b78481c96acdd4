"""The id of a request: taken or made, and always in the answer."""

import re

import pytest
from fastapi.testclient import TestClient


@pytest.mark.parametrize("path", ["/health/live", "/nowhere", "/v1/models", "/static/none"])
def test_an_id_that_is_given_comes_back_from_every_page(client: TestClient, path: str) -> None:
    answer = client.get(path, headers={"X-Request-ID": "order-66/a~b"})
    assert answer.headers["x-request-id"] == "order-66/a~b"


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129, "line\x7f", "é"])
def test_another_is_made_where_none_is_given_or_it_is_unfit(
    client: TestClient, given: str | None
) -> None:
    headers = {} if given is None else {b"X-Request-ID": given.encode("latin-1")}
    made = {client.get("/health/live", headers=headers).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)


def test_errors_before_any_endpoint_carry_it_too(client: TestClient) -> None:
    large = client.post("/generate", content=b" " * 3_000_000, headers={"X-Request-ID": "big"})
    assert (large.status_code, large.headers["x-request-id"]) == (413, "big")
