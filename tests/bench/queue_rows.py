"""What a job of the queue costs inside the worker, beside the same call over /execute.

A queue of one job on loopback: it is handed to the worker's open poll, and the time is taken
from there to its complete report. Like an HTTP call's, that is one message in, one out.
"""

import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench import http_load
from bench.context import Bench
from bench.figures import Row, limited, percentile

JOBS = 200
WARM_UP = 50
START_S = 40.0
HANDLER = Path(__file__).resolve().parents[2] / "docker" / "handler.py"
_INPUT = http_load.NOOP.partition(b"\r\n\r\n")[2]
_TAKEN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Queue:
    """The parts of the platform that sequential jobs need, without a thread."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._open: dict[int, socket.socket] = {}
        self._parts: dict[int, bytes] = {}
        #: The connection whose job-take waits for a job.
        self._taker: socket.socket | None = None
        self._number = 0
        self._reports: list[bytes] = []

    def run(self, count: int) -> list[float]:
        """Run this many jobs in sequence; return the seconds of each."""
        return [self._job() for _ in range(count)]

    def _job(self) -> float:
        self._until(lambda: self._taker is not None)
        assert self._taker is not None
        taker, self._taker = self._taker, None
        self._number += 1
        job = b'{"id":"job-%d","input":%s}' % (self._number, _INPUT)
        self._reports.clear()
        began = time.perf_counter()
        taker.send(_TAKEN % (len(job), job))
        self._until(lambda: bool(self._reports))
        took = time.perf_counter() - began
        assert b'"success":true' in self._reports[0], self._reports[0][:1000]
        return took

    def _until(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + START_S
        while not holds():
            assert time.monotonic() < end, "the worker asks for nothing"
            for fd, _ in self._poll.poll(1.0):
                self._accept() if fd == self._listener.fileno() else self._read(self._open[fd])

    def _accept(self) -> None:
        one, _ = self._listener.accept()
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open[one.fileno()] = one
        self._parts[one.fileno()] = b""
        self._poll.register(one, select.EPOLLIN)

    def _read(self, one: socket.socket) -> None:
        data = one.recv(1 << 20)
        if not data:
            self._drop(one)
            return
        whole = self._parts[one.fileno()] = self._parts[one.fileno()] + data
        head, end, body = whole.partition(b"\r\n\r\n")
        at = head.lower().find(b"content-length: ")
        length = int(head[at + 16 :].split(b"\r", 1)[0]) if at > 0 else 0
        if not end or len(body) < length:
            return
        self._parts[one.fileno()] = b""
        if b"/job-take" in head:
            self._taker = one
        elif b"/job-done/" in head:
            self._reports.append(body)
            one.send(_OK)
        # Polls for stop requests wait for ever.

    def _drop(self, one: socket.socket) -> None:
        self._poll.unregister(one)
        del self._open[one.fileno()], self._parts[one.fileno()]
        if self._taker is one:
            self._taker = None
        one.close()

    def close(self) -> None:
        for one in list(self._open.values()):
            self._drop(one)
        self._poll.close()
        self._listener.close()


def overhead(bench: Bench) -> Row:
    """How much longer a job takes than a call beside it, by each round's median."""
    above: list[float] = []
    jobs: list[float] = []
    calls: list[float] = []
    address = bench.server.address
    queue = Queue()
    worker = _worker(queue.port, bench.folder)
    try:
        queue.run(WARM_UP)
        http_load.one_by_one(address, http_load.NOOP, 0.3)
        with http_load.connected(address, 1) as (one,):
            for _ in bench.turns("a job of the queue"):
                pairs = [_pair(queue, one, first=number % 2) for number in range(JOBS)]
                jobs.extend(job for job, _ in pairs)
                calls.extend(call for _, call in pairs)
                # Of neighbours in time: a machine that is slow for a moment slows both.
                above.append(statistics.median(job - call for job, call in pairs) * 1e3)
    finally:
        queue.close()
        worker.send_signal(signal.SIGTERM)
        try:
            worker.wait(START_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
    return limited(
        "a job of the queue, above the same call over /execute",
        "ms",
        above,
        at_most=1.0,
        detail={
            "job p50 ms": statistics.median(jobs) * 1e3,
            "call p50 ms": statistics.median(calls) * 1e3,
            "ratio": statistics.median(jobs) / statistics.median(calls),
            "job p99 ms": percentile(jobs, 0.99) * 1e3,
        },
    )


def _pair(queue: Queue, one: http_load.Connection, *, first: int) -> tuple[float, float]:
    """Run one job and one call; the order alternates."""
    if first:
        call = one.call(http_load.NOOP)
        return queue.run(1)[0], call
    job = queue.run(1)[0]
    return job, one.call(http_load.NOOP)


def _worker(port: int, folder: Path) -> "subprocess.Popen[bytes]":
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLASH", "RUNPOD"))}
    at = f"http://127.0.0.1:{port}/v2/bench"
    pod = {
        "RUNPOD_WEBHOOK_GET_JOB": f"{at}/job-take/$ID?gpu=none",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{at}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
        "FLASHPOOL_ADMIN_PORT": "0",
        "FLASHPOOL_DRAIN_S": "2",
        "FLASHPOOL_STATE_DIR": str(folder),
    }
    with (folder / "queue.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, HANDLER], env={**kept, **pod}, stdout=log, stderr=log, cwd=folder
        )
