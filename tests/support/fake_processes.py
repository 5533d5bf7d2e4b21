"""Zygotes and workers without processes: their ends of every socket, played by a test.

    Supervisor <--real sockets and pipes--> FakeZygote.far, FakeWorker.far

A zygote obeys its commands, but what it has to tell goes to `Fleet.outbox`, from which the test
delivers it: in any order, late, twice or never.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
from typing import Any, Final

from flashpool.pool._child import framing, wire
from flashpool.pool.workers.zygote import ZygoteProcess

#: Above all pids of the kernel, so that a signal to one of these pids reaches no process.
_FIRST_PID: Final = 1 << 30
_KILLED, _TERMINATED = 9, 15


class FakeProcess:
    """Replaces `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.waited = False

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> int | None:
        assert self.returncode is not None, "it would block"
        self.waited = True
        return self.returncode


class FakeWorker:
    """A forked process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.near, self.far = socket.socketpair()
        self.far.setblocking(False)
        self.output, self.output_w = os.pipe()
        self.reader = framing.FrameReader(1 << 30)
        self.alive = True
        self.began = False
        #: Messages it has received and not yet handled.
        self.frames: list[wire.Frame] = []
        self.resident = False

    def send(self, kind: int, meta: bytes = b"", body: bytes = b"") -> None:
        with contextlib.suppress(OSError):
            self.far.send(wire.head(kind, meta, len(body), 0) + body)

    def print(self, text: bytes) -> None:
        if self.alive:
            with contextlib.suppress(BrokenPipeError):
                os.write(self.output_w, text)

    def look(self) -> bool:
        """Read messages; return whether the worker has to exit."""
        while self.alive:
            try:
                data, fds = framing.receive(self.far)
            except BlockingIOError:
                return False
            except OSError:
                return True
            if not data:
                return True
            self.frames += self.reader.feed(data, fds)
            self.resident = self.resident or any(one.kind == wire.LOAD for one in self.frames)
        return False

    def die(self) -> None:
        if self.alive:
            self.alive = False
            self.far.close()
            os.close(self.output_w)


class FakeZygote(ZygoteProcess):
    """A guard with its zygote."""

    fleet: Fleet

    def _launch(self, config: object) -> None:
        self.process = FakeProcess(next(self.fleet.pids))  # type: ignore[assignment]
        self.control, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.setblocking(False)
        self.far.setblocking(False)
        self.words_fd, self.words_w = os.pipe()
        os.set_blocking(self.words_fd, False)
        self.guard_fd, self.guard_w = os.pipe()
        self.control_fd = self.control.fileno()
        self.alive = True
        self.number = next(self.fleet.pids)
        self.workers: dict[int, FakeWorker] = {}
        self.fleet.zygotes.append(self)

    def kill(self, why: str, now: float, *, failed: bool = True) -> None:
        super().kill(why, now, failed=failed)
        self.exits(128 + _KILLED)

    def kill_with_guard(self) -> None:
        self.exits(-_KILLED)

    def exits(self, code: int) -> None:
        """The zygote is dead, with all its workers."""
        if not self.alive:
            return
        self.alive = False
        for worker in self.workers.values():
            worker.die()
        self.process.returncode = code
        self.far.close()
        os.close(self.words_w)
        os.close(self.guard_w)
        self.fleet.forget(self)

    def look(self) -> None:
        """Carry out the commands that arrived."""
        while self.alive:
            try:
                message, _ = framing.receive_packet(self.far)
            except BlockingIOError:
                break
            except (wire.Closed, OSError):
                self.exits(0)
                break
            assert isinstance(message, dict)
            self._obey(message)
        for worker in list(self.workers.values()):
            if worker.look():
                self.worker_dies(worker, 0)

    def _obey(self, message: dict[str, Any]) -> None:
        op, worker = message["op"], self.workers.get(message.get("worker", 0))
        if op == wire.START:
            fields = {"pid": self.number, "modules": 1, "python": "3", "preloaded": False}
            self.tell(wire.READY, **fields, memory_tricks=[])
        elif op == wire.FORK:
            self._fork(message["n"])
        elif op == wire.PING:
            self.tell(wire.PONG)
        elif op == wire.LEAVE:
            self.exits(0)
        elif op == wire.DROP and worker is not None and not worker.began:
            self.tell(wire.DROPPING, worker=worker.pid)
            self.worker_dies(worker, _KILLED)
        elif op == wire.STOP and worker is not None:
            self.worker_dies(worker, _TERMINATED)

    def _fork(self, number: int) -> None:
        made = [FakeWorker(next(self.fleet.pids)) for _ in range(number)]
        self.workers.update((one.pid, one) for one in made)
        ends = [end for one in made for end in (one.near.detach(), one.output)]
        data = {"op": wire.SPARES, "workers": [one.pid for one in made], "ready": True}
        self.fleet.outbox.append((self, json.dumps(data).encode(), ends))

    def worker_dies(self, worker: FakeWorker, status: int, orphans: int = 0) -> None:
        if worker.alive:
            worker.die()
            death = wire.Exited(worker.pid, status, worker.began, orphans, 1000)
            self.fleet.outbox.append((self, death.pack(), []))
            if orphans:
                self.tell(wire.GONE, worker=worker.pid)

    def tell(self, op: str, **fields: object) -> None:
        """Queue a message for later delivery."""
        self.fleet.outbox.append((self, json.dumps({"op": op, **fields}).encode(), []))


class Fleet:
    """All fake zygotes and their workers."""

    def __init__(self) -> None:
        self.pids = itertools.count(_FIRST_PID)
        self.zygotes: list[FakeZygote] = []
        #: Messages that are not yet delivered.
        self.outbox: list[tuple[FakeZygote, bytes, list[int]]] = []
        # Each fleet makes a class of its own, through which its zygotes find the fleet.
        self.kind = type("FakeZygoteOfFleet", (FakeZygote,), {"fleet": self})

    def look(self) -> None:
        """Let all processes carry out their commands."""
        for zygote in list(self.zygotes):
            if zygote.alive:
                zygote.look()

    def deliver(self, at: int = 0, *, again: bool = False) -> None:
        """Deliver one message; ``again``: keep it for another delivery."""
        zygote, data, fds = self.outbox[at] if again else self.outbox.pop(at)
        with contextlib.suppress(BlockingIOError):
            zygote.far.sendmsg([data], framing.rights(fds) if fds else [])
        if not again:
            _close(fds)

    def drop(self, at: int) -> None:
        """Drop one message."""
        _, _, fds = self.outbox.pop(at)
        _close(fds)

    def forget(self, zygote: FakeZygote) -> None:
        """Drop all messages of this process."""
        for _, _, fds in [one for one in self.outbox if one[0] is zygote]:
            _close(fds)
        self.outbox = [one for one in self.outbox if one[0] is not zygote]

    def workers(self) -> list[tuple[FakeZygote, FakeWorker]]:
        """The workers that are alive."""
        return [
            (zygote, worker)
            for zygote in self.zygotes
            if zygote.alive
            for worker in zygote.workers.values()
            if worker.alive
        ]


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
