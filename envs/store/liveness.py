"""Which processes are alive: one heartbeat file for each process that uses a store.

    holders/<host>-<pid>-<start>-<random>     touched every few seconds

Leases, claims and scratch directories are named after their holder, so "stale" is decided in one
place. A holder may be

* dead: its process has exited (on this host, pid and start time show that at once), or, on another
  host, its heartbeat is old. Any process cleans up a dead holder's leases and scratch directories.
* stalled: dead, or its heartbeat is old although its process exists (stopped). A stalled holder's
  claim is taken over; its leases are kept.

Ages are never a difference between two clocks: "now" is the modification time of our own heartbeat
file, stamped by the same file system. And since even that clock may jump, an old heartbeat counts
only once it has been seen unchanged for a while on our monotonic clock.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from .volume_files import Folder, in_folder

__all__ = ["Holder", "Liveness", "this_host"]

#: All versions on a volume share this format: other names count as dead.
_NAME: Final = re.compile(r"([0-9a-f]{1,64})-([0-9]{1,10})-([0-9]{1,20})-[0-9a-f]{1,64}")


@lru_cache(maxsize=1)
def this_host() -> str:
    """Return an id of a machine's boot and pid namespace, in which pids are unambiguous."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    return f"{boot[:12]}{os.stat('/proc/self/ns/pid').st_ino:x}"


def start_time(pid: int) -> str:
    """Return a process's start in clock ticks since boot; empty if it does not exist."""
    try:
        # Read as bytes: a process may give itself any name.
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    fields = text.rpartition(b")")[2].decode("ascii", "replace").split()
    return "" if fields[0] in "ZX" else fields[19]


@dataclass(frozen=True, slots=True)
class Holder:
    """The parts of a holder's name."""

    name: str
    host: str
    pid: int
    start: str


def parse_holder(name: str) -> Holder | None:
    """Parse `<host>-<pid>-<start>-<random>`."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    host, pid, start = found.groups()
    return Holder(name=name, host=host, pid=int(pid), start=start)


class Liveness:
    """The holders of one store, including this process."""

    def __init__(
        self, folder: Path, *, heartbeat_s: float, stale_s: float, claim_stale_s: float
    ) -> None:
        self.folder = folder
        self._files = Folder(folder.parent, folder.name)
        self.me = f"{this_host()}-{os.getpid()}-{start_time(os.getpid())}-{secrets.token_hex(4)}"
        self._heartbeat_s = heartbeat_s
        self._stale_s = stale_s
        self._claim_stale_s = claim_stale_s
        self._seen: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self._beaten_at = time.monotonic()

    def __repr__(self) -> str:
        return f"<Liveness {self.folder} me={self.me}>"

    def beat(self) -> bool:
        """Write a heartbeat; return False if another process had considered this one dead."""
        began = time.monotonic()
        was_there = self._files.status(self.me) is not None
        self._files.touch(self.me)  # an empty file, so that this works on a full disk too
        self._beaten_at = began
        return was_there

    @property
    def overdue(self) -> bool:
        """Whether other processes may consider this one dead, because its heartbeat is old."""
        return time.monotonic() - self._beaten_at > max(self._stale_s / 2, 3 * self._heartbeat_s)

    def close(self) -> None:
        """Remove this process's heartbeat: it no longer uses the store."""
        self._files.remove(self.me)

    def bury(self) -> list[str]:
        """Remove the heartbeats of dead holders; return their names."""
        dead = [name for name in self.names() if self.dead(name)]
        for name in dead:
            self._files.remove(name)
        return dead

    def names(self) -> list[str]:
        """Return every holder that has a heartbeat file, alive or not."""
        return sorted(self._files.names())

    def dead(self, name: str) -> bool:
        """Return whether a holder is dead, so that its files may be removed."""
        if name == self.me:
            return False
        holder = parse_holder(name)
        if holder is None:
            return True
        if holder.host == this_host():
            return start_time(holder.pid) != holder.start
        return self._silent(name, self._stale_s)

    def stalled(self, name: str) -> bool:
        """Return whether to stop waiting for a holder."""
        return self.dead(name) or (name != self.me and self._silent(name, self._claim_stale_s))

    def age_of(self, path: Path) -> float:
        """Return the age of a file in seconds, by the file system's clock; 0 if it is missing."""
        written = _written(*in_folder(path))
        return 0.0 if written is None else max(0.0, (self.now() - written) / 1e9)

    def now(self) -> int:
        """Return nanoseconds since 1970 by the file system's clock, as of the last heartbeat."""
        now = self._modified(self.me)
        if now is None:
            self.beat()
            now = self._modified(self.me)
        return now or 0

    def _silent(self, name: str, limit_s: float) -> bool:
        beaten = self._modified(name)
        if beaten is None:
            return True
        if self.now() - beaten < limit_s * 1e9:
            self._forget(name)
            return False
        return self._unchanged_for(name, beaten) > 2 * self._heartbeat_s

    def _unchanged_for(self, name: str, beaten: int) -> float:
        with self._lock:
            stamp, since = self._seen.get(name, (0, 0.0))
            if stamp != beaten:
                self._seen[name] = (beaten, time.monotonic())
                return 0.0
            return time.monotonic() - since

    def _forget(self, name: str) -> None:
        with self._lock:
            self._seen.pop(name, None)

    def _modified(self, name: str) -> int | None:
        return _written(self._files, name)


def _written(folder: Folder, name: str) -> int | None:
    """Return when a heartbeat was written, or None without a heartbeat.

    A failing volume raises an error, because it does not mean that the holder is dead.
    """
    status = folder.status(name)
    return None if status is None else status.st_mtime_ns
