"""Configures this process's log: the same form of lines for every front-end, on standard error.

Levels: ERROR is a problem of the server, WARNING a call that the pool ended or a problem that an
operator should look at, INFO normal events, including exceptions of user code.
"""

from __future__ import annotations

import logging
import sys

from . import line_format


def configure_log(level: str, form: str = line_format.AUTO, *, queue: bool = False) -> None:
    """Log flashpool's records from this level on, asyncio's from WARNING on, in this form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(line_format.formatter(form, sys.stderr, queue=queue))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def quieten_uvicorn() -> None:
    """Log only uvicorn's errors: other lines repeat flashpool's, or concern single clients."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
