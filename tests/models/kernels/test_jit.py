"""How kernels are compiled and kept."""

import os
import time
from pathlib import Path

import numba
import pytest
from numba.core import config

from models.kernels import jit


def test_what_was_compiled_from_older_sources_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = tmp_path / "__pycache__"
    compiled.mkdir()
    now = time.time()
    for name, age in (("kernel.py", 100), ("__pycache__/old.nbi", 200), ("__pycache__/new.nbi", 0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now - age, now - age))
    monkeypatch.setattr(jit, "_FOLDER", tmp_path)
    jit._forget_outdated()
    assert [file.name for file in compiled.iterdir()] == ["new.nbi"]


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
