"""Runs operations on a volume that may hang in another process, which can be abandoned.

    @carried_out                                  here                          the stand-in
    def status(path): ...     status(path) --(function, arguments)--> stdin --> calls it
                                           <--(result | exception, log)-- stdout --'
    sending, receiving        the same, with a stream of bytes in one direction

A thread that waits for a file system in user space cannot be stopped, and neither can its process:
the server could not exit until the volume answers. A process that starts another one while it has a
file of such a volume open waits for the volume, too. So this process neither opens nor reads
anything there. A function that is `carried_out` takes paths, or objects with a path; if any of
these paths is on such a volume (`keep_apart`), a stand-in process calls the function, and the
thread here waits for a pipe.

A stand-in serves one thread at a time. A few idle ones are kept. Stand-ins exit when their stdin
ends, for example when this process dies; those that hang exit when the volume answers.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import IO, Any, Final, ParamSpec, TypeVar, cast

__all__ = [
    "LENGTH",
    "carried_out",
    "end_idle_stand_ins",
    "is_apart",
    "keep_apart",
    "receiving",
    "sending",
]

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)

#: The length in front of each message.
LENGTH: Final = struct.Struct("<Q")
#: Most idle stand-ins that are kept; each takes about 14 MB.
_IDLE: Final = 2
_BLOCK: Final = 1 << 20
#: How long a stand-in may take to exit, unless it hangs.
_EXIT_S: Final = 1.0
_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from flashpool.envs.store.apart_program import main; main()"
)

_lock = threading.Lock()
_roots: frozenset[str] = frozenset()
_idle: list[_StandIn] = []


def keep_apart(root: Path) -> None:
    """Access this directory, and everything below it, only through stand-ins from now on."""
    global _roots  # noqa: PLW0603 - one set for the process, like its threads
    with _lock:
        _roots |= {str(root)}


def is_apart(path: Path) -> bool:
    """Return whether a path must be accessed by another process."""
    text = str(path)
    return any(text == root or text.startswith(f"{root}/") for root in _roots)


def carried_out(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function or method run in a stand-in if a path in its arguments is apart.

    Arguments, result and exception are pickled on the way.
    """

    @wraps(function)
    def wherever(*args: P.args, **named: P.kwargs) -> T:
        if not _roots or not any(_lies_apart(one) for one in args):
            return function(*args, **named)
        with _borrowed() as stand_in:
            stand_in.ask(wherever, args, named)
            return cast("T", stand_in.answer())

    return wherever


def _lies_apart(argument: object) -> bool:
    if isinstance(argument, Path):
        return is_apart(argument)
    path = getattr(argument, "path", None) or getattr(argument, "root", None)
    return isinstance(path, Path) and is_apart(path)


@contextmanager
def receiving(function: Callable[..., Iterator[bytes]], *args: object) -> Iterator[IO[bytes]]:
    """Stream what a generator yields in a stand-in; its first item only reports success."""
    with _borrowed() as stand_in:
        stand_in.ask(function, args, {})
        stand_in.item()
        yield io.BufferedReader(_Items(stand_in), _BLOCK)


@contextmanager
def sending(function: Callable[[Path, Iterable[bytes]], None], path: Path) -> Iterator[IO[bytes]]:
    """Stream into a function in a stand-in; the function has returned at the block's end."""
    with _borrowed() as stand_in:
        stand_in.ask(function, (path,), {}, pieces=True)
        yield cast("IO[bytes]", _Pieces(stand_in))
        stand_in.send(b"")
        stand_in.answer()


class _StandIn:
    """A process that calls functions for one thread at a time."""

    def __init__(self) -> None:
        path = [entry for entry in sys.path if entry]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LC_ALL": "C.UTF-8"},
            cwd="/",
            # Unbuffered: a buffered stream holds a lock while it waits, and an exit would wait for
            # the lock.
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        #: Whether the stand-in waits for a request, and not for the rest of a request.
        self.idle = True

    def __repr__(self) -> str:
        return f"<StandIn {self._process.pid} {'idle' if self.idle else 'at work'}>"

    def ask(
        self,
        function: Callable[..., object],
        args: tuple[object, ...],
        named: dict[str, Any],
        *,
        pieces: bool = False,
    ) -> None:
        self.idle = False
        self.send(pickle.dumps((function, args, named, pieces)))

    def send(self, message: bytes | memoryview) -> None:
        """Send a request, or one more piece; an empty piece is the last."""
        try:
            for part in (LENGTH.pack(len(message)), message):
                rest = memoryview(part)
                while rest:
                    rest = rest[self._to.write(rest) :]
        except OSError as error:
            raise self._gone() from error

    def item(self) -> bytes | None:
        """Return the next item of a generator; None at its end."""
        kind, value = self._next()
        return value if kind == "item" else None

    def answer(self) -> object:
        while (told := self._next())[0] == "item":
            pass
        return told[1]

    def _next(self) -> tuple[str, Any]:
        try:
            [length] = LENGTH.unpack(self._exactly(LENGTH.size))
            kind, value, logged = pickle.loads(self._exactly(length))
        except OSError as error:
            raise self._gone() from error
        for name, level, text in logged:
            logging.getLogger(name).log(level, "%s", text)
        self.idle = kind != "item"
        if kind == "error":
            raise value
        return kind, value

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            count = self._from.readinto(rest)  # type: ignore[attr-defined]  # of a raw stream
            if not count:
                raise self._gone()
            rest = rest[count:]
        return data

    def _gone(self) -> OSError:
        return OSError(errno.EIO, f"the process that looks at the volume exited ({self!r})")

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """Stop the stand-in: an idle one exits, a busy one is killed."""
        if not self.idle:
            self._process.kill()
        for pipe in (self._to, self._from):
            try:
                pipe.close()
            except OSError:
                pass  # it had not read everything
        try:
            self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _log.info("process %d waits for a volume that hangs", self._process.pid)
            self._process.returncode = -9  # keeps `subprocess` from waiting for it


class _Items(io.RawIOBase):
    """The items of a stand-in's generator, as a stream."""

    def __init__(self, stand_in: _StandIn) -> None:
        self._stand_in = stand_in
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            if self._stand_in.idle or (item := self._stand_in.item()) is None:
                return 0
            self._rest = memoryview(item)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


class _Pieces(io.RawIOBase):
    """A stream whose data go to a stand-in."""

    def __init__(self, stand_in: _StandIn) -> None:
        self._stand_in = stand_in

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        for start in range(0, len(view), _BLOCK):
            self._stand_in.send(view[start : start + _BLOCK])
        return len(view)


@contextmanager
def _borrowed() -> Iterator[_StandIn]:
    stand_in = _idle_one() or _StandIn()
    try:
        yield stand_in
    finally:
        with _lock:
            kept = stand_in.idle and len(_idle) < _IDLE
            if kept:
                _idle.append(stand_in)
        if not kept:
            stand_in.end()


def _idle_one() -> _StandIn | None:
    """Return an idle stand-in, skipping those that were killed meanwhile."""
    while True:
        with _lock:
            if not _idle:
                return None
            stand_in = _idle.pop()
        if stand_in.lives:
            return stand_in
        stand_in.end()


def end_idle_stand_ins() -> None:
    """Stop all idle stand-ins; blocking, for at most a second."""
    with _lock:
        ended, _idle[:] = list(_idle), []
    for stand_in in ended:
        stand_in.end()
