"""An event loop made when it is imported."""

import asyncio

LOOP = asyncio.new_event_loop()
LOCK = asyncio.Lock()


async def answer() -> int:
    async with LOCK:
        await asyncio.sleep(0.001)
    return 42
