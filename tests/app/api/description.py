"""The OpenAPI description of a service, to hold its answers against."""

import json
from typing import Any

import jsonschema
from fastapi.testclient import TestClient


class Description:
    """What a service says of itself.

    Args:
        client: of the service.

    Attributes:
        paths: the operations by path and method.
        schemas: the named schemas.
    """

    def __init__(self, client: TestClient) -> None:
        document = client.get("/openapi.json").json()
        self.paths: dict[str, Any] = document["paths"]
        self.schemas: dict[str, Any] = document["components"]["schemas"]
        self._validators: dict[str, jsonschema.Draft202012Validator] = {}

    def check(self, path: str, response: Any, method: str = "post") -> None:
        """Fail unless the answer is one that is described for its operation, and no 500."""
        described = self.paths[path][method]["responses"]
        status = response.status_code
        assert str(status) in described, f"{status} is not described: {response.text[:500]}"
        assert status != 500, response.text
        media_type = response.headers["content-type"].partition(";")[0]
        content = described[str(status)]["content"][media_type]
        if media_type in ("text/event-stream", "text/plain"):
            return
        answer = response.json()
        self._validator(content["schema"]).validate(answer)
        if status != 200:
            codes = {_code(example["value"]) for example in content["examples"].values()}
            assert _code(answer) in codes, answer
            assert answer.get("status", status) == status

    def _validator(self, schema: Any) -> jsonschema.Draft202012Validator:
        key = json.dumps(schema)
        if key not in self._validators:
            whole = {**schema, "components": {"schemas": self.schemas}}
            self._validators[key] = jsonschema.Draft202012Validator(whole)
        return self._validators[key]


def _code(error: dict[str, Any]) -> str | None:
    """The code of an error, whatever its dialect; LibreTranslate's has none."""
    if "code" in error:
        return str(error["code"])
    return str(error["error"]["code"]) if isinstance(error["error"], dict) else None
