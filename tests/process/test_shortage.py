"""What a pool does when descriptors run out, or time passes without it."""

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
def test_calls_wait_for_a_zygote_that_the_machine_has_no_room_for(
    make_live: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    module: object,
    name: str,
    refuse: Callable[..., None],
    what: str,
) -> None:
    """It is tried more often than a zygote may fail, leaves nothing, and is not remembered."""
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


def test_a_zygote_that_meets_a_shortage_while_it_comes_up_is_started_again(
    make_live: Make, tmp_path: Path
) -> None:
    short = tmp_path / "short"
    short.touch()
    starts = tmp_path / "starts"
    starts.touch()
    boot = tmp_path / "python"
    # As a guard that cannot fork ends, and a zygote whose imports find no descriptor.
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


def test_a_call_that_cannot_be_handed_to_its_instance_ends(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    result(live, "a", "inc")
    with monkeypatch.context() as patched:
        # As where a socket is full, and its descriptors cannot be copied to wait.
        patched.setattr(channel.WorkerChannel, "send", no_descriptor)
        started = begin(live, "a", "inc")
    outcome = started.wait()
    assert outcome.error_type == "WorkerCrashed"
    assert "could not be sent to its worker: Too many open files" in (outcome.error or "")
    assert result(live, "a", "inc") == 1


def test_zygotes_are_not_blamed_for_a_pause_of_all(live: Live) -> None:
    """A container that is paused, with everything in it."""
    parts, pid = live.supervisor._components, live.zygote().pid
    live.until(lambda: live.zygote().spares == 2)
    parts.zygote_set.fork(BASE, 1, "")
    spare = next(iter(parts.worker_set))
    parts.worker_set.stop(spare, None, grace=0.0)
    # All that is under way, and the latest look at it, were that long ago.
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


#: Its steps take no time while its process is stopped.
IN_STEPS = """def f(steps):
    import time
    for _ in range(steps):
        time.sleep(0.01)
    return steps"""


@pytest.mark.parametrize("all_stop", [True, False])
def test_time_in_which_the_pool_does_not_run_counts_for_nobody(
    make_live: Make, short_patience: None, caplog: pytest.LogCaptureFixture, all_stop: bool
) -> None:
    """Neither against calls, running or waiting, nor against zygotes and what they were asked."""
    live = make_live(slots=1).ready()
    pid = live.zygote().pid
    running = live.start(IN_STEPS, 60, run_s=3.0)
    assert running.pid
    waiting = live.start(NEXT, queue_s=3.0, run_s=3.0)
    live.supervisor._components.zygote_set.fork(BASE, 1, "")
    stopped = [*processes.descendants(processes.parent(pid))] if all_stop else [pid]
    for one in stopped:
        os.kill(one, signal.SIGSTOP)
    time.sleep(4)  # the loop does not run meanwhile
    for one in stopped:
        os.kill(one, signal.SIGCONT)
    assert value(running.wait()) == 60
    assert value(waiting.wait()) == "fine"
    assert live.zygote().pid == pid
    assert [one for one in caplog.records if one.levelname != "INFO"] == []
