"""What a pool does when descriptors run out, or time passes without it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

import pytest
from process.resident_calls import begin, result

from flashpool.pool._child import processes
from flashpool.pool.calls import Provision
from flashpool.pool.supervisor.components import BASE
from flashpool.pool.workers import channel
from flashpool.pool.workers import zygote as zygotes
from support.live import Live

Make = Callable[..., Live]
NEXT = "def f(): return 'fine'"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def no_descriptor(*_: object, **__: object) -> None:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_zygote_that_cannot_be_watched_leaves_nothing(
    make_live: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = make_live().ready()
    live.until(lambda: live.zygote().spares == 2)
    before = open_files(), processes.children(os.getpid())
    live.supervisor.environments.add("other", sys.executable)
    with monkeypatch.context() as patched:
        patched.setattr(zygotes.os, "pidfd_open", no_descriptor)
        outcome = live.call(NEXT, call={"provision": Provision(environment="other")})
    assert outcome.error_type == "EnvironmentStartFailed"
    assert "Too many open files" in (outcome.error or "")
    live.until(lambda: (open_files(), processes.children(os.getpid())) == before)


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
    assert "could not be handed to its worker: Too many open files" in (outcome.error or "")
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
    live.supervisor._ticked_at -= 100
    live.supervisor._tick()
    assert live.call(NEXT).ok
    assert live.zygote().pid == pid
