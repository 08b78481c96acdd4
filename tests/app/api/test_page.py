"""The page's files: what they are sent with, and that they need nothing from elsewhere."""

import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.api.page import CONTENT_SECURITY_POLICY, PAGE_DIR
from tests.app.api.test_errors import check_problem

FILES = sorted(path.name for path in PAGE_DIR.iterdir())


def test_the_page_stands_at_the_root(client: TestClient) -> None:
    response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert 'href="docs"' in response.text


@pytest.mark.parametrize("path", ["/", *(f"/static/{name}" for name in FILES)])
def test_every_file_comes_with_the_rules(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert response.headers["x-content-type-options"] == "nosniff"
    again = client.get(path, headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_policy_lets_nothing_inline_or_foreign_in() -> None:
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    sources = set(re.findall(r"'[a-z]+'|https?:|data:|\*", CONTENT_SECURITY_POLICY))
    assert sources == {"'none'", "'self'"}


def test_scripts_have_the_type_that_browsers_insist_on(client: TestClient) -> None:
    for name in FILES:
        if name.endswith(".js"):
            kind = client.get(f"/static/{name}").headers["content-type"]
            assert kind.startswith("text/javascript"), name


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_another_host_or_holds_inline_code(name: str) -> None:
    text = (PAGE_DIR / name).read_text(encoding="utf-8")
    hosts = set(re.findall(r"https?://([^/\"' ]+)", text))
    assert hosts <= {"www.w3.org"}  # the name of SVG, which nobody opens
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=\"|javascript:|innerHTML|eval\(", text)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text))


def test_modules_are_small_and_import_only_what_is_there() -> None:
    for path in PAGE_DIR.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") < 400, path.name
        for imported in re.findall(r'from "\./([^"]+)"', text):
            assert imported in FILES, (path.name, imported)


@pytest.mark.parametrize("path", ["/static/nope.js", "/static/", "/static/../main.py"])
def test_what_is_no_file_is_not_found(client: TestClient, path: str) -> None:
    check_problem(client.get(path), "not_found")


def test_files_take_get_alone(client: TestClient) -> None:
    response = client.post("/static/main.js")
    check_problem(response, "method_not_allowed")
    assert response.headers["allow"] == "GET"


def test_every_file_is_used() -> None:
    texts = {name: (PAGE_DIR / name).read_text(encoding="utf-8") for name in FILES}
    for name in set(FILES) - {"index.html"}:
        others = [text for other, text in texts.items() if other != name]
        assert any(name in text for text in others), name


def test_files_are_where_the_image_gets_them() -> None:
    assert Path(__file__).parents[3] / "app" / "static" == PAGE_DIR
