"""The C library is asked to keep what is freed, where there is one that can."""

import ctypes
import platform
import sys

import pytest

from training.memory import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc only")
def test_glibc_does_as_it_is_told() -> None:
    assert keep_freed_memory()


def test_other_systems_and_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
