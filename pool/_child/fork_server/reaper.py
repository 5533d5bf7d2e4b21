"""The workers of a zygote, from their fork until nothing of them is left.

    add --> alive --it dies--> reap --> Exited ----> GONE, if it left orphans: when all are
             |                  |                    gone that any worker had left
             '-- stop           '-- adopt: its orphans are children of ours now
                  SIGUSR2 (stacks), SIGTERM, and after the grace SIGKILL

Who is an orphan? Every worker is a subreaper, so what a *living* worker's children leave
behind stays below that worker. A child of ours that we did not fork therefore belonged
to a worker that is dead: its call is over and it must go.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time

from .. import call_files, framing, processes, wire
from . import worker_start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

#: Workers alive at once; one byte each tells whether user code began. More than there may be
#: slots (`limits.WORKERS_MAX`): as many may be exiting, and there are spares and instances.
MAX_WORKERS = 3 * 4096
#: Between asking a worker for its stacks and asking it to end.
DUMP_S = 0.02
#: Orphans that have a pidfd, at most: a call may leave more than we may have descriptors,
#: and other calls need some. Between looks at the rest.
WATCHED = 64
UNWATCHED_S = 0.05


class ForkedWorker:
    """A forked child, until it is reaped."""

    __slots__ = ("deadline", "mark", "pid", "pidfd", "term_at")

    def __init__(self, pid: int, pidfd: int, mark: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.mark = mark
        #: When a stopped worker gets SIGTERM, and when SIGKILL.
        self.term_at: float | None = None
        self.deadline: float | None = None


class Reaper:
    """All workers, and the orphans of those that are dead."""

    def __init__(self, control: socket, epoll: select.epoll, grace: float) -> None:
        self.control = control
        self.epoll = epoll
        self.grace = grace
        self.workers: dict[int, ForkedWorker] = {}
        #: Orphans of finished calls, by pid: their pidfds; None for those beyond `WATCHED`.
        self.orphans: dict[int, int | None] = {}
        self.unwatched = 0
        self.orphan_deadline: float | None = None
        #: Exited workers whose GONE waits until no orphan is left.
        self.exited: list[int] = []
        #: Shared with the workers: byte `mark` is 1 once user code began; the last one, once
        #: there are files of calls.
        self.marks = processes.shared_bytes(MAX_WORKERS + 1)
        self.free_marks: list[int] = []
        self.marks_used = 0
        self.by_fd: dict[int, ForkedWorker | int] = {}
        self.children_fd = _open_children()

    # Births.

    def take_mark(self) -> int:
        """The byte of a worker to be."""
        if self.free_marks:
            mark = self.free_marks.pop()
        elif self.marks_used < MAX_WORKERS:
            mark = self.marks_used
            self.marks_used += 1
        else:
            raise OSError(f"it has {len(self.workers)} workers already")
        self.marks[mark] = 0
        return mark

    def add(self, pid: int, mark: int) -> bool:
        """It was forked; False if it cannot be watched, and is no more."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self.free_marks.append(mark)
            return False
        self.workers[pid] = one = ForkedWorker(pid, pidfd, mark)
        self._watch(pidfd, one)
        return True

    def _watch(self, fd: int, who: ForkedWorker | int) -> None:
        self.by_fd[fd] = who
        if fd >= worker_start.end:
            worker_start.note(fd)
        self.epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        """Forget a pidfd. Closing it is not enough: a worker forked a moment ago may still
        have its copy, and with that the epoll would go on to report a number that stands
        for something else by then.
        """
        del self.by_fd[fd]
        self.epoll.unregister(fd)
        os.close(fd)

    # Deaths.

    def reap(self, fd: int) -> None:
        """A pidfd is readable: collect that process, and it alone."""
        who = self.by_fd[fd]
        if isinstance(who, int):
            del self.orphans[who]
            self._unwatch(fd)
            os.waitpid(who, 0)
            self._adopt()
            self._report_gone()
            return
        _, status, usage = os.wait4(who.pid, 0)
        self._unwatch(who.pidfd)
        del self.workers[who.pid]
        began = bool(self.marks[who.mark])
        self.free_marks.append(who.mark)
        if self.marks[MAX_WORKERS]:
            call_files.remove_all_but(self.workers)
        found = self._adopt(who.deadline)
        death = wire.Exited(who.pid, status, began, found, usage.ru_maxrss)
        self.control.send(death.pack())
        if found:
            self.exited.append(who.pid)

    def _adopt(self, deadline: float | None = None) -> int:
        """Find children we did not fork, ask them to end; how many there are."""
        known = len(self.workers) + len(self.orphans)
        pids = self._read_children()
        if len(pids) <= known:
            return 0
        found = [pid for pid in pids if pid not in self.workers and pid not in self.orphans]
        for pid in found:
            self._watch_orphan(pid)
            for one in (pid, *processes.descendants(pid)):
                processes.send(one, signal.SIGTERM)
                processes.send(one, signal.SIGCONT)
        if self.orphan_deadline is None:
            self.orphan_deadline = deadline or time.monotonic() + self.grace
        return len(found)

    def _watch_orphan(self, pid: int) -> None:
        """Hear of its end; of too many at once the clock tells."""
        pidfd = None
        if len(self.orphans) - self.unwatched < WATCHED:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                pass  # there is no descriptor to be had
        self.orphans[pid] = pidfd
        if pidfd is None:
            self.unwatched += 1
        else:
            self._watch(pidfd, pid)

    def _reap_unwatched(self) -> None:
        for pid in [pid for pid, pidfd in self.orphans.items() if pidfd is None]:
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self.orphans[pid]
                self.unwatched -= 1
        self._adopt()
        self._report_gone()

    def _read_children(self) -> list[int]:
        if self.children_fd is None:
            return processes.children(os.getpid())
        size, data = 4096, os.pread(self.children_fd, 4096, 0)
        while len(data) == size:
            size *= 4
            data = os.pread(self.children_fd, size, 0)
        return [int(pid) for pid in data.split()]

    def _report_gone(self) -> None:
        if self.orphans:
            return
        self.orphan_deadline = None
        for pid in self.exited:
            framing.send_packet(self.control, {"op": wire.GONE, "worker": pid})
        self.exited.clear()

    # Stops.

    def stop(self, pid: int, grace: float, dump: bool) -> None:
        """Stacks (if asked), SIGTERM to the tree, and after the grace SIGKILL."""
        one = self.workers.get(pid)
        if one is None:
            return
        now = time.monotonic()
        if dump and grace > DUMP_S:
            processes.send(pid, signal.SIGUSR2)
        one.term_at = now + (DUMP_S if dump and grace > DUMP_S else 0.0)
        one.deadline = now + grace
        self.stop_what_is_due()

    def drop(self, pid: int) -> None:
        """Kill a worker that has not begun: it is not slow, but stopped or stuck."""
        one = self.workers.get(pid)
        if one is not None and not self.marks[one.mark]:
            self.stop(pid, 0.0, False)

    def soften(self, pid: int) -> None:
        """Tell a worker that its call's soft limit has passed."""
        if pid in self.workers:
            processes.send(pid, signal.SIGURG)

    def stop_what_is_due(self) -> None:
        if not self.orphans and all(one.deadline is None for one in self.workers.values()):
            return
        now = time.monotonic()
        for one in self.workers.values():
            if one.deadline is None:
                continue
            if now >= one.deadline:
                self._signal_tree(one.pid, signal.SIGKILL)
                one.deadline = now + 1.0
            elif one.term_at is not None and now >= one.term_at:
                one.term_at = None
                self._signal_tree(one.pid, signal.SIGTERM)
        if self.orphan_deadline is not None and now >= self.orphan_deadline:
            self.orphan_deadline = now + 0.2
            for pid in list(self.orphans):
                self._signal_tree(pid, signal.SIGKILL)
        if self.unwatched:
            self._reap_unwatched()

    def _signal_tree(self, pid: int, number: int) -> None:
        """Signal all below a process of ours, then itself.

        Children first: were the parent first, those it leaves would be missed here and
        wait for `adopt`. A stopped process cannot act on SIGTERM: wake it.
        """
        for one in (*reversed(processes.descendants(pid)), pid):
            processes.send(one, number)
            if number == signal.SIGTERM:
                processes.send(one, signal.SIGCONT)

    def seconds_until_due(self) -> float:
        """For epoll: -1 when nothing is due."""
        due = [
            at
            for one in self.workers.values()
            for at in (one.term_at, one.deadline)
            if at is not None
        ]
        if self.orphan_deadline is not None and self.orphans:
            due.append(self.orphan_deadline)
        if self.unwatched:
            due.append(time.monotonic() + UNWATCHED_S)
        return max(0.0, min(due) - time.monotonic()) if due else -1


def _open_children() -> int | None:
    """The kernel's list of our children, or None where it was built without one."""
    try:
        return os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
