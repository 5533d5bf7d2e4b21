"""The supervisor's ends of a worker's channel and output pipes. Never blocks."""

from __future__ import annotations

import fcntl
import os
import struct
import termios

# The C class: its wrapper in `socket` costs microseconds, and every call creates a socket.
from _socket import AF_UNIX, SHUT_RDWR, SOCK_STREAM, socket
from collections.abc import Iterator
from typing import Final

from flashpool.pool._child import framing, wire

from .output_buffer import OutputBuffer

#: Largest frame a worker may send; large buffers travel in descriptors.
RESULT_LIMIT: Final = 4 << 30
#: Bytes allowed for a pickled exception, beyond the limit of a result.
EXCEPTION_LIMIT: Final = 32 << 20
_INT: Final = struct.Struct("i")
#: Most bytes of frames, and of output, read from one worker before others get their turn.
_CHANNEL_TURN: Final = 1024 * 1024
_OUTPUT_TURN: Final = 256 * 1024
_OUTPUT_CHUNK: Final = 64 * 1024
#: Errors of writing to a channel whose other end is closed.
GONE: Final = (BrokenPipeError, ConnectionResetError)


class WorkerChannel:
    """Sends frames to a worker, and reads its frames and its output."""

    __slots__ = (
        "_ended",
        "_outputs_ended",
        "_sock",
        "channel_fd",
        "errors",
        "output",
        "output_limit",
        "outputs",
        "reader",
        "unread",
        "unsent",
    )

    def __init__(
        self, channel_fd: int, *output_fds: int, output_limit: int, body_limit: int
    ) -> None:
        """``output_fds``: pipes of the worker's output; the second, if any, is its stderr."""
        self._sock = socket(AF_UNIX, SOCK_STREAM, 0, channel_fd)
        self._sock.setblocking(False)
        for fd in output_fds:
            os.set_blocking(fd, False)
        self.channel_fd = channel_fd
        self.outputs = output_fds
        #: The pipe for stderr alone, if stdout has another.
        self.errors = output_fds[1] if len(output_fds) > 1 else None
        # Nothing follows the end of a stream: a later read need not ask the kernel.
        self._ended = False
        self._outputs_ended: tuple[int, ...] = ()
        #: Whether the worker is known to have exited without reading everything that was sent.
        self.unread = False
        #: None until the worker prints: most calls print nothing.
        self.output: OutputBuffer | None = None
        self.output_limit = output_limit
        self.reader = framing.FrameReader(body_limit)
        #: Data that waits to be sent; descriptors (own copies) go with the first byte of a part.
        self.unsent: list[tuple[memoryview, list[int]]] = []

    def send(self, kind: int, meta: bytes, body: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        """Send a frame, as far as the socket accepts it; `flush` sends the rest.

        Raises:
            OSError: no byte of the frame was sent. One of `GONE`: the worker has exited, which its
                zygote reports.
        """
        head = wire.head(kind, meta, len(body), len(fds))
        sent = 0
        if not self.unsent:
            try:
                rights = framing.rights(list(fds)) if fds else ()
                sent = self._sock.sendmsg([head, body], rights)
            except BlockingIOError:
                pass
            except GONE:
                self.unread = True
                raise
        if sent < len(head):
            copies = [] if sent else _copies(fds)
            self.unsent += [(memoryview(head)[sent:], copies), (memoryview(body), [])]
        elif sent - len(head) < len(body):
            self.unsent.append((memoryview(body)[sent - len(head) :], []))

    def hang_up(self) -> None:
        """Shut the channel down, which tells the worker that no call will come."""
        try:
            self._sock.shutdown(SHUT_RDWR)
        except OSError:
            pass  # the worker is gone already

    def flush(self) -> None:
        """Send data that waits, as much as the socket accepts."""
        while self.unsent:
            part, fds = self.unsent[0]
            try:
                sent = self._sock.sendmsg([part], framing.rights(fds))
            except BlockingIOError:
                return
            for fd in fds:
                os.close(fd)
            if sent < len(part):
                self.unsent[0] = part[sent:], []
                return
            self.unsent.pop(0)

    def read(self) -> list[wire.Frame] | None:
        """Return frames that have arrived; None at the end.

        Raises:
            BadFrame: code other than the runtime wrote to the channel.
        """
        size = 0
        while size < _CHANNEL_TURN and (arrived := self._receive()) is not None:
            size += len(arrived[0])
            frames = self.reader.feed(*arrived)
            if frames:
                return frames
        return None if self._ended else []

    def read_last(self) -> Iterator[wire.Frame]:
        """Yield the frames of a dead worker.

        Reads only the bytes that have arrived by now: a process that the worker left may write
        forever.

        Raises:
            BadFrame: as `read` does.
        """
        (left,) = _INT.unpack(fcntl.ioctl(self._sock, termios.FIONREAD, bytes(_INT.size)))
        # Once more at 0: behind the last byte the kernel reports how the other end was closed.
        while left >= 0 and (arrived := self._receive()) is not None:
            left -= len(arrived[0])
            yield from self.reader.feed(*arrived)

    def _receive(self) -> tuple[bytes, list[int]] | None:
        """Return bytes and descriptors; None if nothing has arrived, or at the end."""
        if self._ended:
            return None
        try:
            data, fds = framing.receive(self._sock)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            # The kernel reports a reset if the other end was closed with unread data.
            self.unread = True
            data, fds = b"", []
        if not data:
            self._ended = True
            return None
        return data, fds

    def output_ended(self, fd: int) -> bool:
        """Return whether nothing more comes from one of the outputs."""
        return fd in self._outputs_ended

    def read_output(self, fd: int) -> bytes | None:
        """Read and keep output from one pipe, at most `_OUTPUT_TURN` bytes; None at its end."""
        chunks: list[bytes] = []
        size = 0
        if fd in self._outputs_ended:
            return None
        while size < _OUTPUT_TURN:
            try:
                chunk = os.read(fd, _OUTPUT_CHUNK)
            except BlockingIOError:
                break
            if not chunk:
                self._outputs_ended += (fd,)
                return b"".join(chunks) or None
            if self.output is None:
                self.output = OutputBuffer(self.output_limit)
            self.output.append(chunk, stderr=fd == self.errors)
            chunks.append(chunk)
            size += len(chunk)
            if len(chunk) < _OUTPUT_CHUNK and size < _OUTPUT_TURN:
                break
        return b"".join(chunks)

    def close(self) -> None:
        """Close the channel and the outputs, and descriptors that no process will receive."""
        unused = self.reader.fds
        for _, fds in self.unsent:
            unused += fds
        for fd in unused:
            os.close(fd)
        self._sock.close()
        for fd in self.outputs:
            os.close(fd)


def _copies(fds: tuple[int, ...]) -> list[int]:
    """Duplicate all descriptors, or none."""
    copies: list[int] = []
    try:
        copies.extend(map(os.dup, fds))  # keeps the copies made before one that failed
    except OSError:
        for fd in copies:
            os.close(fd)
        raise
    return copies
