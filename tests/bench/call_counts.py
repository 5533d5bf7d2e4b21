"""``python call_counts.py``: the Python calls that one no-op over ``/execute`` makes in the server.

    thread: a client --request--> loop: the server, in this process, traced --answer--> client
                                  ... until the worker is gone and a spare is in its place

It serves as `flashpool serve lb` does. Counted is each call of a Python function of flashpool's own
on the loop's thread, a coroutine's each time it goes on; what is done by the clock, and not for
a call, is left out. The count does not depend on how fast or busy the machine is, but for
messages that arrive together and are read in one go: of several calls, the middle one counts.

It prints JSON: ``calls``, ``files`` that they are in, ``hops`` from one file to another, and ``by_file``.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT / "tests")]

from bench import http_load  # noqa: E402 - found only now

import flashpool.pool  # noqa: E402
from flashpool.frontends.lb.server import serve_lb  # noqa: E402
from flashpool.frontends.settings.table import Settings  # noqa: E402

#: The folder with flashpool's packages, as they are installed: links to their sources, perhaps.
PACKAGES = Path(flashpool.pool.__file__).parents[1]
#: What the clock calls: the listeners' loops, the supervisor's tick, the look at requests that last.
BY_THE_CLOCK = {
    ("server_process.py", "_with_an_end"),
    ("listener.py", "serve"),
    ("ticking.py", "_tick"),
    ("ticking.py", "_beat"),
    ("inflight_requests.py", "_sweep"),
    ("inflight_requests.py", "_sweep_later"),
}
WARM_UP = 50
#: Seconds in which the server does nothing, after which a call and its worker are taken to be over.
QUIET_S = 0.05


@dataclass(slots=True)
class Trace:
    """What `sys.setprofile` told of one call."""

    calls: Counter[CodeType] = field(default_factory=Counter)
    total: int = 0
    hops: int = 0
    _depth: int = 0
    _by_the_clock: bool = False
    _file: str = ""

    def hook(self, frame: FrameType, event: str, _arg: object) -> None:
        code = frame.f_code
        if event not in {"call", "return"} or not is_ours(code):
            return
        if event == "return":
            self._depth -= 1
            return
        if self._depth == 0:
            here = os.path.basename(code.co_filename), code.co_name
            self._by_the_clock = here in BY_THE_CLOCK
        self._depth += 1
        if not self._by_the_clock:
            self.calls[code] += 1
            self.total += 1
            self.hops += code.co_filename != self._file
            self._file = code.co_filename

    def by_file(self) -> dict[str, int]:
        """Calls, by file as named from the packages' folder; most first."""
        found: Counter[str] = Counter()
        for code, number in self.calls.items():
            found[os.path.relpath(code.co_filename, PACKAGES)] += number
        return dict(found.most_common())

    def by_function(self) -> dict[str, int]:
        """Calls, by function in its file."""
        named = {
            f"{os.path.relpath(code.co_filename, PACKAGES)} {code.co_firstlineno} {code.co_name}": n
            for code, n in self.calls.items()
        }
        return dict(sorted(named.items()))


@cache
def is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(f"{PACKAGES}/")


def on_loop(loop: asyncio.AbstractEventLoop, *call: Any) -> None:
    """Call it on the loop's thread, and wait for that."""
    done = threading.Event()
    loop.call_soon_threadsafe(lambda: (call[0](*call[1:]), done.set()))
    assert done.wait(60)


def until_quiet(trace: Trace) -> None:
    seen = -1
    while trace.total != seen:
        seen = trace.total
        time.sleep(QUIET_S)


def traced(loop: asyncio.AbstractEventLoop, address: http_load.Address, number: int) -> list[Trace]:
    """So many calls, one by one, on a connection that has had some."""
    traces = []
    with http_load.connected(address, 1) as (one,):
        for _ in range(WARM_UP):
            one.call(http_load.NOOP)
            one.check()
        time.sleep(1.0)  # the last of these is over
        for _ in range(number):
            trace = Trace()
            on_loop(loop, sys.setprofile, trace.hook)
            one.call(http_load.NOOP)
            one.check()
            until_quiet(trace)
            on_loop(loop, sys.setprofile, None)
            traces.append(trace)
    return traces


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the server's Python calls for one no-op.")
    parser.add_argument("--calls", type=int, default=15, metavar="N", help="traced, default 15")
    parser.add_argument("--functions", action="store_true", help="list functions as well")
    given = parser.parse_args()
    found: list[Trace] = []

    def begin(sock: socket.socket, _admin: socket.socket) -> None:
        loop, address = asyncio.get_running_loop(), sock.getsockname()[:2]

        def work() -> None:
            try:
                found.extend(traced(loop, address, given.calls))
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=work).start()

    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FLASHPOOL_", "RUNPOD_"))
    }
    # The number of slots decides over how many spares are forked.
    ports = {"FLASHPOOL_PORT": "0", "FLASHPOOL_ADMIN_PORT": "0", "FLASHPOOL_SLOTS": "2"}
    serve_lb(Settings.from_environ({**environ, **ports}), begin)
    if not found:
        return 1
    trace = sorted(found, key=lambda trace: trace.total)[len(found) // 2]
    print(
        json.dumps(
            {
                "calls": trace.total,
                "least": min(trace.total for trace in found),
                "most": max(trace.total for trace in found),
                "files": len(trace.by_file()),
                "hops": trace.hops,
                "by_file": trace.by_file(),
                **({"by_function": trace.by_function()} if given.functions else {}),
            },
            indent=1,
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
