"""Who is alive: one heartbeat file for every process that uses a store.

    holders/<host>-<pid>-<start>-<random>     touched every few seconds

Leases, claims and scratch directories are named after their holder, so "stale"
is decided in one place. Two questions are asked of a holder:

* dead? Its process has exited (same host: pid and start time say so at once), or,
  on another host, its heartbeat is old. A dead holder's leases and scratch
  directories are cleaned by whoever comes next.
* stalled? Dead, or its heartbeat is old although its process exists (stopped).
  A stalled holder's claim is taken over; its leases are kept.

Ages are never a difference between two clocks: "now" is the modification time
of our own heartbeat file, stamped by the same file system. And since even that
clock may jump, an old heartbeat counts only once it has been seen unchanged for
a while on our monotonic clock.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from .layout import names_in

__all__ = ["Holder", "Liveness", "this_host"]

_NAME_PARTS: Final = 3


@lru_cache(maxsize=1)
def this_host() -> str:
    """Name a machine's boot together with the pid namespace: pids mean something in it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    return f"{boot[:12]}{os.stat('/proc/self/ns/pid').st_ino:x}"


def start_time(pid: int) -> str:
    """Start of a process in ticks since boot; empty when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


@dataclass(frozen=True, slots=True)
class Holder:
    """What a holder's name tells."""

    name: str
    host: str
    pid: int
    start: str


def parse_holder(name: str) -> Holder | None:
    """Read `<host>-<pid>-<start>-<random>`."""
    parts = name.split("-")
    if len(parts) != _NAME_PARTS + 1 or not parts[1].isdigit() or not parts[2].isdigit():
        return None
    return Holder(name=name, host=parts[0], pid=int(parts[1]), start=parts[2])


class Liveness:
    """The holders of one store, this process's own among them."""

    def __init__(
        self, folder: Path, *, heartbeat_s: float, stale_s: float, claim_stale_s: float
    ) -> None:
        self.folder = folder
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
        """Say that this process lives; False if somebody had taken it for dead."""
        path = self.folder / self.me
        began = time.monotonic()
        try:
            os.utime(path)
            there = True
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.touch()  # without content: on a full disk too
            there = False
        self._beaten_at = began
        return there

    @property
    def overdue(self) -> bool:
        """Whether this process, held up, may have been taken for dead since its last heartbeat."""
        return time.monotonic() - self._beaten_at > max(self._stale_s / 2, 3 * self._heartbeat_s)

    def close(self) -> None:
        """Take this process's heartbeat away: it uses the store no longer."""
        (self.folder / self.me).unlink(missing_ok=True)

    def bury(self) -> list[str]:
        """Remove the heartbeats of the dead; answer who they were."""
        dead = [name for name in self.names() if self.dead(name)]
        for name in dead:
            (self.folder / name).unlink(missing_ok=True)
        return dead

    def names(self) -> list[str]:
        """Every holder that has a heartbeat file, alive or not."""
        return sorted(names_in(self.folder))

    def dead(self, name: str) -> bool:
        """Whether what this holder left behind belongs to nobody."""
        if name == self.me:
            return False
        holder = parse_holder(name)
        if holder is None:
            return True
        if holder.host == this_host():
            return start_time(holder.pid) != holder.start
        return self._silent(name, self._stale_s)

    def stalled(self, name: str) -> bool:
        """Whether to stop waiting for this holder."""
        return self.dead(name) or (name != self.me and self._silent(name, self._claim_stale_s))

    def age_of(self, path: Path) -> float:
        """Seconds since a file was written, on the file system's own clock; 0 for none."""
        written = _modified(path)
        return 0.0 if written is None else max(0.0, (self._now() - written) / 1e9)

    def _now(self) -> int:
        now = _modified(self.folder / self.me)
        if now is None:
            self.beat()
            now = _modified(self.folder / self.me)
        return now or 0

    def _silent(self, name: str, limit_s: float) -> bool:
        beaten = _modified(self.folder / name)
        if beaten is None:
            return True
        if self._now() - beaten < limit_s * 1e9:
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


def _modified(path: Path) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None
