"""Functions that a stand-in process calls in tests."""

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from flashpool.envs.store.apart import carried_out


@carried_out
def where(path: Path, *, fails: BaseException | None = None) -> int:
    """Return the pid of the process that calls this."""
    logging.getLogger("volume").warning("it is %s", path.name)
    if fails is not None:
        raise fails
    return os.getpid()


def who(_path: Path) -> Iterator[bytes]:
    """Send the pid as a stream."""
    yield b""
    yield str(os.getpid()).encode()


def refuse(_path: Path, pieces: Iterable[bytes]) -> None:
    """Read one piece, then fail."""
    next(iter(pieces))
    raise OSError("no more")
