"""``python -m benchmarks NAME ...``: every figure in the documents comes from one of these.

Each prints a table for people and ends in one line of JSON for machines.
"""

import argparse
import sys

from benchmarks import book, decode, serving, training

BENCHMARKS = {"book": book, "decode": decode, "serving": serving, "training": training}


def main() -> int:
    """Run the named benchmark.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)
    for name, module in BENCHMARKS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        module.add_arguments(commands.add_parser(name, help=summary, description=module.__doc__))
    arguments = parser.parse_args()
    status: int = BENCHMARKS[arguments.name].run(arguments)
    return status


if __name__ == "__main__":
    sys.exit(main())
