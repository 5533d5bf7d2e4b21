"""Signals that calls send to their parents do not end zygotes or guards."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from process.resident_calls import result

from flashpool.pool._child import processes
from support.interpreters import virtualenv
from support.live import Live

SENT = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPROF")
#: Reports how a process and its child handle each signal, and which signals are blocked.
DISPOSITIONS = """
import os, signal, subprocess, sys
def f():
    taken = {one.name: str(signal.getsignal(one)) for one in signal.valid_signals() if hasattr(one, "name")}
    masks = []
    for args in (["cat", "/proc/self/status"],):
        told = subprocess.run(args, capture_output=True, text=True, check=True).stdout
        masks.append([line for line in told.splitlines() if line.startswith("SigBlk")])
    return taken, masks, sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


def test_termination_signals_of_calls_end_neither_zygote_nor_guard(
    make_live: Callable[..., Live],
) -> None:
    live = make_live(slots=3).ready()
    assert result(live, "kept", "inc") == 1
    neighbour = live.start("def f():\n    import time; print('on', flush=True); time.sleep(60)")
    neighbour.wait_for_output(b"on")
    zygote = live.zygote().pid
    guard = processes.parent(zygote)
    sends = """
import os, signal
def f(guard, names):
    for name in names:
        os.kill(os.getppid(), getattr(signal, name))
        os.kill(guard, getattr(signal, name))
    return os.getppid()
"""
    assert live.value(sends, guard, SENT) == zygote
    assert result(live, "kept", "inc") == 2
    for _ in range(10):  # more than there were spares
        assert live.value("import os\ndef f(): return os.getppid()") == zygote
    assert not neighbour.sink.future.done()
    live.supervisor.cancel(neighbour.id)
    neighbour.wait()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_calls_handle_signals_as_any_python_does(
    make_live: Callable[..., Live], method: str
) -> None:
    told = subprocess.run(
        [sys.executable, "-c", f"import json\n{DISPOSITIONS}\nprint(json.dumps(f()))"],
        capture_output=True,
        text=True,
        check=True,
    )
    live = make_live(start_method=method).ready()
    found = live.value(DISPOSITIONS)
    assert json.loads(json.dumps(found)) == json.loads(told.stdout)


def test_calls_handle_signals_even_if_the_server_ignores_them(
    make_live: Callable[..., Live],
) -> None:
    """A shell makes background jobs ignore some signals."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        live = make_live().ready()
    finally:
        signal.signal(signal.SIGINT, before)
    outcome = live.call("import os, time\ndef f(): os.kill(os.getpid(), 2); time.sleep(60)")
    assert outcome.error_type == "KeyboardInterrupt"


def test_preloaded_modules_see_no_blocked_signals(make_live: Callable[..., Live], tmp_path) -> None:
    asks = "import signal\nBLOCKED = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))\nif BLOCKED: open(__file__ + '.blocked', 'a').close()"
    python = virtualenv(tmp_path / "env", asks=asks)
    live = make_live(base_python=str(python), slots=1).ready()
    code = "def f():\n    import asks; return asks.BLOCKED"
    assert live.value(code) == []
    live.until(lambda: any(z.profile and z.state == "ready" for z in live.stats().zygotes))
    assert live.value("import signal\n" + code) == []
