"""A server that is short of descriptors or processes for a while: calls wait, and then succeed."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2e.server import Server, request, serving, until

from support.pids_group import PidsGroup, pids_group

PLAIN = "def f(n):\n    return n + 1"
#: A call with a new environment; uv runs for it, and cannot fork either.
WITH_PACKAGE = "def f(n):\n    import six\n    return n + 1"


@pytest.fixture
def group() -> Iterator[PidsGroup]:
    with pids_group() as group:
        yield group


@contextmanager
def clients(server: Server) -> Iterator[Any]:
    """Send requests from threads, over connections that are already open."""
    with ThreadPoolExecutor(8) as threads, httpx.Client(timeout=100, trust_env=False) as http:
        http.base_url = httpx.URL(server.url)
        list(threads.map(lambda _: http.get("/ping"), range(32)))

        def send(code: str, number: int, **fields: Any) -> Future[dict[str, Any]]:
            body = request(code, number, **fields)
            return threads.submit(lambda: http.post("/execute", json=body).json())

        yield send


def in_use(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def results(calls: list[Future[dict[str, Any]]]) -> list[Any]:
    return [one.result(100).get("json_result", one.result()) for one in calls]


def test_calls_survive_a_temporary_lack_of_processes(group: PidsGroup, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    with serving(tmp_path, FLASHPOOL_SLOTS="4", FLASHPOOL_LOCAL_DIR=cache) as server:
        group.take(server.process.pid)
        for process in server.tree():
            group.take(process.pid)
        with clients(server) as send:
            group.allow_no_more()
            # More calls than there are spares.
            calls = [send(PLAIN, i) for i in range(6)]
            calls.append(send(WITH_PACKAGE, 6, dependencies=["six"]))
            until(lambda: "short of processes" in server.log())
            until(lambda: server.stats()["shortages"])
            assert server.http.get("/ping").status_code == 200
            group.allow_all()
            assert results(calls) == list(range(1, 8))
        until(lambda: not server.stats()["shortages"])
        assert server.stats()["recent_failures"] == []
        assert "Traceback" not in server.log()


def test_calls_survive_a_temporary_lack_of_descriptors(tmp_path: Path) -> None:
    """Of the server and of its zygotes, again and again, with a zygote to be started meanwhile."""
    with serving(tmp_path, FLASHPOOL_SLOTS="4") as server, clients(server) as send:
        calls = []
        for turn in range(3):
            limits = {}
            for pid in (server.process.pid, *server.zygotes()):
                soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
                limits[pid] = soft, hard
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (in_use(pid), hard))
            calls += [send(PLAIN, i) for i in range(6)]
            if turn == 1:
                os.kill(server.zygotes()[0], 9)
                until(lambda: "is short of" in server.log())
            time.sleep(0.5)
            for pid, pair in limits.items():
                if os.path.exists(f"/proc/{pid}"):
                    resource.prlimit(pid, resource.RLIMIT_NOFILE, pair)
            done = [send(PLAIN, 10)]
            assert results(done) == [11]
        answers = [one.result(100) for one in calls]
        # Only calls that ran when their zygote was killed are lost.
        lost = [one for one in answers if not one["success"]]
        assert all("lost together with the zygote" in one["error"] for one in lost), lost
        assert len(lost) <= 4
        assert "Traceback" not in server.log()
