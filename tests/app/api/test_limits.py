from collections.abc import Callable, Iterator

from fastapi.testclient import TestClient

JSON = {"content-type": "application/json"}


def chunks(total_bytes: int) -> Iterator[bytes]:
    for _ in range(total_bytes // 512):
        yield b" " * 512


def test_a_body_over_the_limit_is_refused(start_service: Callable[..., TestClient]) -> None:
    client = start_service(max_body_bytes=4_096)
    declared = client.post("/generate", content=b" " * 5_000, headers=JSON)
    streamed = client.post("/generate", content=chunks(5_120), headers=JSON)
    elsewhere = client.post("/nope", content=b" " * 5_000, headers=JSON)
    for response in (declared, streamed, elsewhere):
        assert response.status_code == 413
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] == "body_too_large"


def test_a_body_at_the_limit_is_read(start_service: Callable[..., TestClient]) -> None:
    client = start_service(max_body_bytes=4_096)
    body = b'{"prompt": "a", "max_new_tokens": 1}'
    padded = body + b" " * (4_096 - len(body))
    assert client.post("/generate", content=padded, headers=JSON).status_code == 200
    assert client.post("/generate", content=padded + b" ", headers=JSON).status_code == 413
    lying = {**JSON, "content-length": "x"}
    assert client.post("/generate", content=padded, headers=lying).status_code == 200
