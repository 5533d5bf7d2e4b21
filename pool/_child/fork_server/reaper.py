"""The workers of a zygote, from their forks until their process trees are gone.

    add --> alive --dies--> reap --> Exited --> GONE, if it left orphans: once all orphans that
             |               |                  can be killed, of any worker, are gone
             '-- stop        '-- adopt: orphans are now children of the zygote
                  SIGUSR2 (stacks), SIGTERM, and after the grace SIGKILL

Which process is an orphan? Every worker is a subreaper, so processes that a *living* worker's
children leave behind stay below that worker. A child of the zygote that the zygote did not fork
therefore belonged to a dead worker: the call is over, and the child must be killed.

A process that waits inside the kernel (state D: for a volume or a driver that hangs) survives
SIGKILL until the wait ends. Such an orphan delays only the GONE of its own worker.
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

#: Most workers alive at once; a byte for each says whether user code has begun. More than the most
#: slots (`limits.WORKERS_MAX`), because as many workers may be exiting, and spares and instances
#: are workers, too.
MAX_WORKERS = 3 * 4096
#: Seconds between the signal for stacks and SIGTERM.
DUMP_S = 0.02
#: Most orphans that have a pidfd: a call may leave more orphans than the zygote may have
#: descriptors, and other calls need descriptors. Seconds between two checks of the others.
WATCHED = 64
UNWATCHED_S = 0.05
#: Seconds from the first SIGKILL of an orphan until it counts as stuck.
STUCK_S = 1.0
#: Seconds between two kills of an orphan, before and after it is stuck.
KILL_AGAIN_S, KILL_STUCK_AGAIN_S = 0.2, 1.0


class ForkedWorker:
    """A forked child, until it is reaped."""

    __slots__ = ("deadline", "mark", "pid", "pidfd", "term_at")

    def __init__(self, pid: int, pidfd: int, mark: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.mark = mark
        #: Set by `stop`: when the worker gets SIGTERM, and when SIGKILL.
        self.term_at: float | None = None
        self.deadline: float | None = None


class Orphan:
    """A process that a dead worker left, until it is reaped."""

    __slots__ = ("deadline", "killed_at", "owner", "pid", "pidfd", "stuck")

    def __init__(self, pid: int, owner: int, deadline: float) -> None:
        self.pid = pid
        #: The worker that left it.
        self.owner = owner
        #: None if there are too many orphans to watch each of them.
        self.pidfd: int | None = None
        #: When the orphan gets the next SIGKILL; and when it got the first.
        self.deadline = deadline
        self.killed_at: float | None = None
        #: Whether the orphan has survived SIGKILL.
        self.stuck = False


class Reaper:
    """All workers of a zygote, and the orphans of dead workers."""

    def __init__(self, control: socket, epoll: select.epoll, grace: float) -> None:
        self.control = control
        self.epoll = epoll
        self.grace = grace
        self.workers: dict[int, ForkedWorker] = {}
        #: Orphans, by pid; how many have no pidfd, and how many are stuck.
        self.orphans: dict[int, Orphan] = {}
        self.unwatched = self.stuck = 0
        #: The earliest time at which an orphan must be killed.
        self.orphans_due: float | None = None
        #: Dead workers whose GONE waits until no orphan is left.
        self.exited: list[int] = []
        #: Shared with the workers: byte `mark` is 1 once user code has begun; the last byte is 1
        #: once files of calls exist.
        self.marks = processes.shared_bytes(MAX_WORKERS + 1)
        self.free_marks: list[int] = []
        self.marks_used = 0
        self.by_fd: dict[int, ForkedWorker | Orphan] = {}
        self.children_fd = _open_children()

    # Births.

    def take_mark(self) -> int:
        """Return the index of the byte of the next worker."""
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
        """Separate a new worker from a dead one with the same pid, whose orphans are stuck."""
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
        """Remove a pidfd from the epoll, and close it.

        Closing alone is not enough: a worker that was just forked may still have a copy, and the
        epoll would continue to report a number that soon belongs to another descriptor.
        """
        del self.by_fd[fd]
        self.epoll.unregister(fd)
        os.close(fd)

    # Deaths.

    def reap(self, fd: int) -> None:
        """Reap the process whose pidfd is readable, and only that process."""
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
        """Find new orphans and send them SIGTERM; return their number.

        They are assigned to ``owner``. If other workers died at the same time, some orphans may be
        theirs, so no GONE is sent while an orphan exists that can be killed.
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
        """Watch an orphan by pidfd; if there are too many orphans, check it at intervals."""
        if len(self.orphans) - self.unwatched < WATCHED:
            try:
                orphan.pidfd = os.pidfd_open(orphan.pid)
            except OSError:
                pass  # no descriptor is left
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
        """Make a worker write its stacks (``dump``), then send its tree SIGTERM, then SIGKILL."""
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
        """Kill a worker in which user code has not begun: it is stopped or stuck."""
        one = self.workers.get(pid)
        if one is not None and not self.marks[one.mark]:
            framing.send_packet(self.control, {"op": wire.DROPPING, "worker": pid})
            self.stop(pid, 0.0, False)

    def soften(self, pid: int) -> None:
        """Signal a worker that its call has passed its soft limit."""
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
        """Kill orphans that are due; a stuck orphan delays only its owner's GONE."""
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

        Children come first: if the parent died first, its children might be missed here, and wait
        for `_adopt`. A stopped process cannot act on SIGTERM, so it is woken (SIGCONT).
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
    """Open the kernel's list of this process's children; None if the kernel has no such file."""
    try:
        return os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
