"""How this process logs: one form of line for every front-end, on standard error.

What levels mean: ERROR is the server's own trouble, WARNING a call that the pool had to end or a
thing that an operator should look at, INFO what went its way, an exception of user code too.
"""

from __future__ import annotations

import logging
import sys

from . import line_format


def configure_log(level: str, form: str = line_format.AUTO, *, queue: bool = False) -> None:
    """Ours from this level on, in this form; asyncio's from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(line_format.formatter(form, sys.stderr, queue=queue))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def quieten_uvicorn() -> None:
    """Its start-up lines say what ours say; its warnings are about single clients."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
