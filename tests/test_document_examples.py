"""The pages tell the truth: what they show to copy runs, and prints what they show.

The blocks of a section run in order, in one folder for each page, against a server over the
shipped models. A block that directly follows one that was run is its output. Outputs that have
changed for a good reason (another model, say) are written anew with ``--documents``.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.keys import make_key
from tests.app.conftest import Server
from tests.markdown_pages import ROOT, Block, blocks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PAGES = [
    "README.md",
    "docs/quickstart.md",
    "docs/api.md",
    "docs/openai.md",
    "docs/libretranslate.md",
    "docs/client.md",
    "docs/metrics.md",
    "docs/state.md",
]
NOT_RUN = {
    "make serve    # sets": "make sets up an environment; tests/test_house.py holds its targets",
    "make serve": "the same; a server like it is there",
    "make train": "the same, and downloads; tests/training trains",
    "make .venv/train.stamp": "installs; the tests' environment has what it installs",
    "docker compose up": "needs a container engine; tests/test_house.py holds the Compose file",
    "docker compose --profile monitoring up": "the same",
    "pip install ./gatehouse_client": "installs; tests/gatehouse_client uses it from here",
}
"""Blocks that are shown and not run, by how they begin, with the reason."""
COMMANDS: dict[str, list[str]] = {
    "sh": ["bash", "-euo", "pipefail", "-c"],
    "python": [sys.executable, "-c"],
    "js": ["node", "--input-type=module", "-e"],
}
ADMIN_SECRET, ADMIN_KEY = make_key("root", "admin")
OUTPUTS = ("", "json", "text")
LANGUAGES = ("sh", "python", "js")

EXAMPLES = list(
    dict.fromkeys(
        (page, block.section, block.language == "js")
        for page in PAGES
        for block in blocks(page)
        if block.language in COMMANDS
    )
)
"""Page, section, and whether its JavaScript or all the rest: what lacks node skips that alone."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with_server = Server(ROOT / "checkpoints", folder, GATEHOUSE_API_KEYS=ADMIN_KEY.entry)
    try:
        with_server.wait_until_ready()
        yield with_server
    finally:
        with_server.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each page a folder that looks like a checkout."""
    found = {}
    for page in PAGES:
        found[page] = tmp_path_factory.mktemp("checkout")
        for name in ("docs", "checkpoints", "README.md"):
            (found[page] / name).symlink_to(ROOT / name)
    return found


def reason_not_to_run(block: Block) -> str | None:
    longest_first = sorted(NOT_RUN, key=len, reverse=True)
    return next((NOT_RUN[b] for b in longest_first if block.text.startswith(b)), None)


@pytest.mark.parametrize(("page", "section", "is_js"), EXAMPLES)
def test_what_a_section_shows_runs_and_prints_what_it_shows(
    page: str,
    section: str,
    is_js: bool,
    server: Server,
    folders: dict[str, Path],
    pytestconfig: pytest.Config,
) -> None:
    if is_js and shutil.which("node") is None:
        pytest.skip("node is not installed here")
    if not is_js and shutil.which("curl") is None:
        pytest.skip("curl is not installed here")
    own = [block for block in blocks(page) if block.section == section]
    runner = Runner(folders[page], server)
    try:
        printed: str | None = None
        for block in own:
            if block.language in COMMANDS:
                is_run = (block.language == "js") is is_js and reason_not_to_run(block) is None
                printed = runner.run(block) if is_run else None
            elif block.language in OUTPUTS and block.follows_block and printed is not None:
                check(block, printed, write=pytestconfig.getoption("--documents"))
                printed = None
    finally:
        runner.close()


def test_no_reason_is_left_of_a_block_that_is_gone() -> None:
    shown = [block for page in PAGES for block in blocks(page) if block.language in COMMANDS]
    for beginning in NOT_RUN:
        assert any(block.text.startswith(beginning) for block in shown), beginning


@pytest.mark.parametrize("page", ["docs/api.md", "docs/openai.md", "docs/libretranslate.md"])
def test_every_endpoint_is_shown_in_every_language(page: str) -> None:
    sections = {block.section for block in blocks(page)}
    titles = re.findall(r"^## ((?:GET|POST) .*)$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    assert titles
    assert set(titles) <= sections
    for title in titles:
        shown = {block.language for block in blocks(page) if block.section == title}
        assert set(LANGUAGES) <= shown, title


def test_every_block_says_what_it_is() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.language in (*COMMANDS, *OUTPUTS), block


class Runner:
    """Runs blocks one after the other.

    Args:
        folder: where.
        server: that ``localhost:8000`` stands for, until a block starts another one there.
    """

    def __init__(self, folder: Path, server: Server) -> None:
        self._folder = folder
        self._servers = {"8000": server}
        self._own: list[Server] = []
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GATEHOUSE_")}
        self._environment = environment | {
            "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{environment['PATH']}",
            "PYTHONPATH": str(ROOT),
            "ADMIN_KEY": ADMIN_SECRET,
            "GATEHOUSE_DEVICE": "cpu",
            "GATEHOUSE_NUM_THREADS": "1",
        }

    def run(self, block: Block) -> str | None:
        """What a block prints; None where it starts a server."""
        if block.text.startswith("gatehouse serve"):
            _, _, option, checkpoints, *port = shlex.split(block.text)
            assert option == "--checkpoints", block
            assert port[:-1] in ([], ["--port"]), block
            server = Server(self._folder / checkpoints, self._folder)
            self._servers[port[-1] if port else "8000"] = server
            self._own.append(server)
            return None
        command = re.sub(
            r"(?:localhost|127\.0\.0\.1):(\d+)",
            lambda found: self._servers[found[1]].address.removeprefix("http://"),
            block.text,
        )
        result = subprocess.run(
            [*COMMANDS[block.language], command],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{block}: {result.stdout}{result.stderr}"
        return result.stdout

    def close(self) -> None:
        for server in self._own:
            server.close()


def check(block: Block, printed: str, *, write: bool) -> None:
    """Hold what was printed against what a page shows, or have it show that."""
    try:
        assert_same(values_of(printed), values_of(block.text))
    except AssertionError as difference:
        if not write:
            raise AssertionError(f"{block} shows what is not printed: {printed}") from difference
        path = ROOT / block.page
        fence = f"```{block.language}\n"
        text = path.read_text(encoding="utf-8")
        assert f"{fence}{block.text}\n" in text
        new = as_written(printed)
        path.write_text(text.replace(f"{fence}{block.text}\n", f"{fence}{new}\n", 1), "utf-8")


NUMBER = re.compile(r"(-?\d+\.\d+)")
VOLATILE = ("timings", "device", "load_seconds", "id", "created")
"""Fields that differ from run to run or from machine to machine."""


def values_of(text: str) -> list[Any]:
    """Printed text as values: JSON without what is volatile, else lines with their numbers."""
    try:
        return [without_volatile(json.loads(answer)) for answer in _answers(text)]
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        return [value for line in lines for value in _line_values(line)]


def _answers(text: str) -> Iterator[str]:
    """The JSON texts in what was printed, one behind the other: nothing need stand between."""
    text = text.strip()
    while text:
        _, end = json.JSONDecoder().raw_decode(text)
        yield text[:end]
        text = text[end:].lstrip()


def _line_values(line: str) -> list[Any]:
    try:
        return [without_volatile(json.loads(line.removeprefix("data: ")))]
    except ValueError:
        parts = NUMBER.split(line.rstrip())
        return [float(part) if index % 2 else part for index, part in enumerate(parts)]


def without_volatile(answer: Any) -> Any:
    if isinstance(answer, dict):
        return {k: without_volatile(v) for k, v in answer.items() if k not in VOLATILE}
    return [without_volatile(item) for item in answer] if isinstance(answer, list) else answer


def assert_same(found: Any, shown: Any) -> None:
    """Equal, numbers within what another processor rounds differently."""
    assert type(found) is type(shown)
    if isinstance(shown, dict):
        assert found.keys() == shown.keys()
        for key, value in shown.items():
            assert_same(found[key], value)
    elif isinstance(shown, list):
        assert len(found) == len(shown)
        for one, other in zip(found, shown, strict=True):
            assert_same(one, other)
    elif isinstance(shown, float):
        assert found == pytest.approx(shown, rel=1e-3, abs=5e-4)
    else:
        assert found == shown


def as_written(printed: str) -> str:
    """Output as pages show it.

    JSON has a line for what holds no further objects or lists; of several answers each has one.
    """
    try:
        answers = [*_answers(printed)]
    except ValueError:
        return printed.rstrip("\n")
    return _pretty(json.loads(answers[0]), "") if len(answers) == 1 else "\n".join(answers)


def _pretty(value: Any, indent: str) -> str:
    inside = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(value, (dict, list)) or not any(isinstance(v, (dict, list)) for v in inside):
        return json.dumps(value, ensure_ascii=False)
    names = [f"{json.dumps(name)}: " for name in value] if isinstance(value, dict) else []
    parts = [
        f"\n{indent}  {name}{_pretty(each, indent + '  ')}"
        for name, each in zip(names or [""] * len(inside), inside, strict=True)
    ]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{begin}{','.join(parts)}\n{indent}{end}"


def test_output_is_written_as_the_pages_have_it() -> None:
    shown = [b for b in blocks("README.md") if b.language == "json"]
    assert len(shown) >= 4
    for block in shown:
        assert as_written(json.dumps(json.loads(block.text), ensure_ascii=False)) == block.text
    assert as_written('{"a": [1]}{"b": 2}\n') == '{"a": [1]}\n{"b": 2}'
    assert as_written("no JSON\n\n") == "no JSON"
    assert as_written("") == ""
