"""A call whose processes nest more than a thousand deep, over HTTP: its limit, and the server's death."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from e2e.server import Server, serving, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

DEPTH: Final = 1100
LIMIT_S: Final = 15
#: Forks itself; each process marks its group, and the last one says that all are there.
NEST: Final = """
def nest(depth, marker):
    import os, time
    os.setpgid(0, 0)
    with open(marker, "w") as file:
        file.write(str(os.getsid(0)))
    for _ in range(depth):
        if os.fork():
            break
    else:
        os.rename(marker, marker + ".complete")
    time.sleep(600)
"""
ECHO: Final = "def echo(token):\n    import time\n    time.sleep(0.05)\n    return token"


def in_session(session: int) -> list[int]:
    """A worker and all that it forked: each worker begins a session."""
    found = []
    for one in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getsid(int(one)) == session:
                found.append(int(one))
        except ProcessLookupError:
            pass
    return found


def deep(server: Server, marker: Path) -> dict[str, Any]:
    return server.execute(NEST, DEPTH, str(marker), timeout_s=LIMIT_S)


def session_of(marker: Path) -> int:
    complete = marker.with_name(f"{marker.name}.complete")
    until(complete.exists, 60)
    return int(complete.read_text())


def test_it_ends_at_its_limit_and_its_neighbours_have_their_results(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with (
        serving(tmp_path, FLASHPOOL_SLOTS="3", FLASHPOOL_GRACE_S="1") as server,
        ThreadPoolExecutor(1) as threads,
    ):
        call, number = threads.submit(deep, server, marker), 0
        while not call.done():
            number += 1
            answer = server.execute(ECHO, number, memory_mb=512)
            assert answer["json_result"] == number, answer
        assert call.result()["error_type"] == "Timeout"
        assert number > 10
        session = session_of(marker)
        until(lambda: not in_session(session))
        assert server.stats()["supervisor"]["callback_errors"] == 0
        assert "Traceback" not in server.log()
        assert server.stop() == 0


def test_nothing_of_it_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with (
        serving(tmp_path, FLASHPOOL_SLOTS="3") as server,
        ThreadPoolExecutor(1) as threads,
    ):
        call = threads.submit(deep, server, marker)
        session = session_of(marker)
        assert len(in_session(session)) > DEPTH
        tree = [process.pid for process in server.tree()]
        server.process.send_signal(signal.SIGKILL)
        assert call.exception(60) is not None
        until(lambda: not in_session(session))
        until(lambda: not [pid for pid in tree if os.path.exists(f"/proc/{pid}")])
