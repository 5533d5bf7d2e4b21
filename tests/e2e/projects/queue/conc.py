"""Functions that run several jobs at a time, and a coroutine function for one."""

import asyncio
import os
import time

from runpod_flash import Endpoint


@Endpoint(name="sync-conc", cpu="cpu3c-1-2", max_concurrency=3)
def sync_conc(seconds=0.0, path=None, die=False):
    if path:
        with open(path, "w"):
            pass
    time.sleep(seconds)
    if die:
        os._exit(5)
    return os.getpid()


@Endpoint(name="async-conc", cpu="cpu3c-1-2", max_concurrency=3)
async def async_conc(seconds=0.0):
    await asyncio.sleep(seconds)
    return id(asyncio.get_running_loop())


@Endpoint(name="async-one", cpu="cpu3c-1-2")
async def async_one(x):
    await asyncio.sleep(0)
    return 2 * x
