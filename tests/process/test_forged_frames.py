"""What user code writes to its channel: it costs the call that did it, and nobody a descriptor."""

import os
from collections.abc import Callable

import pytest
from process.resident_calls import begin, run, thing

from support.live import Live

Make = Callable[..., Live]

#: Sends frames of its own making, in one piece, with descriptors beside them.
FORGE = """
import os, socket, struct

def frame(kind, meta, body=b"", fds=0):
    return struct.pack("<2sBBIQ", b"fp", kind, fds, len(meta), len(body)) + meta + body

def send(data, fds=0):
    fd = max(n for n in map(int, os.listdir("/proc/self/fd")) if n < 5000)
    with socket.socket(fileno=os.dup(fd)) as channel:
        if fds:
            socket.send_fds(channel, [data], [0] * fds)
        else:
            channel.sendall(data)

ITEM, RESULT, LOADED = 18, 19, 20
ENDED = struct.pack("<BBdQ", 1, 0, 0.0, 0)
FAILED = struct.pack("<BBdQ", 0, 0, 0.0, 0)
TOLD = FAILED + b'{"error_type": "E", "error": "e"}'
"""


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    "forged",
    [
        "send(frame(RESULT, ENDED, b'1', 3) + b'garbage' * 9, 3)",
        "send(frame(RESULT, b'no meta', b'1', 3), 3)",
        "send(frame(RESULT, TOLD, b'', 3), 3)",
        "send(frame(99, b'', b'', 3), 3)",
        "send(frame(LOADED, ENDED, b'', 3), 3)",
        "[send(frame(ITEM, b''), 16) for _ in range(40)]",
        "[send(frame(99, b''), 16) for _ in range(40)]",
    ],
    ids=["then-garbage", "no-result", "failure", "unknown", "loaded", "items", "unclaimed"],
)
def test_descriptors_that_nobody_asked_for_are_closed(live: Live, forged: str) -> None:
    live.until(lambda: live.zygote().spares == 2)
    before = open_files()
    outcome = live.call(f"{FORGE}\ndef f():\n    {forged}\n    return 1", run_s=25)
    assert not outcome.fds, "a request's result has none that its front-end could mean"
    live.until(lambda: live.stats().slots.busy == 0 and live.zygote().spares == 2)
    live.until(lambda: open_files() <= before)


def test_a_result_counts_whatever_follows_it(live: Live) -> None:
    outcome = live.call(
        f"{FORGE}\ndef f():\n    send(frame(RESULT, ENDED, b'1') + bytes(50))\n    os._exit(0)"
    )
    assert outcome.ok
    assert outcome.body == b"1"


@pytest.mark.parametrize("more", ["[1, 2]", "5", "[{}]", '["os", 5]'])
def test_modules_that_are_none_end_the_call(live: Live, more: str) -> None:
    told = f"ENDED + b'{{\"modules\": {more}}}'"
    outcome = live.call(f"{FORGE}\ndef f():\n    send(frame(RESULT, {told}))\n    os._exit(0)")
    assert outcome.error_type == "WorkerCrashed"
    assert "channel" in outcome.error


def test_modules_that_are_none_end_the_call_of_an_instance(live: Live) -> None:
    code = FORGE + thing(
        """
def forge(self, number):
    meta = struct.pack("<Q", number) + ENDED + b'{"modules": 5}'
    send(frame(RESULT, meta))
    import time; time.sleep(60)
"""
    )
    # The number of a call is the next after that of its load.
    assert run(live, "a", "pid", code=code).ok
    number = begin(live, "b", "pid").id
    outcome = run(live, "a", "forge", number + 2, code=code)
    assert outcome.error_type == "WorkerCrashed"
    assert "channel" in outcome.error


def test_details_that_are_none_end_the_call(live: Live) -> None:
    told = 'FAILED + b\'{"error_type": "E", "error": "e", "details": 5}\''
    outcome = live.call(f"{FORGE}\ndef f():\n    send(frame(RESULT, {told}))\n    os._exit(0)")
    assert outcome.error_type == "WorkerCrashed"
