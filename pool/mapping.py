"""`Pool.map`: arguments into chunks, futures into results, in order.

arguments --chunks--> futures --(all at once, or a window ahead)--> results
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from typing import Any


def check_sizes(chunksize: int, buffersize: int | None) -> None:
    """Raise ValueError (TypeError for what is no number) unless both are at least 1."""
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1")
    if buffersize is None:
        return
    if not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize < 1:
        raise ValueError("buffersize must be None or > 0")


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The items in lists of ``size``; the last one may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def results(
    futures: Iterator[Future[Any]], buffersize: int | None, timeout: float | None, *, chunked: bool
) -> Iterator[Any]:
    """Submit (now, not at the first ``next``), and return the iterator of results."""
    deadline = None if timeout is None else time.monotonic() + timeout
    waiting: deque[Future[Any]] = deque()
    try:
        waiting.extend(islice(futures, buffersize))
    except BaseException:
        _cancel(waiting)
        raise
    rest = futures if buffersize is not None else iter(())
    one_by_one = _in_order(waiting, rest, deadline)
    return _flat(one_by_one) if chunked else one_by_one


def _in_order(
    waiting: deque[Future[Any]], rest: Iterator[Future[Any]], deadline: float | None
) -> Iterator[Any]:
    try:
        while waiting:
            waiting.extend(islice(rest, 1))
            # No name for the future nor for its result: whoever gets it has the only one.
            yield _result(waiting, deadline)
    finally:
        _cancel(waiting)


def _result(waiting: deque[Future[Any]], deadline: float | None) -> Any:
    future = waiting[0]
    try:
        value = future.result(None if deadline is None else deadline - time.monotonic())
        waiting.popleft()
        return value
    finally:
        # An exception's traceback holds this frame.
        del future


def _flat(chunks: Iterator[list[Any]]) -> Iterator[Any]:
    try:
        for chunk in chunks:
            chunk.reverse()
            while chunk:
                yield chunk.pop()
    finally:
        chunks.close()  # type: ignore[attr-defined]


def _cancel(futures: Iterable[Future[Any]]) -> None:
    for future in futures:
        future.cancel()
