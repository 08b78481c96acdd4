"""What a process computes that believes to run on another processor."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def digest_on(name: str, features: str, module: str, cache_dir: Path) -> str:
    """What ``digest()`` of a module returns where other instructions are compiled.

    Args:
        name: of the processor, as LLVM has it.
        features: that it has or lacks.
        module: of the function.
        cache_dir: an empty folder for what is compiled.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        pytest.skip("compiles for other processors of this kind only")
    settings = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    found = subprocess.run(
        [sys.executable, "-c", f"from {module} import digest; print(digest())"],
        env={**os.environ, **settings, "NUMBA_CACHE_DIR": str(cache_dir)},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()
