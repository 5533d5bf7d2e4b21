"""How this process logs: one form of line for every front-end, on standard error."""

from __future__ import annotations

import logging
from typing import Final

from flashpool.pool.calls import Outcome
from flashpool.pool.errors import BY_NAME, CallError
from flashpool.pool.exit_causes import TAIL_HEADING

_log = logging.getLogger(__name__)

#: Characters of a reason; a build's has pages.
_WHY: Final = 400
_FORMAT: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def configure_log(level: str) -> None:
    """Ours from this level on; asyncio's from warnings on."""
    logging.basicConfig(level=level, format=_FORMAT)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def quieten_uvicorn() -> None:
    """Its start-up lines say what ours say; its warnings are about single clients."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)


def tell_end(label: str, outcome: Outcome) -> None:
    """One line for a call that the pool ended. What user code raised is its caller's affair."""
    if outcome.error_type is None or outcome.from_user or was_refused(outcome):
        return
    level = logging.INFO if outcome.error_type == "Cancelled" else logging.WARNING
    why = " ".join((outcome.error or "").partition(TAIL_HEADING)[0].split())[:_WHY]
    pid = outcome.receipt.pid
    who = f"{label}, pid {pid}" if pid else label
    _log.log(level, "Call of %s: %s: %s", who, outcome.error_type, why)


def was_refused(outcome: Outcome) -> bool:
    """Whether it ended before it was a call of the pool, with an error that says so."""
    kind = BY_NAME.get(outcome.error_type or "")
    return not outcome.receipt.environment and kind is not None and not issubclass(kind, CallError)
