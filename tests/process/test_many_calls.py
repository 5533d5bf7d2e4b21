"""More calls at once than a process is allowed open files by default."""

from __future__ import annotations

import contextlib
import fcntl
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flashpool.pool._child import processes
from support.live import Live, value

Make = Callable[..., Live]
#: More than the lowest descriptor number of channels.
MANY = 2100
#: Each call needs a channel and an output pipe.
NEEDED = 2 * MANY + 200


@contextlib.contextmanager
def gate(path: Path) -> Iterator[str]:
    """Hold a lock that each call waits for."""
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield f"""def f(number):
            import fcntl, resource
            with open({str(path)!r}) as gate:
                fcntl.flock(gate, fcntl.LOCK_SH)
            return number, resource.getrlimit(resource.RLIMIT_NOFILE)[0]"""


@contextlib.contextmanager
def soft_limit(limit: int) -> Iterator[int]:
    """Set this soft limit of open files; return the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def run_together(live: Live, number: int, folder: Path, seconds: float) -> None:
    with gate(folder / "gate") as code:
        calls = [live.start(code, one) for one in range(number)]
        live.until(lambda: live.supervisor.free_slots == 0, seconds)
    limit = processes.descriptors_of_children()
    assert [value(one.wait(seconds)) for one in calls] == [(i, limit) for i in range(number)]


@pytest.mark.parametrize("split", [False, True])
def test_a_zygote_can_have_more_workers_than_the_limit_of_open_files(
    make_live: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, split: bool
) -> None:
    """Its own descriptors reach the numbers of channels, and then its limit, which it raises."""
    monkeypatch.setattr(processes, "_began_with", 64)
    live = make_live(slots=100, split_output=split).ready()
    run_together(live, 100, tmp_path, 60)
    assert live.stats().zygotes[0].last_failure is None


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_more_than_two_thousand_calls_run_at_once(
    make_live: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if (hard := resource.getrlimit(resource.RLIMIT_NOFILE)[1]) < NEEDED:
        pytest.skip(f"needs a hard limit of {NEEDED} open files; it is {hard}")
    monkeypatch.setattr(processes, "_began_with", None)
    with soft_limit(1024):
        assert processes.raise_descriptors()
        live = make_live(slots=MANY, queue_limit=None).ready()
        run_together(live, MANY, tmp_path, 180)
        assert live.stats().zygotes[0].last_failure is None


def test_programs_of_calls_have_the_original_limit_of_open_files(
    make_live: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_began_with", None)
    with soft_limit(1000):
        assert processes.raise_descriptors()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1000
        live = make_live(slots=1).ready()
        code = "def f():\n    import os, subprocess, sys\n    return subprocess.getoutput('ulimit -Sn')"
        assert live.value(code) == "1000"
        with open(f"/proc/{live.zygote().pid}/limits") as limits:
            (line,) = (line for line in limits if line.startswith("Max open files"))
        assert line.split()[3] == "1000"
