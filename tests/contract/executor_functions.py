"""Functions that the Executor suite sends to workers; imported there by name."""

import asyncio
import ctypes
import multiprocessing
import os
import signal
import sys
import time


def add(a, b=0):
    return a + b


def identity(value):
    return value


def pid_of_worker():
    return os.getpid()


def sleep(seconds, value=None):
    time.sleep(seconds)
    return value


def touch_then_sleep(path, seconds):
    with open(path, "w", encoding="utf-8") as file:
        file.write(str(os.getpid()))
    time.sleep(seconds)


def wait_for(path, limit=50.0):
    deadline = time.monotonic() + limit
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.005)


def touch(path):
    with open(path, "w", encoding="utf-8"):
        pass


def die(how):
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "exit":
        os._exit(7)


def die_at(value, at):
    if value == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


class CustomError(Exception):
    def __init__(self, code, *, hint):
        super().__init__(f"custom {code}")
        self.code = code
        self.hint = hint

    def __reduce__(self):
        return _custom_error, (self.code, self.hint)


def _custom_error(code, hint):
    return CustomError(code, hint=hint)


def fail(kind=ValueError, *args):
    raise kind(*args)


def fail_custom():
    raise CustomError(4, hint="h")


def fail_after(seconds):
    time.sleep(seconds)
    raise ValueError("late")


def fail_with_cause():
    try:
        {}["missing"]
    except KeyError as error:
        raise RuntimeError("because") from error


def fail_with_group():
    raise ExceptionGroup("both", [ValueError(1), TypeError("two")])  # noqa: F821 - from 3.11 on


def fail_with_local_class():
    class Local(Exception):
        pass

    raise Local("mine")


def leave(code):
    sys.exit(code)


def count(n):
    yield from range(n)


def count_then_fail(n):
    yield from range(n)
    raise ValueError("after the items")


def count_with_marks(n, path):
    for i in range(n):
        with open(path, "w", encoding="utf-8") as file:
            file.write(str(i))
        yield i


async def acount(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i


async def aadd(a, b):
    await asyncio.sleep(0.01)
    return a + b


def unpicklable_result():
    return (i for i in range(3)).__next__.__self__.gi_frame


class ExplodesHere:
    def __reduce__(self):
        return _explode, (os.getpid(),)


def _explode(pid):
    if os.getpid() != pid:
        raise LookupError("only where it was made")
    return ExplodesHere()


def explodes_at_the_caller():
    return ExplodesHere()


def speak(text):
    print(text)
    print(text + " aloud", file=sys.stderr)


class Counter:
    def __init__(self, start):
        self.value = start

    def plus(self, n):
        return self.value + n


def environment(name):
    return os.environ.get(name)


def orphan_a_sleeper(path):
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with open(path, "w", encoding="utf-8") as file:
            file.write(str(os.getpid()))
        time.sleep(600)
    time.sleep(600)


def nested(n):
    from flashpool.pool import Pool

    with Pool(1) as pool:
        return pool.submit(add, n, 1).result()


async def acount_beside_a_clock(n, path):
    """Count, while another task on the same loop appends to a file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def tick():
        while True:
            os.write(file, b".")
            await asyncio.sleep(0.01)

    clock = asyncio.create_task(tick())
    for i in range(n):
        yield i
    clock.cancel()


def double_into(queue, value):
    queue.put(2 * value)


def in_a_child(method, value):
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    child = context.Process(target=double_into, args=(queue, value))
    child.start()
    child.join(20)
    return child.exitcode, None if queue.empty() else queue.get()


def in_a_pool(method, values):
    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map(abs, values)
