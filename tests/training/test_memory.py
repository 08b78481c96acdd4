"""The C library is asked to keep what is freed, where there is one that can."""

import ctypes
import os
import platform
import sys

import pytest

from training.memory import keep_compiled_products, keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc only")
def test_glibc_does_as_it_is_told() -> None:
    assert keep_freed_memory()


def test_other_systems_and_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()


def test_onednn_keeps_more_products_unless_its_user_says_how_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.delenv(name, raising=False)
    keep_compiled_products()
    assert int(os.environ[name]) > 1024, "its own default"
    monkeypatch.setenv(name, "7")
    keep_compiled_products()
    assert os.environ[name] == "7"
