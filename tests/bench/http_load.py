"""A load generator that costs little: one thread, raw sockets, bytes prepared before.

It reads no more of an answer than it needs to know where it ends and that it is a success.
Connections are kept alive and reused.
"""

import contextlib
import json
import math
import resource
import select
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.figures import percentile

Address = tuple[str, int]

PING = b"GET /ping HTTP/1.1\r\nHost: bench\r\n\r\n"
#: Seconds after which an unanswered call has failed.
ANSWER_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The result of a load. ``cpu_s`` is the generator's own CPU time."""

    latencies: list[float]
    elapsed_s: float
    cpu_s: float

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.elapsed_s


def told(loads: list[Load]) -> dict[str, float]:
    """What a row says of its loads."""
    latencies = [latency for load in loads for latency in load.latencies]
    return {
        "calls": len(latencies),
        "p50 ms": statistics.median(latencies) * 1e3,
        "p99 ms": percentile(latencies, 0.99) * 1e3,
        "load generator's cores": statistics.median(load.cpu_s / load.elapsed_s for load in loads),
    }


def request(code: str, **fields: object) -> bytes:
    """POST /execute of the function that the code begins with, as the flash client sends it."""
    name = code.split("(", 1)[0].removeprefix("def ")
    body = json.dumps(
        {
            "function_name": name,
            "function_code": code,
            "dependencies": [],
            "system_dependencies": [],
            "accelerate_downloads": True,
            "modules": {},
            **fields,
        },
        separators=(",", ":"),
    ).encode()
    head = (
        "POST /execute HTTP/1.1\r\nHost: bench\r\nAccept: */*\r\n"
        "Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
        "User-Agent: bench\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


NOOP = request("def noop():\n    return None\n")


class Connection:
    """One connection, one request at a time."""

    def __init__(self, address: Address) -> None:
        self.sock = socket.create_connection(address, timeout=ANSWER_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answer = b""
        self.sent_at = 0.0

    def send(self, data: bytes) -> None:
        self.answer = b""
        self.sent_at = time.perf_counter()
        self.sock.sendall(data)

    def receive(self) -> bool:
        """Read available bytes; return whether the answer is complete."""
        data = self.sock.recv(65536)
        assert data, "the server closed the connection"
        self.answer = answer = self.answer + data if self.answer else data
        head = answer.find(b"\r\n\r\n")
        if head < 0:
            return False
        at = answer.find(b"content-length: ", 0, head)
        length = int(answer[at + 16 : answer.index(b"\r", at)]) if at > 0 else 0
        return len(answer) >= head + 4 + length

    def call(self, data: bytes) -> float:
        """Send a request; return the seconds until the answer was complete."""
        self.send(data)
        while not self.receive():
            pass
        return time.perf_counter() - self.sent_at

    def check(self) -> None:
        """Check that the answer is a call's result."""
        assert self.answer.startswith(b"HTTP/1.1 200"), self.answer[:600]
        assert b'"success":true' in self.answer, self.answer[:1500]

    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.answer.partition(b"\r\n\r\n")[2])
        return found

    def close(self) -> None:
        self.sock.close()


@contextlib.contextmanager
def connected(address: Address, count: int) -> Iterator[list[Connection]]:
    found: list[Connection] = []
    try:
        found += (Connection(address) for _ in range(count))
        yield found
    finally:
        for one in found:
            one.close()


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def saturate(
    address: Address,
    data: bytes,
    connections: int,
    seconds: float = math.inf,
    calls: int = sys.maxsize,
) -> Load:
    """Every connection sends its next request when it has its answer; for so long, or so many
    requests, at least one a connection.
    """
    latencies: list[float] = []
    with connected(address, connections) as found, contextlib.closing(select.epoll()) as epoll:
        by_fd = {one.sock.fileno(): one for one in found}
        for fd in by_fd:
            epoll.register(fd, select.EPOLLIN)
        used, began = cpu(), time.perf_counter()
        for one in found:
            one.send(data)
        busy, now = connections, began
        while busy:
            events = epoll.poll(ANSWER_S)
            assert events, "no answer"
            for fd, _ in events:
                one = by_fd[fd]
                if not one.receive():
                    continue
                now = time.perf_counter()
                one.check()
                latencies.append(now - one.sent_at)
                if now - began < seconds and len(latencies) + busy <= calls:
                    one.send(data)
                else:
                    busy -= 1
        return Load(latencies=latencies, elapsed_s=now - began, cpu_s=cpu() - used)


def one_by_one(
    address: Address,
    data: bytes,
    seconds: float = math.inf,
    calls: int = sys.maxsize,
    warm_up: int = 10,
) -> Load:
    """One connection, one request after the other; for so long, or so many of them."""
    latencies: list[float] = []
    with connected(address, 1) as (one,):
        for _ in range(warm_up):
            one.call(data)
        used, began = cpu(), time.perf_counter()
        while time.perf_counter() - began < seconds and len(latencies) < calls:
            latencies.append(one.call(data))
            one.check()
        elapsed = time.perf_counter() - began
    return Load(latencies=latencies, elapsed_s=elapsed, cpu_s=cpu() - used)


def paced(
    address: Address, data: bytes, per_second: float, seconds: float, connections: int = 8
) -> Load:
    """Requests at a steady rate, each on a free connection: one that is slow holds up none.

    Raises:
        AssertionError: all connections wait for answers.
    """
    latencies: list[float] = []
    with connected(address, connections) as free, contextlib.closing(select.epoll()) as epoll:
        by_fd = {one.sock.fileno(): one for one in free}
        idle = list(free)
        for fd in by_fd:
            epoll.register(fd, select.EPOLLIN)
        used, began = cpu(), time.perf_counter()
        number, total = 0, int(per_second * seconds)
        while number < total or len(idle) < connections:
            due = began + number / per_second
            wait = max(0.0, due - time.perf_counter()) if number < total else ANSWER_S
            for fd, _ in epoll.poll(wait):
                if by_fd[fd].receive():
                    latencies.append(time.perf_counter() - by_fd[fd].sent_at)
                    assert by_fd[fd].answer.startswith(b"HTTP/1.1 200"), by_fd[fd].answer[:300]
                    idle.append(by_fd[fd])
            if number < total and time.perf_counter() >= due:
                assert idle, f"{connections} requests wait for their answers"
                idle.pop().send(data)
                number += 1
        elapsed = time.perf_counter() - began
    return Load(latencies=latencies, elapsed_s=elapsed, cpu_s=cpu() - used)
