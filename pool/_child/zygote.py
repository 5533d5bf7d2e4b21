"""The fork server of one environment: imports once, then forks a worker per call.

It never runs a call, and stays small and single-threaded: whatever it maps and touches
is paid for by every fork. Its life:

    split off the guard -> START -> prepare (site, runtime, preloads) -> check that
    forking is safe -> READY -> loop: commands in, deaths in, spares and exits out

``START`` holds: ``path`` (entries in front of sys.path), ``runtime`` (folders of
cloudpickle and tblib, for an environment that lacks them), ``preload`` (modules),
``method`` (``fork``, or ``spawn``: prepare nothing here, every worker prepares itself),
``workdir``, ``log_level``.

Who is an orphan? Every worker is a subreaper, so what a *living* worker's children leave
behind stays below that worker. A child of ours that we did not fork therefore belonged
to a worker that is dead: its call is over and it must go.
"""

from __future__ import annotations

import errno
import gc
import json
import mmap
import os
import resource
import select
import signal
import sys
import time
from _socket import AF_UNIX, SOCK_SEQPACKET, socket, socketpair

from . import birth, framing, guard, lasting, preparation, processes, wire
from .channel import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

#: Workers alive at once; one byte each tells whether user code began.
MAX_WORKERS = 4096
#: Between asking a worker for its stacks and asking it to end.
DUMP_S = 0.02


def main(control_fd: int, supervisor_pid: int) -> NoReturn:
    """Serve until the supervisor says LEAVE or is gone."""
    # Whoever started the server may have ignored it, and that is inherited.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    guard_fd = guard.split(control_fd, supervisor_pid)
    os.environ.pop(wire.BIND_NOW, None)
    control = socket(AF_UNIX, SOCK_SEQPACKET, 0, control_fd)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Dumping the core of a crashed call would delay its report by seconds.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prefer_as_oom_victim()
    status, supervised = 0, True
    try:
        start, _ = framing.receive_packet(control)
        assert isinstance(start, dict)
        Zygote(control, guard_fd, start).run()
    except (wire.Closed, BrokenPipeError, ConnectionResetError):
        # The supervisor is gone. Its guard, if somebody stopped it, will never see that.
        supervised = False
    except preparation.NotSafe as error:
        framing.send_packet(control, {"op": wire.UNSAFE, "module": error.module, "why": error.why})
    except SystemExit as error:
        print(f"the interpreter's start-up called exit: {error}", file=sys.stderr)
        status = 1
    finally:
        processes.kill_descendants()
    if not supervised:
        _kill_guard(guard_fd)
    sys.stderr.flush()
    os._exit(status)


def _kill_guard(guard_fd: int) -> None:
    """By its pidfd: its number may be somebody else's by now."""
    try:
        signal.pidfd_send_signal(guard_fd, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _prefer_as_oom_victim() -> None:
    """Let the kernel take calls before the server; inherited by every worker."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("500")
    except OSError:
        pass


class _Worker:
    """A forked child, until it is reaped."""

    __slots__ = ("deadline", "mark", "pid", "pidfd", "term_at")

    def __init__(self, pid: int, pidfd: int, mark: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.mark = mark
        #: When a stopped worker gets SIGTERM, and when SIGKILL.
        self.term_at: float | None = None
        self.deadline: float | None = None


class _Link:
    """Channel and output of a worker to be, both ends, and its mark."""

    __slots__ = ("channel", "mark", "near", "output", "output_w")

    def __init__(self, channel_fd: int, mark: int) -> None:
        self.mark = mark
        self.near, far = socketpair()
        try:
            self.output, self.output_w = os.pipe()
            os.dup2(far.fileno(), channel_fd, False)
        finally:
            far.close()
        self.channel = Channel(channel_fd)

    def close(self) -> None:
        """The worker has its ends, the supervisor the others."""
        self.near.close()
        self.channel.sock.close()
        os.close(self.output)
        os.close(self.output_w)


class Zygote:
    """The loop and its state."""

    def __init__(self, control: socket, guard_fd: int, start: wire.Meta) -> None:
        self.control = control
        self.start = start
        self.spawn = start["method"] == "spawn"
        self.worker: Any = None
        self.practise = ""
        self.grace = float(start["grace"])
        self.workers: dict[int, _Worker] = {}
        #: Orphans of ended calls, by pid: their pidfds.
        self.orphans: dict[int, int] = {}
        self.orphan_deadline: float | None = None
        #: Ended workers whose GONE waits until no orphan is left.
        self.ended: list[int] = []
        #: Shared with the workers: byte `mark` is 1 once user code began.
        self.marks = mmap.mmap(-1, MAX_WORKERS)
        self.free_marks = list(range(MAX_WORKERS - 1, -1, -1))
        self.by_fd: dict[int, _Worker | int] = {}
        self.epoll = select.epoll()
        self.epoll.register(control, select.EPOLLIN)
        self.epoll.register(guard_fd, select.EPOLLIN)
        self.guard_fd = guard_fd
        self.children_fd = _open_children()

    def run(self) -> None:
        """Prepare, report, serve."""
        preparation.defer_lock_hooks()
        if not self.spawn:
            objects = preparation.prepare(self.start, self.tell)
            preparation.check_forking_is_safe("start-up")
            from . import worker

            worker.rehearse()
            lasting.make(objects)
            self.worker = worker
        self.tell(
            wire.READY, pid=os.getpid(), modules=len(sys.modules), python=sys.version.split()[0]
        )
        gc.collect()
        gc.freeze()
        while self.turn():
            pass

    def turn(self) -> bool:
        """One round: whatever is ready, then whatever is due. False: leave."""
        for fd, _ in self.epoll.poll(self.seconds_until_due()):
            if fd == self.control.fileno():
                if not self.command():
                    return False
            elif fd == self.guard_fd:
                return False
            else:
                self.reap(self.by_fd[fd])
        self.stop_what_is_due()
        return True

    def tell(self, op: str, fds: list[int] | None = None, **fields: object) -> None:
        framing.send_packet(self.control, {"op": op, **fields}, fds)

    def command(self) -> bool:
        message, _ = framing.receive_packet(self.control)
        assert isinstance(message, dict)
        op = message["op"]
        if op == wire.FORK:
            self.fork(message["n"], message["practise"])
        elif op == wire.STOP:
            self.stop(message["worker"], message["grace"], message["dump"])
        elif op == wire.DROP:
            self.drop(message["worker"])
        elif op == wire.COMPILE and self.worker is not None:
            self.compile_ahead(message["name"], message["source"])
        return bool(op != wire.LEAVE)

    def compile_ahead(self, name: str, source: str) -> None:
        """A source that came several times: its next workers find it compiled."""
        code = self.worker.user_code.compile_ahead(json.loads(source), name)
        if code is not None and lasting.is_known():
            lasting.make([(code,)])

    # Births.

    def fork(self, number: int, practise: str) -> None:
        """Fork spares, and send the supervisor its ends of their channels and outputs.

        With a codec to ``practise``, they limber up while they wait.

        Everything that can be done before or after the forks is: between two of them
        each page this process writes to is copied once more.
        """
        for count in _parts(number, birth.BATCH):
            self.enter_workdir()
            self.practise = practise
            links: list[_Link] = []
            pids: list[int] = []
            try:
                links += map(self.new_link, range(count))
                pids += map(self.fork_one, links)
            except OSError as error:
                # No more processes or descriptors: whoever waits for a worker is told.
                self.tell(wire.NOT_FORKED, n=count - len(pids), why=str(error))
            for pid, link in zip(pids, links):  # noqa: B905 - there may be fewer pids
                self.workers[pid] = one = _Worker(pid, os.pidfd_open(pid), link.mark)
                self.watch(one.pidfd, one)
            if pids:
                ends = [
                    end for link in links[: len(pids)] for end in (link.near.fileno(), link.output)
                ]
                self.tell(wire.SPARES, ends, workers=pids, ready=not self.spawn)
            for link in links:
                link.close()
            self.free_marks += [link.mark for link in links[len(pids) :]]

    def fork_one(self, link: _Link) -> int:
        pid = preparation.fork()
        if pid == 0:
            birth.live(link.channel, link.output_w, lambda: self.work(link))
        return pid

    def work(self, link: _Link) -> None:
        """In the worker: take one call, and serve it."""
        if self.spawn:
            preparation.prepare(self.start, lambda *_, **__: None)
            from . import worker

            self.worker = worker
            link.channel.send(wire.WORKER_READY, b"", b"", [])
        elif self.practise:
            self.worker.limber_up(self.practise == "pickle")
        self.worker.serve(link.channel, lambda: self.marks.__setitem__(link.mark, 1))

    def new_link(self, index: int) -> _Link:
        """What a worker and the supervisor need to talk; one of a batch."""
        if not self.free_marks:
            raise OSError(f"it has {len(self.workers)} workers already")
        mark = self.free_marks.pop()
        self.marks[mark] = 0
        try:
            return _Link(birth.FIRST_CHANNEL + index, mark)
        except OSError:
            self.free_marks.append(mark)
            raise

    def enter_workdir(self) -> None:
        """Where workers begin; again each time, as an earlier call may have removed it."""
        try:
            os.chdir(self.start["workdir"])
        except OSError:
            os.chdir("/")

    def watch(self, fd: int, who: _Worker | int) -> None:
        self.by_fd[fd] = who
        self.epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Forget a pidfd. Closing it is not enough: a worker forked a moment ago may still
        have its copy, and with that the epoll would go on to report a number that stands
        for something else by then.
        """
        del self.by_fd[fd]
        self.epoll.unregister(fd)
        os.close(fd)

    # Deaths.

    def reap(self, who: _Worker | int) -> None:
        """A pidfd is readable: collect that process, and it alone."""
        if isinstance(who, int):
            self.unwatch(self.orphans.pop(who))
            os.waitpid(who, 0)
            self.adopt()
            self.report_gone()
            return
        _, status, usage = os.wait4(who.pid, 0)
        self.unwatch(who.pidfd)
        del self.workers[who.pid]
        began = bool(self.marks[who.mark])
        self.free_marks.append(who.mark)
        found = self.adopt(who.deadline)
        death = wire.Exited(who.pid, status, began, found, usage.ru_maxrss)
        self.control.send(death.pack())
        if found:
            self.ended.append(who.pid)

    def adopt(self, deadline: float | None = None) -> int:
        """Find children we did not fork, ask them to end; how many there are."""
        known = len(self.workers) + len(self.orphans)
        pids = self.read_children()
        if len(pids) <= known:
            return 0
        found = [pid for pid in pids if pid not in self.workers and pid not in self.orphans]
        for pid in found:
            self.orphans[pid] = pidfd = os.pidfd_open(pid)
            self.watch(pidfd, pid)
            for one in (pid, *processes.descendants(pid)):
                processes.send(one, signal.SIGTERM)
                processes.send(one, signal.SIGCONT)
        if self.orphan_deadline is None:
            self.orphan_deadline = deadline or time.monotonic() + self.grace
        return len(found)

    def read_children(self) -> list[int]:
        if self.children_fd is None:
            return processes.children(os.getpid())
        size, data = 4096, os.pread(self.children_fd, 4096, 0)
        while len(data) == size:
            size *= 4
            data = os.pread(self.children_fd, size, 0)
        return [int(pid) for pid in data.split()]

    def report_gone(self) -> None:
        if self.orphans:
            return
        self.orphan_deadline = None
        for pid in self.ended:
            self.tell(wire.GONE, worker=pid)
        self.ended.clear()

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

    def stop_what_is_due(self) -> None:
        if not self.orphans and all(one.deadline is None for one in self.workers.values()):
            return
        now = time.monotonic()
        for one in self.workers.values():
            if one.deadline is None:
                continue
            if now >= one.deadline:
                self.signal_tree(one.pid, signal.SIGKILL)
                one.deadline = now + 1.0
            elif one.term_at is not None and now >= one.term_at:
                one.term_at = None
                self.signal_tree(one.pid, signal.SIGTERM)
        if self.orphan_deadline is not None and now >= self.orphan_deadline:
            self.orphan_deadline = now + 0.2
            for pid in list(self.orphans):
                self.signal_tree(pid, signal.SIGKILL)

    def signal_tree(self, pid: int, number: int) -> None:
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
        return max(0.0, min(due) - time.monotonic()) if due else -1


def _parts(number: int, most: int) -> Iterator[int]:
    """A number in parts of at most so many."""
    for left in range(number, 0, -most):
        yield min(left, most)


def _open_children() -> int | None:
    """The kernel's list of our children, or None where it was built without one."""
    try:
        return os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
