"""What the handlers beside this call; plain Python, so that it loads at once."""

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
    """State of the module."""
    global COUNT
    COUNT += 1
    return COUNT


async def later(value):
    await asyncio.sleep(0.01)
    return value


def ends(how, value=None):
    """One end of many."""
    if how == "exit":
        sys.exit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "base":
        raise BaseException("of its own kind")
    if how == "stop":
        raise StopIteration("x")
    if how == "cancelled":
        raise asyncio.CancelledError
    if how == "wordless":
        raise ValueError
    if how == "fork":
        os.fork()
        return "once"
    if how == "main":
        return threading.current_thread() is threading.main_thread()
    if how == "database":
        return HERE.execute("select 1").fetchone()
    if how == "run":
        return asyncio.run(later("ran"))
    if how == "set":
        return {"a": [1, {2}]}
    if how == "bytes":
        return b"x"
    if how == "nan":
        return [float("nan")]
    if how == "infinity":
        return {"x": (1, float("-inf"))}
    if how == "object":
        return {"o": object()}
    if how == "surrogate":
        return {"s": "\ud800"}
    if how == "key":
        return {(1, 2): 3}
    if how == "itself":
        value = []
        value.append(value)
        return value
    if how == "deep":
        for _ in range(100_000):
            value = [value]
        return value
    if how == "large":
        return "x" * value
    return value


def dies(how):
    """Takes its process along."""
    if how == "leave":
        os._exit(5)
    os.kill(os.getpid(), 11)


def blocks(path, seconds):
    """Says that it has begun, and cannot be cancelled."""
    Path(path).touch()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    return "over"


async def waits(path, seconds):
    """The same, and can be."""
    Path(path).touch()
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


def rest(*args):
    return list(args)


class Counter:
    """State of an instance."""

    def __init__(self):
        self.value = 0

    def add(self, by=1):
        self.value += by
        return self.value

    async def add_later(self, by=1):
        await asyncio.sleep(0)
        return self.add(by)
