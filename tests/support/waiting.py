"""Waiting on an event loop for what nothing tells."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

__all__ = ["PATIENCE", "until"]

#: How many times longer than usual to wait: `make coverage` slows down all that is waited for.
PATIENCE: Final = float(os.environ.get("FLASHPOOL_TEST_PATIENCE", "1"))


async def until(condition: Callable[[], object], limit_s: float = 30.0) -> None:
    """Look again until it is true; TimeoutError when it has not been."""
    deadline = time.monotonic() + PATIENCE * limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        await asyncio.sleep(0.005)
