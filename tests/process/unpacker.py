"""Unpack one archive as a starting server does; test_unpacking.py runs this program.

    unpacker.py ARCHIVE ROOT LOCKS [DIE_AT]

LOCKS: `work`, `fail` (locking raises), or `lie` (every process gets the lock). The program waits for
EOF on its input, so that several can start together. It kills itself with SIGKILL at the DIE_AT-th
file operation; otherwise it prints the number of file operations, and where the app is.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from flashpool.frontends.apps.artifacts import app_store
from flashpool.frontends.apps.artifacts.app_link import switch_link
from flashpool.frontends.apps.artifacts.app_store import AppStore
from flashpool.frontends.apps.artifacts.tar_reader import ArchiveLimits
from flashpool.frontends.apps.artifacts.unpacking import unpack

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.symlink", "os.rmdir"}


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def main() -> None:
    archive, root, locks = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    die_at = int(sys.argv[4]) if len(sys.argv) > 4 else -1
    if locks != "work":
        answer = no_locks if locks == "fail" else lambda *_: None
        app_store.fcntl = type(
            "Locks",
            (),
            {"flock": staticmethod(answer), "LOCK_EX": fcntl.LOCK_EX, "LOCK_NB": fcntl.LOCK_NB},
        )  # type: ignore[assignment]
    made: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: made.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("flashpool.frontends.apps.artifacts.unpacking")
    log.addHandler(handler)
    log.setLevel("INFO")
    sys.stdin.read()
    count = 0

    def look(event: str, _arguments: object) -> None:
        nonlocal count
        if event in EVENTS:
            count += 1
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    limits = ArchiveLimits(max_mb=100, max_files=1000, max_ratio=100)
    lease = unpack(archive, AppStore(root), limits, threading.Event())
    problem = switch_link(root.parent.parent / "app", lease.path)
    events = count
    print(json.dumps({"path": str(lease.path), "made": made, "events": events, "link": problem}))
    sys.stdout.flush()
    with contextlib.suppress(ValueError):
        lease.release()


if __name__ == "__main__":
    main()
