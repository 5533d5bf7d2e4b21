"""How this process logs: one form of line for every front-end, on standard error."""

from __future__ import annotations

import logging
from typing import Final

_FORMAT: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def configure_log(level: str) -> None:
    """Ours from this level on; asyncio's from warnings on."""
    logging.basicConfig(level=level, format=_FORMAT)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def quieten_uvicorn() -> None:
    """Its start-up lines say what ours say; its warnings are about single clients."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
