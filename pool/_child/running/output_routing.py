"""Routes the output of overlapping calls, which share descriptors 1 and 2, to the right call.

    print, logging, warnings -> sys.stdout -> in the context of a call: OUTPUT n, ERRORS n
                                           -> in no call's context: descriptor 1

Tasks and `asyncio.to_thread` inherit a call's context. Threads started otherwise, child processes
and C code write to the descriptors, which counts as output of the oldest call.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar

from .. import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from .resident_link import ResidentLink

    class Written(Protocol):
        """The output of a call, or of a request of an app."""

        link: ResidentLink
        #: Whether output is discarded, because the call is over.
        closed: bool

        def write(self, data: bytes, kind: int) -> None: ...


#: Most bytes of an unfinished line that are kept back; most bytes of one frame.
_LINE_LIMIT = 8192
_FRAME_LIMIT = 256 * 1024

#: The receiver of output written in this context.
current: ContextVar[Written | None] = ContextVar("flashpool_call", default=None)


def begin(link: ResidentLink, number: int) -> CallOutput:
    """Make output that is written in this context, from now on, belong to this call."""
    written = CallOutput(link, number)
    current.set(written)
    return written


class CallOutput:
    """Output of one call, which is sent line by line. Several threads may write."""

    def __init__(self, link: ResidentLink, number: int) -> None:
        import threading

        self.link = link
        self.number = wire.NUMBER.pack(number)
        self.parts: list[bytes] = []
        self.size = 0
        #: The stream to which the parts were written.
        self.kind = wire.OUTPUT
        self.closed = False
        # Reentrant, because signal handlers print, too.
        self.lock = threading.RLock()

    def write(self, data: bytes, kind: int) -> None:
        with self.lock:
            if kind != self.kind:
                self.flush()
                self.kind = kind
            self.parts.append(data)
            self.size += len(data)
            if b"\n" in data or self.size > _LINE_LIMIT:
                self.flush()

    def flush(self) -> None:
        with self.lock:
            data, self.parts, self.size = b"".join(self.parts), [], 0
            for at in range(0, len(data), _FRAME_LIMIT):
                part = data[at : at + _FRAME_LIMIT]
                self.link.send_frame(self.kind, self.number, part, [])

    def close(self) -> None:
        """Send the unfinished line; discard later output of the call's tasks and threads."""
        self.flush()
        self.closed = True


def _writer() -> Written | None:
    """Return the receiver of output in the current context, if any."""
    written = current.get()
    if written is None or written.closed or written.link.forked:
        return None
    return written


class _Routed:
    """A standard stream: text goes to the call whose context is current, else to the descriptor."""

    def __init__(self, stream: Any, kind: int) -> None:
        self._stream = stream
        self._kind = kind
        buffer = getattr(stream, "buffer", None)
        if buffer is not None:
            self.buffer = _RoutedBuffer(buffer, kind)

    def write(self, text: str) -> int:
        """See `io.TextIOBase.write`."""
        written = _writer()
        if written is None or type(text) is not str:
            return int(self._stream.write(text))
        written.write(text.encode("utf-8", "backslashreplace"), self._kind)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """See `io.TextIOBase.writelines`."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """See `io.TextIOBase.flush`; a call's unfinished line still waits for its rest."""
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _RoutedBuffer:
    """The binary side of a standard stream."""

    def __init__(self, stream: Any, kind: int) -> None:
        self._stream = stream
        self._kind = kind

    def write(self, data: Any) -> int:
        """See `io.BufferedIOBase.write`."""
        written = _writer()
        if written is None:
            return int(self._stream.write(data))
        copy = bytes(memoryview(data))
        written.write(copy, self._kind)
        return len(copy)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def route() -> None:
    """Replace the standard streams by routed ones, also in handlers of `logging`."""
    if isinstance(sys.stdout, _Routed):
        return
    routed = {
        id(sys.stderr): _Routed(sys.stderr, wire.ERRORS),
        id(sys.stdout): _Routed(sys.stdout, wire.OUTPUT),
    }
    for handler in _handlers():
        stream = getattr(handler, "stream", None)
        if id(stream) in routed:
            handler.stream = routed[id(stream)]
    sys.stdout, sys.stderr = routed[id(sys.stdout)], routed[id(sys.stderr)]


def _handlers() -> list[Any]:
    """Return the handlers of `logging` that keep a stream; `lastResort` looks up `sys.stderr`."""
    logging = sys.modules.get("logging")
    references = getattr(logging, "_handlerList", ())
    found = [reference() for reference in references]
    return [one for one in found if one is not None and "stream" in vars(one)]
