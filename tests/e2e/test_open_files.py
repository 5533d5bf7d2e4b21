"""The server's limit of open files, and the limit that its calls get."""

from __future__ import annotations

import os
import resource
import subprocess
from pathlib import Path

import pytest
from e2e.server import FLASHPOOL, serving

SOFT = 300


@pytest.fixture
def soft_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (SOFT, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_server_raises_its_limit_and_calls_have_the_one_it_was_started_with(
    soft_limit: int, tmp_path: Path
) -> None:
    with serving(tmp_path, FLASHPOOL_SLOTS="2") as server:
        soft, _ = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        assert soft == min(soft_limit, 65536)
        code = "def f():\n    import resource\n    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]"
        assert server.execute(code)["json_result"] == SOFT


@pytest.mark.parametrize("front_end", [["lb"], ["qb", "--rp_serve_api"]])
def test_more_slots_than_the_hard_limit_allows_are_refused(
    front_end: list[str],
) -> None:
    variables = {"FLASHPOOL_SLOTS": "4096", "FLASHPOOL_PORT": "0", "FLASHPOOL_ADMIN_PORT": "0"}
    ended = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -n 4000; exec "$@"', "sh", FLASHPOOL, "serve", *front_end],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 2, ended.stderr
    assert "FLASHPOOL_SLOTS=4096 needs a limit of" in ended.stderr
    assert "the hard limit is 4000" in ended.stderr
