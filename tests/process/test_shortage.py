"""What a pool does when descriptors run out, or while its process is stopped."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from process.resident_calls import begin, result

from flashpool.pool._child import processes, shortage
from flashpool.pool.calls import Provision
from flashpool.pool.scheduling.zygote_table import RESTART_LIMIT
from flashpool.pool.supervisor.components import BASE
from flashpool.pool.workers import channel
from flashpool.pool.workers import zygote as zygotes
from flashpool.pool.workers.ends import watchdog
from support.live import Live, value

Make = Callable[..., Live]
NEXT = "def f(): return 'fine'"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def no_descriptor(*_: object, **__: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def no_process(*_: object, **__: object) -> None:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


@pytest.mark.parametrize(
    ("module", "name", "refuse", "what"),
    [
        (zygotes.os, "pidfd_open", no_descriptor, "open files"),
        (zygotes.subprocess, "Popen", no_process, "processes"),
    ],
    ids=["descriptors", "processes"],
)
def test_calls_wait_while_a_zygote_cannot_start_for_lack_of_resources(
    make_live: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    module: object,
    name: str,
    refuse: Callable[..., None],
    what: str,
) -> None:
    """The start is retried beyond the restart limit, leaks nothing, and counts as no failure."""
    live = make_live().ready()
    live.until(lambda: live.zygote().spares == 2)
    before = open_files(), processes.children(os.getpid())
    live.supervisor.environments.add("other", sys.executable)
    call = {"provision": Provision(environment="other")}
    with monkeypatch.context() as patched:
        patched.setattr(module, name, refuse)
        waiting = live.start(NEXT, call=call)
        late = live.start(NEXT, call=call, queue_s=0.5)
        live.until(lambda: any(one.times > RESTART_LIMIT for one in live.stats().shortages))
        assert live.value(NEXT) == "fine"
        assert late.wait().details == {"phase": "queue", "limit_s": 0.5}
        (short,) = live.stats().shortages
        assert short.who == "zygote other#0"
        assert what in short.what
        assert not waiting.sink.future.done()
    assert waiting.wait().ok
    assert live.stats().shortages == []
    assert [one.last_failure for one in live.stats().zygotes] == [None, None]
    assert caplog.text.count("zygote other#0 is short of") == 1
    live.until(lambda: live.supervisor.environments.retire_idle("other"))
    live.until(lambda: (open_files(), processes.children(os.getpid())) == before)


def test_a_zygote_that_meets_a_shortage_at_start_up_is_restarted(
    make_live: Make, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    short.touch()
    starts = tmp_path / "starts"
    starts.touch()
    boot = tmp_path / "python"
    # Like a guard that cannot fork, and a zygote whose imports find no free descriptor.
    boot.write_text(
        f"#!/bin/sh\necho x >>{starts}\n"
        f'[ -e {short} ] && exit {shortage.EXIT_STATUS}\nexec {sys.executable} "$@"\n'
    )
    boot.chmod(0o755)
    live = make_live().ready()
    live.supervisor.environments.add("other", str(boot))
    waiting = live.start(NEXT, call={"provision": Provision(environment="other")})
    live.until(lambda: len(starts.read_text().splitlines()) > 2)
    short.unlink()
    assert waiting.wait().ok
    assert live.stats().shortages == []


def test_a_call_that_cannot_be_sent_to_its_instance_fails(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    result(live, "a", "inc")
    with monkeypatch.context() as patched:
        # As when a socket is full and the descriptors cannot be duplicated to wait.
        patched.setattr(channel.WorkerChannel, "send", no_descriptor)
        started = begin(live, "a", "inc")
    outcome = started.wait()
    assert outcome.error_type == "WorkerCrashed"
    assert "could not be sent to its worker: Too many open files" in (outcome.error or "")
    assert result(live, "a", "inc") == 1


def test_a_pause_of_all_processes_does_not_count_against_zygotes(live: Live) -> None:
    """As when a container is paused with all its processes."""
    parts, pid = live.supervisor._components, live.zygote().pid
    live.until(lambda: live.zygote().spares == 2)
    parts.zygote_set.fork(BASE, 1, "")
    spare = next(iter(parts.worker_set))
    parts.worker_set.stop(spare, None, grace=0.0)
    # Pending operations, and the latest check of them, began that long ago.
    parts.zygote_set[BASE].answered_at -= 100
    spare.exiting_since -= 100
    parts.running_time._late_at -= 100
    live.supervisor._ticking._tick()
    assert live.call(NEXT).ok
    assert live.zygote().pid == pid
    assert 99 < parts.running_time.stood_still < 101


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "ANSWER_S", 1.0)
    monkeypatch.setattr(watchdog, "BEGIN_S", 1.0)


#: A call that measures only the time in which its process runs.
IN_STEPS = """def f(steps):
    import time
    for _ in range(steps):
        time.sleep(0.01)
    return steps"""


@pytest.mark.parametrize("all_stop", [True, False])
def test_time_while_the_pool_is_stopped_counts_against_nothing(
    make_live: Make, short_patience: None, caplog: pytest.LogCaptureFixture, all_stop: bool
) -> None:
    """Neither against running or waiting calls, nor against zygotes and requests to them."""
    live = make_live(slots=1).ready()
    pid = live.zygote().pid
    running = live.start(IN_STEPS, 60, run_s=3.0)
    assert running.pid
    waiting = live.start(NEXT, queue_s=3.0, run_s=3.0)
    live.supervisor._components.zygote_set.fork(BASE, 1, "")
    stopped = [*processes.descendants(processes.parent(pid))] if all_stop else [pid]
    for one in stopped:
        os.kill(one, signal.SIGSTOP)
    time.sleep(4)  # blocks the loop
    for one in stopped:
        os.kill(one, signal.SIGCONT)
    assert value(running.wait()) == 60
    assert value(waiting.wait()) == "fine"
    assert live.zygote().pid == pid
    assert [one for one in caplog.records if one.levelname != "INFO"] == []
