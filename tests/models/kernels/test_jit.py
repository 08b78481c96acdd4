"""How kernels are compiled and kept."""

import ast
import os
import time
from pathlib import Path

import numba
import pytest
from numba.core import config

from models.kernels import jit


def test_what_was_compiled_from_older_sources_is_dropped(tmp_path: Path) -> None:
    compiled = tmp_path / "__pycache__"
    compiled.mkdir()
    now = time.time()
    for name, age in (("kernel.py", 100), ("__pycache__/old.nbi", 200), ("__pycache__/new.nbi", 0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now - age, now - age))
    # One that another process, which starts at the same time, drops just now.
    (compiled / "dropped.nbi").symlink_to(tmp_path / "nowhere")
    jit._forget_outdated(tmp_path)
    assert {file.name for file in compiled.iterdir()} == {"new.nbi", "dropped.nbi"}


def test_a_processor_may_be_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CPU_FEATURES", "+avx2,-avx512vnni")
    assert jit.processor_has("avx2")
    assert not jit.processor_has("avx512vnni")
    assert not jit.processor_has("amx-int8")


def test_kernels_work_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an image that may only be read, without a folder in memory."""

    def add(one: int, other: int) -> int:
        return one + other

    def refuse(*arguments: object, **options: object) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return compile_kernel(*arguments, **options)

    compile_kernel = numba.njit
    monkeypatch.setattr(numba, "njit", refuse)
    assert jit.kernel(add)(1, 2) == 3


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


@pytest.mark.parametrize("path", sorted(Path(jit.__file__).parent.glob("*.py")), ids=str)
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
