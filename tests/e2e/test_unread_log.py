"""A server whose log nobody reads."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from e2e.server import FLASHPOOL, request, until

CRASH = "def f():\n    import os\n    os._exit(7)"
#: Crashing calls, each with a log line: together more than a pipe holds.
CRASHES = 400


def full_pipe() -> tuple[int, int]:
    """A full pipe: its reading end, and its writing end."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    return reader, writer


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("hosted", [False, True])
def test_an_unread_log_blocks_no_call(hosted: bool, tmp_path: Path) -> None:
    reader, writer = full_pipe()
    port = free_port()
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("FLASHPOOL", "RUNPOD"))}
    command = [str(FLASHPOOL), "serve", "lb"]
    if hosted:
        (tmp_path / "lb.py").write_text(
            "from flashpool.frontends.lb.hosted import create_hosted_app\napp = create_hosted_app()"
        )
        command = [sys.executable, "-m", "uvicorn", "lb:app", "--port", str(port)]
        # Output of uvicorn before it imports the application is not under our control.
        command += ["--log-level", "warning"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=writer,
        cwd=tmp_path,
        env={**environ, "FLASHPOOL_PORT": str(port), "FLASHPOOL_ADMIN_PORT": str(free_port())},
    )
    os.close(writer)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            until(lambda: http.get("/ping").status_code == 200, 120)
            for _ in range(CRASHES):
                answer = http.post("/execute", json=request(CRASH)).json()
                assert answer["error_type"] == "WorkerCrashed"
            assert http.get("/ping").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0 or hosted
    finally:
        process.kill()
        process.wait()
        os.close(reader)
