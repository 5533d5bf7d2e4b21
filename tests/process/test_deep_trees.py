"""A call whose processes nest a thousand deep: it fails alone, and leaves nothing behind."""

from __future__ import annotations

import os
import signal

import pytest

from support.live import alive, value

DEPTH = 1100
#: A script that starts itself as a child and waits; the last child reports that all are running.
SCRIPT = """
if [ "$1" -gt 0 ]; then
    sh "$0" $(($1 - 1)) "$2"
else
    mv "$2" "$2.complete"
    sleep 600
fi
exit 0
"""
NEST = """
import os, subprocess
def f(script, depth, marker):
    with open(marker, "w") as file:
        file.write(str(os.getpid()))
    subprocess.run(["sh", script, str(depth), marker])
"""
SLOW = "import time\ndef f():\n    time.sleep(11)\n    return 'mine'"


def in_session(pid: int) -> list[int]:
    """A worker and its descendants, found by their session: each worker starts its own."""
    found = []
    for one in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.getsid(int(one)) == pid:
                found.append(int(one))
        except ProcessLookupError:
            pass
    return found


def nest(live, tmp_path, **limits):
    """Start such a call; return its worker's pid once the whole tree runs."""
    marker = tmp_path / "marker"
    script = tmp_path / "nest.sh"
    script.write_text(SCRIPT)
    call = live.start(NEST, str(script), DEPTH, str(marker), **limits)
    complete = tmp_path / "marker.complete"
    live.until(complete.exists)
    pid = int(complete.read_text())
    assert len(in_session(pid)) > DEPTH
    return call, pid


@pytest.mark.slow  # the limit has to leave time to start a thousand processes
def test_a_deep_tree_is_killed_at_its_limit_and_other_calls_continue(make_live, tmp_path):
    live = make_live(slots=3).ready()
    neighbour = live.start(SLOW, memory_mb=512)
    deep, pid = nest(live, tmp_path, run_s=10, memory_mb=4096)
    outcome = deep.wait()
    assert outcome.error_type == "Timeout"
    assert value(neighbour.wait()) == "mine"
    live.until(lambda: in_session(pid) == [])
    live.until(lambda: live.stats().slots.busy == 0)
    assert live.value("def f(): return 'fine'") == "fine"


def test_a_deep_tree_is_killed_with_its_zygote(make_live, tmp_path):
    live = make_live(slots=2).ready()
    _, pid = nest(live, tmp_path)
    zygote = live.zygote().pid
    os.kill(zygote, signal.SIGKILL)
    live.until(lambda: in_session(pid) == [])
    assert not alive(zygote)
    assert live.value("def f(): return 'fine'") == "fine"


#: Nests directories in the call's own directory, and leaves a foreign file beside it.
NEST_DIRECTORIES = """
import os, subprocess, sys
def f(scratch):
    subprocess.run(["true"])  # a directory is made for what that might install
    own = os.environ["TMPDIR"] if scratch else os.path.dirname(sys.path[0])
    os.chdir(own)
    for _ in range(2 * sys.getrecursionlimit()):
        os.mkdir("d" * 50)
        os.chdir("d" * 50)
    if not scratch:
        open(os.path.join(os.path.dirname(own), "x-y"), "w").close()
    return own
"""


@pytest.mark.parametrize("scratch", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_deep_directories_are_removed_and_other_calls_continue(make_live, scratch):
    live = make_live().ready()
    zygote = live.zygote().pid
    own = live.value(NEST_DIRECTORIES, scratch, call={"scratch": scratch})
    live.until(lambda: not os.path.exists(own))
    assert live.value("def f(): return 1") == 1
    assert live.zygote().pid == zygote
