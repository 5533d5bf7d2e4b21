"""How a server's process exits."""

import subprocess
import sys

_HANGS = """
import asyncio, threading
from flashpool.frontends.server_process import run_loop

async def main():
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)

run_loop(main())
"""


def test_a_thread_that_never_ends_does_not_keep_the_process_alive() -> None:
    ended = subprocess.run([sys.executable, "-c", _HANGS], timeout=60, check=False)
    assert ended.returncode == 0
