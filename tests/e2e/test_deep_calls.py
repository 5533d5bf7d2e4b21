"""A call whose processes nest more than a thousand deep, over HTTP: its limit, and the server's death."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from e2e.server import Server, alive, serving, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

DEPTH: Final = 1100
#: The limits to try: the first within which a thousand processes start counts.
LIMITS_S: Final = (15, 30, 60)
#: A script that starts itself, each hundredth time in another session; the last one says that all are
#: there. It starts programs: the kernel takes minutes for as many forks of a Python.
SCRIPT: Final = """
if [ "$1" -gt 0 ]; then
    if [ $(($1 % 100)) = 0 ]; then setsid sh "$0" $(($1 - 1)); else sh "$0" $(($1 - 1)); fi
else
    : > "$0.complete"
    sleep 600
fi
exit 0
"""
NEST: Final = """
def nest(script, depth):
    import os, subprocess
    subprocess.run(["sh", script, str(depth)], env={**os.environ, "NESTED_SCRIPT": script})
"""
ECHO: Final = "def echo(token):\n    import time\n    time.sleep(0.05)\n    return token"


class Tree:
    """The processes of one such call."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "nest.sh"
        self.script.write_text(SCRIPT)

    def begin(self, server: Server, limit_s: float) -> dict[str, Any]:
        return server.execute(NEST, str(self.script), DEPTH, timeout_s=limit_s)

    def is_complete(self) -> bool:
        return Path(f"{self.script}.complete").exists()

    def alive(self) -> list[int]:
        """The processes below the worker: each has a variable that names the script."""
        return [int(one) for one in filter(str.isdigit, os.listdir("/proc")) if self._has(one)]

    def _has(self, pid: str) -> bool:
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return f"NESTED_SCRIPT={self.script}".encode() in variables.split(b"\0")


def test_a_deep_call_ends_at_its_limit_and_others_get_their_results(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    with (
        serving(tmp_path, FLASHPOOL_SLOTS="3", FLASHPOOL_GRACE_S="1") as server,
        ThreadPoolExecutor(1) as threads,
    ):
        for limit_s in LIMITS_S:
            call, number = threads.submit(tree.begin, server, limit_s), 0
            while not call.done():
                number += 1
                answer = server.execute(ECHO, number, memory_mb=512)
                assert answer["json_result"] == number, answer
            assert call.result()["error_type"] == "Timeout"
            assert number > 10
            if tree.is_complete():
                break
        assert tree.is_complete()
        until(lambda: not tree.alive())
        assert server.stats()["supervisor"]["callback_errors"] == 0
        assert "Traceback" not in server.log()
        assert server.stop() == 0


def test_no_process_of_a_deep_call_outlives_a_killed_server(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    with (
        serving(tmp_path, FLASHPOOL_SLOTS="3") as server,
        ThreadPoolExecutor(1) as threads,
    ):
        call = threads.submit(tree.begin, server, 2 * LIMITS_S[-1])
        until(tree.is_complete, LIMITS_S[-1])
        assert len(tree.alive()) > DEPTH
        own = server.tree()
        server.process.send_signal(signal.SIGKILL)
        assert call.exception(60) is not None
        until(lambda: not tree.alive())
        until(lambda: not alive(own))
