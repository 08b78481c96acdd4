"""How log lines look, the same in every process of the service."""

import logging

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(level: str) -> None:
    """Write log lines to standard error.

    Args:
        level: least severe level that is written: debug, info, warning or error.
    """
    logging.basicConfig(level=level.upper(), format=_FORMAT)
