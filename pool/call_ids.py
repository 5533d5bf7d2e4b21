"""The ids of calls: a number inside this process, a name outside.

    17            `Receipt.call_id`, `CallFuture.call_id`: unique in this process
    3f9a2c1b-17   the same call to clients, in logs and on volumes: unique among all processes

A caller may bring a name of its own (``Call.request_id``): a job's id, or a header
``X-Request-Id``. Look-ups of calls accept all of them.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
from typing import Final

#: Draw with `next`; no two threads draw the same one.
numbers: Final = itertools.count(1)
#: Prefix of the names of this process's calls.
prefix = secrets.token_hex(4)
#: A name that a caller may give: it appears in headers, paths and lines of logs.
GIVEN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+/=@~-]{0,127}")
GIVEN_BYTES: Final = re.compile(GIVEN.pattern.encode())


def _after_fork() -> None:
    global prefix  # noqa: PLW0603 - a fork is another process
    prefix = secrets.token_hex(4)


os.register_at_fork(after_in_child=_after_fork)


def name_of(number: int) -> str:
    """Return the name of a call of this process."""
    return f"{prefix}-{number}"


def name_bytes(number: int) -> bytes:
    """Return the name as bytes, for a header."""
    return b"%s-%d" % (prefix.encode(), number)


def number_of(text: str) -> int | None:
    """Return the number for an id that is a number or a name of this process, else None."""
    head, dash, tail = text.rpartition("-")
    if dash and head != prefix:
        return None
    return int(tail) if tail.isascii() and tail.isdigit() and len(tail) <= 18 else None
