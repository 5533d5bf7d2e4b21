"""Waiting on an event loop for what nothing tells."""

import asyncio
import time
from collections.abc import Callable

__all__ = ["until"]


async def until(condition: Callable[[], object], limit_s: float = 30.0) -> None:
    """Look again until it is true; TimeoutError when it has not been."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        await asyncio.sleep(0.005)
