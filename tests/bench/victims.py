"""Functions that calls run. Imports are few, because each worker imports this module."""

import os
import signal
import time


def stubborn(path: str) -> None:
    """Compute for ever, deaf to SIGTERM, with a grandchild in a session of its own that is
    deaf as well; the pids of both are in the file, once it is there.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    near, far = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(far, b"%d" % os.getpid())
            time.sleep(60)
        os._exit(0)
    os.wait()
    with open(path + ".new", "w", encoding="ascii") as file:
        file.write(f"{os.getpid()} {int(os.read(near, 32))}")
    os.rename(path + ".new", path)
    while True:
        pass


def sleep(path: str) -> None:
    """Write the pid, then sleep."""
    with open(path + ".new", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".new", path)
    time.sleep(60)


def same(value):
    return value


def plus_one(value):
    return value + 1


def wait_for_pids(path, seconds=10.0):
    """Those that one of the above wrote, once user code runs; the file goes."""
    end = time.monotonic() + seconds
    while not os.path.exists(path):
        assert time.monotonic() < end, f"no call wrote {path} in {seconds:g} s"
        time.sleep(0.002)
    with open(path, encoding="ascii") as file:
        pids = [int(pid) for pid in file.read().split()]
    os.unlink(path)
    return pids
