"""``python -m benchmarks NAME ...``: every figure in the documents comes from one of these.

Each prints a table for people and ends in one line of JSON for machines.
"""

import argparse
import sys
from collections.abc import Sequence

from benchmarks import (
    book,
    capacity,
    checkouts,
    compilers,
    corpus,
    decode,
    kernels,
    overload,
    ray_serving,
    serving,
    sizing,
    soak,
    training,
)

BENCHMARKS = {
    "book": book,
    "capacity": capacity,
    "checkouts": checkouts,
    "compilers": compilers,
    "corpus": corpus,
    "decode": decode,
    "kernels": kernels,
    "overload": overload,
    "ray_serving": ray_serving,
    "serving": serving,
    "sizing": sizing,
    "soak": soak,
    "training": training,
}


def main(argv: Sequence[str] | None = None, prog: str = "python -m benchmarks") -> int:
    """Run the named benchmark.

    Args:
        argv: words of the command line; None takes the process's.
        prog: how the command is called, for its help.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)
    for name, module in BENCHMARKS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=module.__doc__))
    arguments = parser.parse_args(argv)
    status: int = BENCHMARKS[arguments.name].run(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
