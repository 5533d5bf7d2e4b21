"""Every process of the pool but the server is killed or stopped at random, under load.

Each call ends with its own answer or an error of its own, and soon after the storm all succeed.
"""

import contextlib
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from e2e.server import Server, request, serving, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONNECTIONS = 16
#: How many times longer than on an idle machine each step may take.
SLACK = 4
FUNCTIONS = [
    "def echo(token): return token",
    "def nap(token):\n    import time; time.sleep(0.1); return token",
    "def learn(token):\n    import decimal, statistics; return token",
    "def start(token):\n    import subprocess; subprocess.run(['true'], check=True); return token",
]
KEEPER = "class Keeper:\n    def echo(self, token): return token"
#: Errors that a call may get when its process is killed or stopped.
ENDS = {"WorkerCrashed", "Timeout", "ResidentLost", "InstanceLost", "EnvironmentStartFailed"}


@dataclass
class Seen:
    """The answers that the clients got."""

    good: int = 0
    #: When calls failed, and how.
    failed: list[tuple[float, str]] = field(default_factory=list)
    #: Answers that must not occur.
    wrong: list[Any] = field(default_factory=list)
    #: For each connection, successful calls since its last failure.
    in_a_row: list[int] = field(default_factory=lambda: [0] * CONNECTIONS)


@pytest.mark.parametrize(
    ("numbers", "storm_s", "recovers_s", "short"),
    [
        ([signal.SIGKILL], 30.0, 5.0, False),
        ([signal.SIGKILL, signal.SIGSTOP], 60.0, 12.0, False),
        ([signal.SIGKILL, signal.SIGSTOP], 60.0, 12.0, True),
    ],
    ids=["killed", "killed-and-stopped", "killed-and-stopped-and-short-of-descriptors"],
)
def test_calls_survive_random_kills_and_stops(
    tmp_path: Path,
    numbers: list[signal.Signals],
    storm_s: float,
    recovers_s: float,
    short: bool,
) -> None:
    seen, over = Seen(), threading.Event()
    times = {"FLASHPOOL_GRACE_S": "0.5", "FLASHPOOL_SLOTS": "4"}
    with serving(tmp_path, **times) as server:
        clients = [
            threading.Thread(target=_ask, args=(server, at, seen, over))
            for at in range(CONNECTIONS)
        ]
        for client in clients:
            client.start()
        try:
            with _too_few_descriptors(server) if short else contextlib.nullcontext():
                _strike(server, numbers, storm_s)
            ended = time.monotonic()
            seen.in_a_row = [0] * CONNECTIONS
            until(lambda: min(seen.in_a_row) >= 5, SLACK * recovers_s)
        finally:
            over.set()
            for client in clients:
                client.join()
        assert seen.wrong == []
        assert seen.good
        late = [(round(at - ended, 1), how) for at, how in seen.failed if at > ended]
        print(f"{seen.good} good, {len(seen.failed)} failed, after the end: {late}")
        assert not [one for one in late if one[0] > SLACK * recovers_s]
        stats = server.stats()
        assert stats["supervisor"]["callback_errors"] == 0, stats["supervisor"]
        assert "Traceback" not in server.log()
        assert server.stop() == 0


@contextlib.contextmanager
def _too_few_descriptors(server: Server) -> Iterator[None]:
    """For a second of every two, the server cannot open further files."""
    pid, over = server.process.pid, threading.Event()
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)

    def squeeze() -> None:
        while not over.wait(1):
            in_use = len(os.listdir(f"/proc/{pid}/fd"))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (in_use, before[1]))
            over.wait(1)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    thread = threading.Thread(target=squeeze)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _strike(server: Server, numbers: list[signal.Signals], storm_s: float) -> None:
    rng = random.Random(7)
    stop_at = time.monotonic() + storm_s
    while time.monotonic() < stop_at:
        time.sleep(rng.uniform(0.05, 0.3))
        if tree := server.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(tree).send_signal(rng.choice(numbers))


def _ask(server: Server, at: int, seen: Seen, over: threading.Event) -> None:
    rng, number = random.Random(at), 0
    with httpx.Client(base_url=server.url, trust_env=False, timeout=90) as http:
        while not over.is_set():
            number += 1
            token = f"{at}-{number}"
            answer = http.post("/execute", json=_request(rng, token))
            found = answer.json()
            if answer.status_code != 200:
                seen.wrong.append((answer.status_code, found))
            elif found["success"]:
                seen.good += 1
                seen.in_a_row[at] += 1
                if found["json_result"] != token:
                    seen.wrong.append((token, found))
            else:
                seen.in_a_row[at] = 0
                seen.failed.append((time.monotonic(), found["error_type"]))
                if found["error_type"] not in ENDS or "internal" in found.get("details", {}):
                    seen.wrong.append(found)


def _request(rng: random.Random, token: str) -> dict[str, Any]:
    if rng.random() < 0.8:
        return request(rng.choice(FUNCTIONS), token, timeout_s=5)
    return {
        "execution_type": "class",
        "class_name": "Keeper",
        "class_code": KEEPER,
        "method_name": "echo",
        "args": [token],
        "instance_id": rng.choice("abc"),
        "serialization_format": "json",
        "timeout_s": 5,
    }
