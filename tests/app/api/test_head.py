import pytest
from fastapi.testclient import TestClient

from tests.app.api.test_errors import check_problem
from tests.app.conftest import Server


@pytest.mark.parametrize(
    "path",
    ["/health/live", "/health/ready", "/models", "/models/letters", "/metrics", "/docs", "/"],
)
def test_head_is_get_without_the_body(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":
        assert head.headers["content-length"] == str(len(get.content))


def test_head_of_what_is_not_there(client: TestClient) -> None:
    assert client.head("/nope").status_code == 404
    response = client.head("/generate")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    check_problem(client.request("PUT", "/models"), "method_not_allowed")


def test_head_over_a_socket(server: Server) -> None:
    for _ in range(2):  # the connection stays usable
        response = server.client.head("/models")
        assert (response.status_code, response.content) == (200, b"")
        assert int(response.headers["content-length"]) > 0


def test_head_is_not_described(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert all("head" not in methods for methods in paths.values())
