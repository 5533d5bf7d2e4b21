"""The workers of a zygote, from their fork until nothing of them is left.

    add --> alive --it dies--> reap --> Exited ----> GONE, if it left orphans: when all are gone
             |                  |                    that any worker had left, and can be killed
             '-- stop           '-- adopt: its orphans are children of ours now
                  SIGUSR2 (stacks), SIGTERM, and after the grace SIGKILL

Which process is an orphan? Every worker is a subreaper, so processes that a *living* worker's
children leave behind stay below that worker. A child of the zygote that the zygote did not fork
therefore belonged to a dead worker: its call is over, and it must be killed.

A process that waits inside the kernel (state D: for a volume or a driver that hangs) survives
SIGKILL for that time. Such an orphan only delays the GONE of its own worker.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time

from .. import call_files, framing, processes, wire
from . import stack_dumps, worker_start

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
#: Seconds from the first SIGKILL of an orphan until it counts as one that cannot be killed now.
STUCK_S = 1.0
#: Between two kills of an orphan, before that and after.
KILL_AGAIN_S, KILL_STUCK_AGAIN_S = 0.2, 1.0


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


class Orphan:
    """A process that a dead worker left, until it is reaped."""

    __slots__ = ("deadline", "killed_at", "owner", "pid", "pidfd", "stuck")

    def __init__(self, pid: int, owner: int, deadline: float) -> None:
        self.pid = pid
        #: The worker that left it.
        self.owner = owner
        #: None if there are too many orphans to watch each one.
        self.pidfd: int | None = None
        #: When the orphan gets SIGKILL; after that, when it first got it.
        self.deadline = deadline
        self.killed_at: float | None = None
        #: Whether SIGKILL did not end it.
        self.stuck = False


class Reaper:
    """All workers, and the orphans of dead ones."""

    def __init__(self, control: socket, epoll: select.epoll, grace: float) -> None:
        self.control = control
        self.epoll = epoll
        self.grace = grace
        self.workers: dict[int, ForkedWorker] = {}
        #: Orphans of finished calls, by pid; how many have no pidfd, and how many are stuck.
        self.orphans: dict[int, Orphan] = {}
        self.unwatched = self.stuck = 0
        #: When the first of the orphans must be killed, at the earliest.
        self.orphans_due: float | None = None
        #: Exited workers whose GONE waits until no orphan is left.
        self.exited: list[int] = []
        #: Shared with the workers: byte `mark` is 1 once user code began; the last one, once
        #: there are files of calls.
        self.marks = processes.shared_bytes(MAX_WORKERS + 1)
        self.free_marks: list[int] = []
        self.marks_used = 0
        self.by_fd: dict[int, ForkedWorker | Orphan] = {}
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
            raise OSError(f"the zygote already has {len(self.workers)} workers")
        self.marks[mark] = 0
        return mark

    def add(self, pid: int, mark: int) -> bool:
        """Watch a worker that was forked; return False if it cannot be watched and was killed."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self.free_marks.append(mark)
            return False
        if pid in self.exited:
            self._disown(pid)
        self.workers[pid] = one = ForkedWorker(pid, pidfd, mark)
        self._watch(pidfd, one)
        return True

    def _disown(self, pid: int) -> None:
        """A new worker has the number of one whose orphans are stuck: tell them apart."""
        for orphan in self.orphans.values():
            if orphan.owner == pid:
                orphan.owner = 0
        self.exited.remove(pid)
        framing.send_packet(self.control, {"op": wire.GONE, "worker": pid})

    def _watch(self, fd: int, who: ForkedWorker | Orphan) -> None:
        self.by_fd[fd] = who
        if fd >= worker_start.end:
            worker_start.note(fd)
        self.epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        """Forget a pidfd. Closing it is not enough: a worker that was just forked may still have
        its copy, and the epoll would continue to report a number that soon belongs to something
        else.
        """
        del self.by_fd[fd]
        self.epoll.unregister(fd)
        os.close(fd)

    # Deaths.

    def reap(self, fd: int) -> None:
        """A pidfd is readable: collect that process, and it alone."""
        who = self.by_fd[fd]
        if isinstance(who, Orphan):
            self._unwatch(fd)
            os.waitpid(who.pid, 0)
            self._remove(who)
            self._adopt(who.owner)
            self._report_gone()
            return
        _, status, usage = os.wait4(who.pid, 0)
        self._unwatch(who.pidfd)
        del self.workers[who.pid]
        began = bool(self.marks[who.mark])
        self.free_marks.append(who.mark)
        if self.marks[MAX_WORKERS]:
            call_files.remove_all_but(self.workers)
        found = self._adopt(who.pid, who.deadline)
        death = wire.Exited(who.pid, status, began, found, usage.ru_maxrss)
        self.control.send(death.pack())
        if found:
            self.exited.append(who.pid)

    def _adopt(self, owner: int, deadline: float | None = None) -> int:
        """Find children we did not fork, ask them to end; how many there are.

        Assign orphans to a dead owner. If other workers died at the same time, some may belong to
        those, so no GONE is sent while there is an orphan that can be killed.
        """
        known = len(self.workers) + len(self.orphans)
        pids = self._read_children()
        if len(pids) <= known:
            return 0
        found = [pid for pid in pids if pid not in self.workers and pid not in self.orphans]
        if not found:
            return 0
        deadline = deadline or time.monotonic() + self.grace
        for pid in found:
            self._watch_orphan(Orphan(pid, owner, deadline))
            for one in (pid, *processes.descendants(pid)):
                processes.send(one, signal.SIGTERM)
                processes.send(one, signal.SIGCONT)
        self.orphans_due = min(deadline, self.orphans_due or deadline)
        return len(found)

    def _watch_orphan(self, orphan: Orphan) -> None:
        """Watch the end of an orphan; if there are too many, they are checked by time."""
        if len(self.orphans) - self.unwatched < WATCHED:
            try:
                orphan.pidfd = os.pidfd_open(orphan.pid)
            except OSError:
                pass  # there is no descriptor to be had
        self.orphans[orphan.pid] = orphan
        if orphan.pidfd is None:
            self.unwatched += 1
        else:
            self._watch(orphan.pidfd, orphan)

    def _remove(self, orphan: Orphan) -> None:
        """Forget an orphan that was reaped."""
        del self.orphans[orphan.pid]
        self.unwatched -= orphan.pidfd is None
        self.stuck -= orphan.stuck

    def _reap_unwatched(self) -> None:
        owner = 0
        for orphan in [one for one in self.orphans.values() if one.pidfd is None]:
            if os.waitpid(orphan.pid, os.WNOHANG)[0]:
                self._remove(orphan)
                owner = orphan.owner
        self._adopt(owner)
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
        if not self.orphans:
            self.orphans_due = None
        if len(self.orphans) > self.stuck or not self.exited:
            return
        held_up = {one.owner for one in self.orphans.values()}
        for pid in self.exited:
            if pid not in held_up:
                framing.send_packet(self.control, {"op": wire.GONE, "worker": pid})
        self.exited = [pid for pid in self.exited if pid in held_up]

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
            framing.send_packet(self.control, {"op": wire.DROPPING, "worker": pid})
            self.stop(pid, 0.0, False)

    def soften(self, pid: int) -> None:
        """Tell a worker that its call's soft limit has passed."""
        if pid in self.workers:
            processes.send(pid, signal.SIGURG)

    def show_stacks(self, pid: int) -> None:
        """Have a worker write its stacks to the file of `stack_dumps`."""
        if pid in self.workers:
            processes.send(pid, stack_dumps.SIGNAL)

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
        if self.orphans_due is not None and now >= self.orphans_due:
            self._kill_orphans(now)
        if self.unwatched:
            self._reap_unwatched()

    def _kill_orphans(self, now: float) -> None:
        """Kill orphans whose time is over; one that cannot be killed delays only its
        owner's GONE.
        """
        for one in list(self.orphans.values()):
            if now < one.deadline:
                continue
            self._signal_tree(one.pid, signal.SIGKILL)
            if one.killed_at is None:
                one.killed_at = now
            elif not one.stuck and now - one.killed_at > STUCK_S:
                one.stuck = True
                self.stuck += 1
            one.deadline = now + (KILL_STUCK_AGAIN_S if one.stuck else KILL_AGAIN_S)
        self.orphans_due = min((one.deadline for one in self.orphans.values()), default=None)
        if self.stuck:
            self._report_gone()

    def _signal_tree(self, pid: int, number: int) -> None:
        """Signal all processes below a child of the zygote, then the child.

        Children first: were the parent first, those it leaves would be missed here and
        wait for `adopt`. A stopped process cannot act on SIGTERM: wake it.
        """
        for one in (*reversed(processes.descendants(pid)), pid):
            processes.send(one, number)
            if number == signal.SIGTERM:
                processes.send(one, signal.SIGCONT)

    def seconds_until_due(self) -> float:
        """Return the timeout for epoll: -1 if nothing is due."""
        due = [
            at
            for one in self.workers.values()
            for at in (one.term_at, one.deadline)
            if at is not None
        ]
        if self.orphans_due is not None and self.orphans:
            due.append(self.orphans_due)
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
