"""How kernels are compiled, and what the processor offers them.

Kernels are compiled by Numba when they are first called, for the processor that they run on, and
kept beside their source (or in ``NUMBA_CACHE_DIR``), so that only the first start of a version
waits for it.
"""

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import llvmlite.binding
import numba
from numba.core import config
from numba.extending import intrinsic
from numba.misc.appdirs import AppDirs

Function = Callable[..., Any]


def _keep_by_sources(folder: Path) -> bool:
    """Have Numba keep what it compiles in a folder for exactly these sources.

    Numba looks at the file of a kernel only, and not at those of the functions in it: what one
    version of the sources left would be taken for another's.

    Args:
        folder: of the sources.

    Returns:
        Whether there is a place to write to.
    """
    sources = hashlib.sha256()
    for source in sorted(folder.glob("*.py")):
        sources.update(f"{source.name} {source.stat().st_size} ".encode() + source.read_bytes())
    beside = folder / "__pycache__"
    user_wide = Path(AppDirs(appname="numba", appauthor=False).user_cache_dir)
    named = [Path(config.CACHE_DIR)] if config.CACHE_DIR else []
    for place in (*named, beside, user_wide):
        own = place / f"sources-{sources.hexdigest()[:16]}"
        # Where it may not be written to, the next one.
        with contextlib.suppress(OSError):
            own.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=own).close()
            config.CACHE_DIR = str(own)
            if place == beside:
                _forget_others(own)
            return True
    return False


def _forget_others(own: Path) -> None:
    """Drop what was compiled from the sources that stood here before."""
    for other in own.parent.glob("sources-*"):
        if other != own:
            # Another process may be doing the same.
            shutil.rmtree(other, ignore_errors=True)


_IS_KEPT = _keep_by_sources(Path(__file__).parent)


def processor_has(feature: str) -> bool:
    """Whether kernels are compiled for a processor with this feature, as LLVM names it."""
    if config.CPU_FEATURES is not None:
        return f"+{feature}" in config.CPU_FEATURES.split(",")
    return bool(llvmlite.binding.get_host_cpu_features().get(feature, False))


def _widen_vectors() -> None:
    """Have loops compiled to vectors of 512 bits where the processor does not slow down for them.

    LLVM keeps to 256 bits on all of Intel's; those with AMX have no reason to. Bits are the same:
    see :mod:`models.kernels.sums`.
    """
    if config.CPU_FEATURES is None and processor_has("amx-int8"):
        features = llvmlite.binding.get_host_cpu_features().flatten()
        config.CPU_FEATURES = f"{features},-prefer-256-bit"


_widen_vectors()


def instruction(function: Function) -> Function:
    """A function that writes what LLVM is to compile in place of a call of it."""
    return cast(Function, intrinsic(function))


def kernel(function: Function) -> Function:
    """Compile a function of numbers and arrays; it runs without the interpreter's lock.

    Every operation is rounded by itself, so that all processors give the same bits. One whose name
    begins with an underscore can be called by kernels only.
    """
    return _compile(function, set())


def formula(function: Function) -> Function:
    """The same, where a product and a sum may be rounded as one, if the processor can do that."""
    return _compile(function, {"contract"})


def reduction(function: Function) -> Function:
    """The same as :func:`formula` for numbers that are added up, in the order that is fastest.

    The order depends on how many there are and on the processor: good for training, and not for
    scores, which :mod:`models.kernels.sums` is for.
    """
    return _compile(function, {"contract", "reassoc", "nsz"})


def compile_callable(function: Function) -> int:
    """The address of a function of three int64, compiled as a :func:`kernel` is.

    Whoever calls it by its address has no copy of it to compile. It is to return 1: what it raises
    is printed, and then it returns 0.
    """
    compile_ = numba.cfunc("int64(int64, int64, int64)", cache=_IS_KEPT, error_model="numpy")
    compiled = compile_(function)
    _CALLABLES.append(compiled)
    return int(compiled.address)


_CALLABLES: list[Any] = []
"""They are there as long as somebody holds them."""


def _compile(function: Function, fastmath: set[str]) -> Function:
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    # A way in for C, or for Python, takes long to compile. A call that finds none is fatal.
    options["no_cfunc_wrapper"] = True
    options["no_cpython_wrapper"] = function.__name__.startswith("_")
    return cast(Function, numba.njit(cache=_IS_KEPT, **options)(function))
