"""What training needs again at a later step, and would otherwise give away."""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
"""Of ``mallopt`` in glibc's ``malloc.h``."""
_LARGE = 2**30
_PRODUCTS = 4096
"""More than seven epochs of `en-fr` have; each takes nearly a megabyte."""


def keep_freed_memory() -> bool:
    """Have the C library keep large blocks that are freed, instead of giving them back.

    The logits of a batch alone are 50 MB, and glibc maps every block above 32 MB anew: the kernel
    then clears each of its pages again at every step. Kept, half of the time of the softmax over
    the vocabulary goes away. The process stays as large as it was at its largest.

    Returns:
        Whether there is a glibc that was told so.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def keep_compiled_products() -> None:
    """Have oneDNN keep more of the matrix products that it compiled, if it has not begun yet.

    It compiles one for each combination of sizes, in some milliseconds, and keeps 1,024. Batches
    of many lengths have more, and would spend a third of the time on what was compiled before.
    Whoever sets ``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` is heeded.
    """
    # It is read by the library, not by us.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_PRODUCTS))  # noqa: TID251
