"""The process that accesses a volume for another process, which must not wait for it; see `apart`.

Each message has its length in front.

    stdin    (function, arguments, named, whether pieces follow), then the pieces, the last empty
    stdout   ("item", bytes, log) for each item of a generator; then
             ("result", value, log) or ("error", exception, log)
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Callable, Generator, Iterator
from typing import IO, Any

from flashpool.pool._child import processes

from .apart import LENGTH

__all__ = ["main"]


class _Kept(logging.Handler):
    """Keeps log records for the other process, which has the log."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append((record.name, record.levelno, self.format(record)))

    def taken(self) -> list[tuple[str, int, str]]:
        taken, self._records = self._records, []
        return taken


class _Answers:
    """Sends answers to the other process."""

    def __init__(self, to: IO[bytes], log: _Kept) -> None:
        self._to = to
        self._log = log

    def give(self, kind: str, value: object) -> None:
        try:
            data = pickle.dumps((kind, value, self._log.taken()))
        except Exception as error:  # noqa: BLE001 - pickling may raise anything
            data = pickle.dumps(("error", OSError(f"{value!r} cannot be sent: {error}"), []))
        self._to.write(LENGTH.pack(len(data)) + data)
        self._to.flush()


def main() -> None:
    """Serve requests until stdin ends."""
    # Requests may contain keys; other processes of this user must not read this process's memory.
    processes.set_dumpable(0)
    log = _Kept()
    logging.basicConfig(handlers=[log], level=logging.INFO, format="%(message)s")
    # Text that code writes to descriptor 1 by mistake must not be read as an answer.
    questions, answers = sys.stdin.buffer, _Answers(os.fdopen(os.dup(1), "wb"), log)
    os.dup2(2, 1)
    try:
        while True:
            question = pickle.loads(_message(questions))
            function, args, named, pieces = question
            _carry_out(answers, function, args, named, _pieces(questions) if pieces else None)
    except (EOFError, BrokenPipeError):
        pass
    # Exit without cleaning up: closing open files may hang.
    os._exit(0)


def _carry_out(
    answers: _Answers,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    named: dict[str, Any],
    pieces: Iterator[bytes] | None,
) -> None:
    try:
        value = function(*args, **named) if pieces is None else function(*args, pieces, **named)
        if isinstance(value, Generator):
            for item in value:
                answers.give("item", item)
            value = None
    except (BrokenPipeError, EOFError):
        raise
    except Exception as error:  # noqa: BLE001 - raised in the other process
        answer = ("error", error)
    else:
        answer = ("result", value)
    for _ in pieces or ():
        pass  # read pieces that the function left
    answers.give(*answer)


def _pieces(questions: IO[bytes]) -> Iterator[bytes]:
    while piece := _message(questions):
        yield piece


def _message(questions: IO[bytes]) -> bytes:
    head = questions.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    [length] = LENGTH.unpack(head)
    data = questions.read(length)
    if len(data) < length:
        raise EOFError
    return data
