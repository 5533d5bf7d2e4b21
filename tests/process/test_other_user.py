"""A server that is not root: what calls, which run as its user, may do to its processes."""

import json
from collections.abc import Callable
from pathlib import Path

from process.resident_calls import run, thing

from support import other_user
from support.live import Live

TRIES_TO_TRACE = """
import ctypes, json, os, signal
from flashpool.pool import Pool

def attempts():
    import ctypes, os
    libc = ctypes.CDLL(None, use_errno=True)
    def worked(pid):
        found = []
        if libc.ptrace(16, pid, None, None) == 0:  # PTRACE_ATTACH
            libc.ptrace(17, pid, None, None)
            found.append("traced")
        pidfd = os.pidfd_open(pid)
        if any(libc.syscall(438, pidfd, fd, 0) >= 0 for fd in range(64)):  # pidfd_getfd
            found.append("took a descriptor")
        for name in ("mem", "environ", "fd/0"):
            try:
                os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
                found.append(name)
            except OSError:
                pass
        return found
    def parent(pid):
        return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
    child = os.fork()
    if child == 0:
        import time
        time.sleep(60)
    mine = worked(child)
    os.kill(child, 9)
    zygote = os.getppid()
    return mine, worked(zygote), worked(parent(zygote))

with Pool(max_workers=1) as pool:
    print(json.dumps(pool.submit(attempts).result()))
"""

SHARES_MEMORY = """
import json
from flashpool.pool import OutOfMemory, Pool

def shares():
    import os, time
    block = bytearray(200 << 20)
    child = os.fork()
    if child == 0:
        time.sleep(60)
    time.sleep(1)  # so long that it is looked at
    os.kill(child, 9)
    return len(block) >> 20

def own():
    import time
    block = bytearray(400 << 20)
    time.sleep(60)

with Pool(max_workers=1) as pool:
    limited = pool.options(memory_mb=300)
    found = [limited.submit(shares).result()]
    try:
        limited.submit(own).result()
    except OutOfMemory as error:
        found.append(str(error))
print(json.dumps(found))
"""


def test_a_call_cannot_trace_its_zygote_or_guard(tmp_path: Path) -> None:
    own, zygote, guard = json.loads(other_user.run(TRIES_TO_TRACE, tmp_path))
    assert own == ["traced", "took a descriptor", "mem", "environ", "fd/0"]
    assert zygote == guard == []


def test_a_memory_limit_counts_shared_pages_once(tmp_path: Path) -> None:
    shared, ended = json.loads(other_user.run(SHARES_MEMORY, tmp_path))
    assert shared == 200, "by resident pages, which count twice, it would have used 400"
    assert "memory" in ended


def test_workers_are_dumpable_however_they_start(make_live: Callable[..., Live]) -> None:
    for method in ("fork", "spawn"):
        live = make_live(start_method=method)
        asked = "import ctypes; return ctypes.CDLL(None).prctl(3)"  # PR_GET_DUMPABLE
        assert live.value(f"def f():\n    {asked}") == 1
        outcome = run(live, "a", "asked", code=thing(f"def asked(self):\n    {asked}"))
        assert outcome.body == b"1"
