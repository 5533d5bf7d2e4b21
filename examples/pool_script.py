"""Run functions of a script in processes of their own, and see how calls fail.

    .venv/bin/python examples/pool_script.py

No main guard is needed: workers do not run this file.
"""

import os
import time
from collections.abc import Iterator

from flashpool.pool import Pool, Timeout, WorkerCrashed


def area(radius: float) -> float:
    """Return the area of a circle."""
    return 3.14159 * radius * radius


with Pool() as pool:
    print("areas:", [round(value, 2) for value in pool.map(area, [1, 2, 3])])

    # A call may raise, crash or hang. Its caller gets the reason, and no other call notices.
    try:
        pool.submit(lambda: 1 / 0).result()
    except ZeroDivisionError as error:
        print("raised:", error)

    try:
        pool.submit(os._exit, 7).result()
    except WorkerCrashed as error:
        print("crashed with exit code", error.details["exit_code"])

    # Limits are options of a view of the pool.
    limited = pool.options(timeout=0.5, memory_mb=512)
    try:
        limited.submit(time.sleep, 60).result()
    except Timeout as error:
        print("ended after", error.details["limit_s"], "s")

    # The result of a generator function is an iterator; items arrive as they are yielded.
    def countdown(start: int) -> Iterator[int]:
        yield from range(start, 0, -1)

    print("items:", list(pool.submit(countdown, 3).result()))
