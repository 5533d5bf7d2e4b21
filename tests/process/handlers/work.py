"""Functions that the handlers in this folder call; plain Python, so that they load at once."""

import asyncio
import os
import sqlite3
import sys
import threading
import time
from pathlib import Path

HERE = sqlite3.connect(":memory:")
COUNT = 0
CANCELLED = []


def count():
    """Count calls in state of the module."""
    global COUNT
    COUNT += 1
    return COUNT


async def later(value):
    await asyncio.sleep(0.01)
    return value


def ends(how, value=None):
    """Finish in the way that the argument names."""
    end = globals().get(f"end_{how}", value)
    return end() if callable(end) else end


def end_exit():
    sys.exit(3)


def end_interrupt():
    raise KeyboardInterrupt


def end_base():
    raise BaseException("of its own kind")


def end_stop():
    raise StopIteration("x")


def end_cancelled():
    raise asyncio.CancelledError


def end_fork():
    os.fork()
    return "once"


def end_main():
    return threading.current_thread() is threading.main_thread()


def end_database():
    return HERE.execute("select 1").fetchone()


def end_run():
    return asyncio.run(later("ran"))


def end_itself():
    value = []
    value.append(value)
    return value


def end_deep():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


end_set = {"a": [1, {2}]}
end_bytes = b"x"
end_nan = [float("nan")]
end_infinity = {"x": (1, float("-inf"))}
end_object = {"o": object()}
end_surrogate = {"s": "\ud800"}
end_key = {(1, 2): 3}


def large(size):
    return "x" * size


def dies(how):
    """Kill or exit the process."""
    if how == "leave":
        os._exit(5)
    os.kill(os.getpid(), 11)


def touch(path):
    Path(path).touch()


def blocks(path, seconds):
    """Report that the job has begun, then block; such a job cannot be cancelled."""
    touch(path)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    return "over"


async def waits(path, seconds):
    """Report that the job has begun, then wait: the job can be cancelled."""
    touch(path)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        CANCELLED.append(path)
        raise
    return "over"


async def cancelled():
    return len(CANCELLED)


async def loop():
    return id(asyncio.get_running_loop())


def items(number, fails=None, says=None, path=None, odd=None):
    for n in range(number):
        if n == fails:
            raise ValueError("no more")
        if n == says:
            yield {"error": "enough"}
        if n == odd:
            yield {"n": {n}}
        yield {"n": n}
    while path and not Path(path).exists():
        time.sleep(0.01)


async def items_later(number):
    for n in range(number):
        await asyncio.sleep(0)
        yield n


def says(text, times):
    for _ in range(times):
        print(text)
        time.sleep(0.01)
    print("unfinished", text, end="")


async def says_later(text, times):
    for _ in range(times):
        print(text)
        await asyncio.sleep(0.01)


def rest(*args):
    return list(args)


class Counter:
    """A class with state in the instance."""

    def __init__(self):
        self.value = 0

    def add(self, by=1):
        self.value += by
        return self.value

    async def add_later(self, by=1):
        await asyncio.sleep(0)
        return self.add(by)
