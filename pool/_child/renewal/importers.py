"""Determines which module's import an event belongs to: the module whose body is running."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

#: Modules that are not imports: flashpool's, and those of the call's own code.
_PROGRAMS = ("__main__", "__flash_live__", "__runpod_live__", "_flashpool")


def importing_module() -> str:
    """Return the innermost module whose body is running; empty if it is not an import."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            name = frame.f_globals.get("__name__")
            return "" if name in _PROGRAMS or not isinstance(name, str) else name
        frame = frame.f_back
    return ""
