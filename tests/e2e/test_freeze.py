"""A server stopped for longer than its limits, alone or with all its processes."""

from __future__ import annotations

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from e2e.server import Server, request, serving, until

#: Longer than a call's limit, and than the watchdog waits for a zygote (`ANSWER_S`).
STOPPED_S = 14
LIMIT_S = 11
#: Runs until a file exists.
WAITS = """def f(path):
    import os, time
    while not os.path.exists(path):
        time.sleep(0.01)
    return "done\""""


def stop(server: Server, *, everything: bool) -> list[int]:
    found = [server.process.pid]
    if everything:
        found += [process.pid for process in server.tree()]
    for pid in found:
        os.kill(pid, signal.SIGSTOP)
    return found


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("everything", [False, True], ids=["server", "all"])
def test_a_server_that_was_stopped_continues_its_calls(everything: bool, tmp_path: Path) -> None:
    with (
        serving(
            tmp_path,
            FLASHPOOL_SLOTS="2",
            FLASHPOOL_QUEUE_TIMEOUT_S=str(LIMIT_S),
            FLASHPOOL_RECEIVE_TIMEOUT_S=str(LIMIT_S),
        ) as server,
        ThreadPoolExecutor(4) as threads,
    ):
        zygotes, gate = server.zygotes(), tmp_path / "gate"

        def send(_number: int) -> dict[str, Any]:
            body = request(WAITS, str(gate), timeout_s=LIMIT_S)
            return server.http.post("/execute", json=body).json()  # type: ignore[no-any-return]

        # Two run, two wait for them.
        calls = [threads.submit(send, number) for number in range(4)]
        until(lambda: server.stats()["queue"]["depth"] == 2)
        stopped = stop(server, everything=everything)
        time.sleep(STOPPED_S)
        gate.touch()
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)
        answers = [one.result(60) for one in calls]
        assert [one.get("json_result", one) for one in answers] == ["done"] * 4
        assert send(0)["json_result"] == "done"
        assert server.zygotes() == zygotes
        assert not re.search("WARNING|ERROR|Traceback", server.log()), server.log()
