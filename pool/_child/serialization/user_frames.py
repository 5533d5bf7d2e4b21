"""Selects the user's frames from a traceback."""

from __future__ import annotations

import os
from types import TracebackType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE = os.path.dirname(os.path.dirname(__file__)) + "/"
_ASYNCIO = os.path.dirname(os.__file__) + "/asyncio/"


def user_traceback(traceback: TracebackType | None, limit: int) -> tuple[TracebackType | None, int]:
    """Return the user's part of a traceback, and the number of frames left out.

    flashpool's frames are removed everywhere, asyncio's only at the beginning. Of the others, the
    first and the last ``limit / 2`` stay.
    """
    kept = [entry for entry in _entries(traceback) if not _is_plumbing(entry)]
    first = 0
    while first < len(kept) and _filename(kept[first]).startswith(_ASYNCIO):
        first += 1
    kept = kept[first:]
    omitted = max(0, len(kept) - limit)
    if omitted:
        kept[limit // 2 : limit // 2 + omitted] = []
    return _chained(kept), omitted


def _entries(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _filename(entry: TracebackType) -> str:
    return entry.tb_frame.f_code.co_filename


def _is_plumbing(entry: TracebackType) -> bool:
    return _filename(entry).startswith((_HERE, "<frozen importlib", "<frozen runpy"))


def _chained(entries: list[TracebackType]) -> TracebackType | None:
    chain: TracebackType | None = None
    for entry in reversed(entries):
        chain = TracebackType(chain, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return chain


def depth_of(traceback: TracebackType | None) -> int:
    """Return the number of frames."""
    return sum(1 for _ in _entries(traceback))
