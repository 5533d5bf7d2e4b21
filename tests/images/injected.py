"""Helpers of injection tests: the real tarball, and a call to a server started from it."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from e2e.server import FLASHPOOL, until
from uv import find_uv_bin

ROOT: Final = Path(__file__).parents[2]
_CODE: Final = "def f():\n    import sys\n    return [sys.prefix, '%d.%d' % sys.version_info[:2]]"


def build(python: str, out: Path) -> tuple[Path, list[str]]:
    """Build the tarball for that minor version; return it and the lines about it."""
    script = ROOT / "docker" / "build_tarball.py"
    command = [sys.executable, script, "--python", python, "--out", out, "--uv", find_uv_bin()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (path,) = out.glob("*.tar.gz")
    return path, ended.stdout.splitlines()


def command_of(*arguments: Any, **environ: str) -> str:
    """Return the output of `flashpool inject print-command`."""
    return subprocess.run(
        [FLASHPOOL, "inject", "print-command", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout.strip()


def answer(process: "subprocess.Popen[bytes]", log: Callable[[], str]) -> Any:
    """Wait until the server is ready; return what a call reports about its Python."""

    def url() -> str:
        assert process.poll() is None, log()
        lines = (line for line in log().splitlines() if "live calls on" in line)
        return next((line.split()[5].rstrip(",") for line in lines), "")

    address = until(url, 240)
    until(lambda: urllib.request.urlopen(f"{address}/ping", timeout=5).status == 200, 60)
    body = {"function_name": "f", "function_code": _CODE, "serialization_format": "json"}
    request = urllib.request.Request(f"{address}/execute", data=json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["json_result"]


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    assert process.wait(60) == 0
