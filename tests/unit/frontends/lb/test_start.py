"""What a server imports before it serves: each module slows down every start."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("name", ["aiohttp", "runpod", "rich"])
def test_a_server_of_calls_starts_without_unneeded_modules(name: str) -> None:
    code = f"import sys, flashpool.frontends.lb.server; assert {name!r} not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
