"""A function of one job at a time, with an end for each wish."""

import asyncio
import os
import sys
import time

from runpod_flash import Endpoint

COUNT = 0


@Endpoint(name="plain", cpu="cpu3c-1-2")
def plain(do="count", value=None, path=None):
    global COUNT
    if do == "count":
        COUNT += 1
        return COUNT
    if do == "exit":
        sys.exit(3)
    if do == "fail":
        raise ValueError(value)
    if do == "die":
        os.kill(os.getpid(), 11)
    if do == "set":
        return {"a": [1, {2}]}
    if do == "large":
        return "x" * value
    if do == "stay":
        print("begun", flush=True)
        with open(path + ".part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(path + ".part", path)
        time.sleep(value)
        return "over"
    if do == "run":
        return asyncio.run(asyncio.sleep(0, "ran"))
    if do == "variables":
        return sorted(name for name in os.environ if name.startswith(("FLASH", "RUNPOD")))
    return value
