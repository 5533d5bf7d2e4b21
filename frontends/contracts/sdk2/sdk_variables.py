"""What the platform's variables say of a resource of SDK 2.0. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Final

__all__ = ["concurrency"]

_CONCURRENCY: Final = "RUNPOD_MAX_CONCURRENCY"


def concurrency(environ: Mapping[str, str]) -> int:
    """Calls of one function that may run together in its process; one, unless it is said."""
    with suppress(ValueError):
        return max(1, int(environ.get(_CONCURRENCY, "1")))
    return 1
