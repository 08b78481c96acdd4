"""``python -m training PRESET``: see :mod:`training.cli`."""

import sys

from training.cli import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m training"))
