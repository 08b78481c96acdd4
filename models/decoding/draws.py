"""The random numbers of sampling, which no generator keeps."""

import hashlib
import struct


def uniform_number(seed: int, position: int) -> float:
    """A uniform number in [0, 1) that is a function of its two arguments alone.

    A counter-based generator (Salmon et al. 2011) with BLAKE2b as its keyed function: there is
    no state to share, so a draw never depends on other rows or on the order of steps.

    Args:
        seed: of the output.
        position: index of the generated token.
    """
    digest = hashlib.blake2b(struct.pack("<QQ", seed, position), digest_size=8).digest()
    return float((int.from_bytes(digest, "little") >> 11) * 2.0**-53)
