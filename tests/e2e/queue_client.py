"""Runs client/queue_calls.py, the real client's part of the tests of queues."""

import contextlib
import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from e2e.server import until

from support.cloud import Platform

_CALLS: Final = Path(__file__).parent / "client" / "queue_calls.py"
#: Live mode, as `flash dev` sets it for its own process.
_LIVE: Final = {"FLASH_IS_LIVE_PROVISIONING": "true"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The outcomes of the calls, and what the client printed."""

    calls: dict[str, Any]
    shown: str

    def value(self, call: str) -> Any:
        assert "value" in self.calls[call], self.calls[call]["text"]
        return self.calls[call]["value"]

    def text(self, call: str) -> str:
        """Return the text of the error that a call raised."""
        assert "text" in self.calls[call], self.calls[call]
        return str(self.calls[call]["text"])


def run_client(
    python: Path,
    home: Path,
    recipe: str,
    platform: Platform,
    *,
    url: str = "",
    only: Sequence[str] = (),
    limit_s: float = 110.0,
) -> Told:
    """Run the calls of this recipe, or only some."""
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [python, _CALLS, recipe, url],
        # The directory where the client records what it has provisioned.
        cwd=home,
        env={
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "TMPDIR": str(home),
            **_LIVE,
            **platform.client_env(),
            **({"CALLS": ",".join(only)} if only else {}),
        },
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown, _, last = done.stdout.rstrip("\n").rpartition("\n")
    return Told(calls=json.loads(last), shown=shown)


@contextlib.contextmanager
def local_api(command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> Iterator[str]:
    """The SDK's own API (`--rp_serve_api`) in front of this worker; its URL."""
    port = _free_port()
    with (folder / "local_api.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--rp_serve_api", "--rp_api_host=127.0.0.1", f"--rp_api_port={port}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), **variables},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: httpx.get(f"{url}/openapi.json", trust_env=False).status_code == 200, 30)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
