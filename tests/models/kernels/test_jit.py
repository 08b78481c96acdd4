"""How kernels are compiled and kept."""

import ast
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from numba.core import config

from models.kernels import choice, jit

SOURCES = sorted(Path(jit.__file__).parent.glob("*.py"))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a kernel and a function in it; Numba's settings are put back at the end."""
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "inner.py").write_text("def number():\n    return 1\n")
    (folder / "outer.py").write_text("def call():\n    return number() + 1\n")
    return folder


def _place(sources: Path, named: Path | str = "") -> Path:
    config.CACHE_DIR = str(named)
    assert jit._keep_by_sources(sources)
    return Path(config.CACHE_DIR)


def _call(sources: Path) -> int:
    """What the kernel returns in a new process, as far as Numba can tell."""
    space: dict[str, Any] = {"__name__": "outer"}
    for name, function in (("inner", "number"), ("outer", "call")):
        path = sources / f"{name}.py"
        exec(compile(path.read_text(), path, "exec"), space)
        space[function] = jit.kernel(space[function])
    result: int = space["call"]()
    return result


def test_a_kernel_is_not_taken_from_what_other_sources_left(sources: Path, tmp_path: Path) -> None:
    """The file of the kernel itself is the same, so that Numba would take it."""
    _place(sources, tmp_path / "named")
    assert _call(sources) == 2
    (sources / "inner.py").write_text("def number():\n    return 5\n")
    _place(sources, tmp_path / "named")
    assert _call(sources) == 6


def test_the_same_sources_have_the_same_place_and_any_change_another(
    sources: Path, tmp_path: Path
) -> None:
    named = tmp_path / "named"
    first = _place(sources, named)
    assert first.parent == named
    os.utime(sources / "inner.py", (0, 0))
    assert _place(sources, named) == first
    (sources / "inner.py").write_text("def number():\n    return 5\n")
    second = _place(sources, named)
    (sources / "inner.py").rename(sources / "deeper.py")
    third = _place(sources, named)
    assert len({first, second, third}) == 3
    # Services of several versions may share the folder that they are given.
    assert {*named.iterdir()} == {first, second, third}


def test_beside_the_sources_only_what_is_theirs_is_kept(sources: Path) -> None:
    first = _place(sources)
    assert first.parent == sources / "__pycache__"
    (first / "kernel.nbi").touch()
    (sources / "inner.py").write_text("def number():\n    return 5\n")
    second = _place(sources)
    assert [*first.parent.iterdir()] == [second]


def test_where_nothing_can_be_written_the_next_place_is_taken(
    sources: Path, tmp_path: Path
) -> None:
    """A file in the place of a folder refuses even root, unlike a folder that may only be read."""
    named = tmp_path / "named"
    named.touch()
    assert _place(sources, named).parent == sources / "__pycache__"
    shutil.rmtree(sources / "__pycache__")
    (sources / "__pycache__").touch()
    assert _place(sources, named).parent == tmp_path / "home" / "numba"
    shutil.rmtree(tmp_path / "home")
    (tmp_path / "home").touch()
    config.CACHE_DIR = str(named)
    assert not jit._keep_by_sources(sources)


def test_the_kernels_are_kept_in_that_place() -> None:
    kept = Path(choice.most_probable.stats.cache_path)  # type: ignore[attr-defined]  # of Numba
    assert kept.parent.name.startswith("sources-")
    assert str(kept.parent) == config.CACHE_DIR


def test_a_processor_may_be_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CPU_FEATURES", "+avx2,-avx512vnni")
    assert jit.processor_has("avx2")
    assert not jit.processor_has("avx512vnni")
    assert not jit.processor_has("amx-int8")


def test_kernels_work_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an image that may only be read, without a folder in memory."""

    def add(one: int, other: int) -> int:
        return one + other

    monkeypatch.setattr(jit, "_IS_KEPT", False)
    compiled: Any = jit.kernel(add)
    assert compiled(1, 2) == 3
    assert compiled.stats.cache_path is None


def _addressed_for_the_last_time(function: ast.FunctionDef) -> list[str]:
    """Arrays that a function makes and of which nothing is used behind the address.

    Numba gives an array back behind its last use, and does not see what is done by the address.
    """
    made, addressed, used = set(), dict[str, int](), dict[str, int]()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call | ast.Tuple):
            for target in node.targets:
                made |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.Attribute) and node.attr == "ctypes":
            if isinstance(node.value, ast.Name):
                addressed[node.value.id] = node.value.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            used[node.id] = max(used.get(node.id, 0), node.lineno)
    return [name for name in made & set(addressed) if used[name] <= addressed[name]]


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_array_is_given_back_while_its_address_is_in_use(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert not _addressed_for_the_last_time(node), f"{path.name}: {node.name}"


def test_such_an_array_is_found() -> None:
    source = """
def broken(rows):
    aside = np.empty((rows, 4), np.int32)
    place = np.intp(aside.ctypes.data)
    for row in range(rows):
        store(place, row)
"""
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    assert _addressed_for_the_last_time(function) == ["aside"]


_COMPILED = {"kernel", "formula", "reduction", "operation"}


def _is_compiled(node: ast.AST) -> bool:
    if not isinstance(node, ast.FunctionDef):
        return False
    names = (each.func if isinstance(each, ast.Call) else each for each in node.decorator_list)
    return any(isinstance(name, ast.Name) and name.id in _COMPILED for name in names)


@pytest.mark.parametrize(
    "path", sorted(Path(jit.__file__).parent.glob("*.py")), ids=lambda p: p.stem
)
def test_kernels_without_a_way_in_are_called_by_kernels_only(path: Path) -> None:
    """Called by Python they would end the process."""
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if _is_compiled(node)]
    private = {
        node.name
        for node in functions
        if isinstance(node, ast.FunctionDef) and node.name.startswith("_")
    }
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in private:
            assert id(node) in inside, f"{node.id} in line {node.lineno} of {path.name}"


def _calls(function: ast.AST, start: str) -> list[tuple[int, str]]:
    """The lines in which functions whose names begin so are called, and with what first."""
    return [
        (node.lineno, ast.unparse(node.args[0]))
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id.startswith(start)
    ]


def test_parcels_are_kept_until_they_have_arrived() -> None:
    packed = 0
    for path in SOURCES:
        functions = [node for node in ast.walk(ast.parse(path.read_text())) if _is_compiled(node)]
        for function in functions:
            kept = {parts: line for line, parts in _calls(function, "keep")}
            for line, parts in _calls(function, "_pack_"):
                packed += 1
                assert kept.get(parts, 0) > line, f"{parts} in line {line} of {path.name}"
    assert packed > 5
