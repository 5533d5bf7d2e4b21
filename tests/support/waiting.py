"""Waiting on an event loop for conditions without an event."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

__all__ = ["PATIENCE", "until"]

#: How many times longer than usual to wait, because `make coverage` slows everything down.
PATIENCE: Final = float(os.environ.get("FLASHPOOL_TEST_PATIENCE", "1"))


async def until(condition: Callable[[], object], limit_s: float = 30.0) -> None:
    """Poll until the condition is true; raise TimeoutError otherwise."""
    deadline = time.monotonic() + PATIENCE * limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        await asyncio.sleep(0.005)
