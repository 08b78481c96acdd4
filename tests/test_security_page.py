"""docs/security.md promises nothing that no test shows."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def promises(page: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each promise with the tests that it names."""
    section = page.partition("\n## What is promised\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    cells = [row.strip("| ").split(" | ") for row in rows]
    return [(promise, TEST.findall(tests)) for promise, tests in cells]


def functions_in(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("promise", "tests"), promises(PAGE))
def test_every_promise_names_tests_that_exist(promise: str, tests: list[tuple[str, str]]) -> None:
    assert tests, f"no test is named for: {promise}"
    for file, name in tests:
        assert name in functions_in(ROOT / file), f"{file}::{name}"


def test_there_are_promises_and_limits_to_them() -> None:
    assert len(promises(PAGE)) >= 15
    assert "\n## What is not promised\n" in PAGE
    # All that looks like a test stands in the table, where it is checked.
    named = {test for _, tests in promises(PAGE) for test in tests}
    assert set(TEST.findall(PAGE)) == named
    assert PAGE.count("::test_") == len(TEST.findall(PAGE))


def test_a_test_that_is_not_there_is_noticed() -> None:
    (promise,) = promises(
        "\n## What is promised\n| Promise | Tests |\n| --- | --- |\n"
        "| Nothing | `tests/test_house.py::test_nothing` |\n"
    )
    assert promise == ("Nothing", [("tests/test_house.py", "test_nothing")])
    assert "test_nothing" not in functions_in(ROOT / "tests" / "test_house.py")
