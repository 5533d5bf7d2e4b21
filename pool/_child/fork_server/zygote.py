"""The fork server of one environment: imports once, then forks a worker per call.

The zygote never runs a call, and stays small and single-threaded: every fork pays for the memory
that it maps and touches. Its life:

    split off the guard -> PRELOAD*, START -> prepare (site, runtime, preloads) -> check that
    forking is safe -> READY -> loop: commands in, deaths in, spares and exits out

``PRELOAD`` holds modules to preload, as many as one packet takes. ``START`` holds: ``path``
(entries in front of sys.path), ``app`` (the directory of the app whose workers these are, or
nothing), ``runtime`` (folders of cloudpickle and tblib, for an environment that lacks them),
``method`` (``fork``, or ``spawn``: prepare nothing here, every worker prepares itself),
``split_output`` (descriptors 1 and 2 of a worker are two pipes), ``varying`` (variables of which
each call has its own), ``workdir``, ``log_level``, ``grace`` (seconds in which orphans may end),
``memory_tricks`` (those it may use), ``exit_s`` and ``exit_answer_s`` (see `prepared`), ``example``
(a version of Python, and the base64 text of a call that was pickled by it).

`reaper` handles workers after they are forked.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import select
import signal
import sys
from _socket import AF_UNIX, SOCK_SEQPACKET, socket, socketpair
from binascii import a2b_base64

from .. import call_files, forking, framing, processes, shortage, wire
from ..renewal import prepared
from . import (
    guard,
    immortal_objects,
    interpreter_setup,
    memory_layout,
    memory_mappings,
    memory_tricks,
    stack_dumps,
    worker_start,
)
from .reaper import MAX_WORKERS, Reaper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn


def main(control_fd: int, supervisor_pid: int, files: str, stacks_fd: int) -> NoReturn:
    """Serve until the supervisor says LEAVE or is gone; ``files``: the name of `call_files`.

    ``stacks_fd``: the file of `stack_dumps`.
    """
    # The program that started the server may have ignored these, which is inherited.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    call_files.name(files)
    control_fd = stack_dumps.adopt(stacks_fd, control_fd)
    guard_fd = guard.split(control_fd, supervisor_pid)
    os.environ.pop(wire.BIND_NOW, None)
    control = socket(AF_UNIX, SOCK_SEQPACKET, 0, control_fd)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Dumping the core of a crashed call would delay its report by seconds.
    processes.forbid_core_dumps()
    _prefer_as_oom_victim()
    # After that: only root may write to /proc/self then.
    processes.set_dumpable(0)
    status, supervised = 0, True
    try:
        Zygote(control, guard_fd, _how_to_start(control)).run()
    except (wire.Closed, BrokenPipeError, ConnectionResetError):
        # The supervisor is gone. If its guard was stopped, the guard will never notice.
        supervised = False
    except forking.NotSafe as error:
        framing.send_packet(control, {"op": wire.UNSAFE, "module": error.module, "why": error.why})
    except OSError as error:
        if not (what := shortage.of(error)):
            raise
        framing.send_packet(control, {"op": wire.SHORT, "what": what})
        status = shortage.EXIT_STATUS
    except SystemExit as error:
        print(f"the interpreter's start-up called exit: {error}", file=sys.stderr)
        status = 1
    finally:
        processes.kill_descendants()
        call_files.remove_all()  # the guard does it too, unless it was killed
    if not supervised:
        _kill_guard(guard_fd)
    sys.stderr.flush()
    os._exit(status)


def _how_to_start(control: socket) -> wire.Meta:
    """START; its ``preload`` is all that came before."""
    preload: list[str] = []
    while True:
        message, _ = framing.receive_packet(control)
        assert isinstance(message, dict)
        if message["op"] == wire.START:
            return {**message, "preload": preload}
        preload += message["modules"]


def _kill_guard(guard_fd: int) -> None:
    """Kill the guard by its pidfd: its number may belong to another process by now."""
    try:
        signal.pidfd_send_signal(guard_fd, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _prefer_as_oom_victim() -> None:
    """Let the kernel take calls before the server; inherited by every worker.

    A server that a container runtime started with a high score may not lower its own.
    """
    try:
        with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
            score = min(max(_OOM_SCORE, int(file.read()) + 1), _HIGHEST_OOM_SCORE)
            file.seek(0)
            file.write(str(score))
    except (OSError, ValueError):
        pass


#: The score of calls, unless the server's own is as high; and the highest that the kernel accepts.
_OOM_SCORE, _HIGHEST_OOM_SCORE = 500, 1000


class Zygote:
    """The loop and its state."""

    def __init__(self, control: socket, guard_fd: int, start: wire.Meta) -> None:
        self.control = control
        self.start = start
        self.spawn = start["method"] == "spawn"
        self.split = start["split_output"]
        self.worker: Any = None
        self.rehearsal: Any = None
        self.user_code: Any = None
        self.practise = ""
        #: Memory tricks in use.
        self.tricks: list[str] = []
        self.epoll = select.epoll()
        self.epoll.register(control, select.EPOLLIN)
        self.epoll.register(guard_fd, select.EPOLLIN)
        self.guard_fd = guard_fd
        self.reaper = Reaper(control, self.epoll, float(start["grace"]))
        #: See `Reaper.marks`; here, too, because a worker pays for each object it looks at.
        self.marks = self.reaper.marks
        call_files.watch(self.marks, MAX_WORKERS)

    def run(self) -> None:
        """Prepare, report, serve."""
        forking.defer_lock_hooks()
        if not self.spawn:
            objects = interpreter_setup.prepare(self.start, self.tell)
            interpreter_setup.check_forking_is_safe("start-up")
            # Not earlier: imports must see the usual signal handling.
            guard.take_no_signals()
            from ..running import rehearsal, worker
            from ..serialization import user_code

            self.worker, self.rehearsal, self.user_code = worker, rehearsal, user_code
            worker.look_around()
            version, example = self.start["example"]
            if tuple(version) == sys.version_info[:2]:  # bytecode of another is none
                rehearsal.take_example(a2b_base64(example))
            self.settle(objects)
            del objects
        else:
            guard.take_no_signals()
        self.tell(
            wire.READY,
            pid=os.getpid(),
            modules=len(sys.modules),
            python=sys.version.split()[0],
            preloaded=prepared.held is not None,
            memory_tricks=self.tricks,
        )
        while self.turn():
            pass

    def settle(self, objects: list[Any]) -> None:
        """Warm up for calls, then arrange memory so that forks copy little."""
        self.tricks = memory_tricks.usable(self.start["memory_tricks"])
        if memory_tricks.MAPPINGS in self.tricks and not memory_mappings.merge_read_only():
            self.tricks.remove(memory_tricks.MAPPINGS)
        arranged = memory_tricks.LAYOUT in self.tricks
        gc.collect()
        gc.freeze()  # as in workers: what is frozen is no call's
        self.rehearse(self.rehearsal.ROUNDS)
        gc.collect()
        gc.freeze()  # so that it is not looked at again below
        if arranged:
            objects += memory_layout.arrange(self.live_through, [worker_start.live], objects)
        if memory_tricks.IMMORTAL in self.tricks:
            immortal_objects.make(objects)
        self.rehearse(self.rehearsal.ROUNDS)
        gc.collect()  # for the interpreter's lists of spare objects, which that empties
        if arranged:
            memory_layout.fill_holes()
        self.worker.look_around()  # again, for what workers look at to lie where they write to
        gc.freeze()

    def rehearse(self, rounds: int) -> None:
        """Do everything that a worker does, apart from what would turn this process into one."""
        link = self.new_link()
        for _ in range(rounds):
            worker_start.rehearse(link)
        self.rehearsal.rehearse(link.near, lambda: self.work(link), rounds)
        self.discard(link)

    def live_through(self) -> None:
        """Run a worker's part and the zygote's own in a fork, which is discarded afterwards."""
        self.rehearse(1)
        near, far = socketpair(AF_UNIX, SOCK_SEQPACKET)
        other = Zygote(far, self.guard_fd, self.start)
        other.worker, other.rehearsal = self.worker, self.rehearsal
        framing.send_packet(near, {"op": wire.FORK, "n": 2, "practise": ""})
        other.turn()
        _, ends = framing.receive_packet(near)
        for end in ends:
            os.close(end)
        while other.reaper.workers:
            other.turn()

    def turn(self) -> bool:
        """Run one round: handle everything that is ready, then everything that is due.
        False: exit.
        """
        for fd, _ in self.epoll.poll(self.reaper.seconds_until_due()):
            if fd == self.control.fileno():
                if not self.command():
                    return False
            elif fd == self.guard_fd:
                return False
            else:
                self.reaper.reap(fd)
        self.reaper.stop_what_is_due()
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
            self.reaper.stop(message["worker"], message["grace"], message["dump"])
        elif op == wire.DROP:
            self.reaper.drop(message["worker"])
        elif op == wire.SOFT:
            self.reaper.soften(message["worker"])
        elif op == wire.STACK:
            self.reaper.show_stacks(message["worker"])
        elif op == wire.COMPILE and self.worker is not None:
            self.compile_ahead(message["name"], message["source"])
        elif op == wire.PING:
            self.tell(wire.PONG)
        return bool(op != wire.LEAVE)

    def compile_ahead(self, name: str, source: str) -> None:
        """A source that came several times: its next workers find it compiled."""
        code = self.user_code.compile_ahead(json.loads(source), name)
        if code is not None and memory_tricks.IMMORTAL in self.tricks:
            immortal_objects.make([(code,)])

    # Births.

    def fork(self, number: int, practise: str) -> None:
        """Fork spares, and send the supervisor its ends of their channels and outputs.

        With a codec to ``practise``, the spares warm up while they wait.

        Everything that can be done before or after the forks is: between two of them
        each page this process writes to is copied once more.
        """
        most = worker_start.SPLIT_BATCH if self.split else worker_start.BATCH
        for count in _parts(number, most):
            interpreter_setup.enter(self.start["workdir"])
            self.practise = practise
            links: list[worker_start.Link] = []
            pids: list[int] = []
            why = "no file descriptor is left to watch them with"
            try:
                links += (self.new_link() for _ in range(count))
                pids += map(self.fork_one, links)
            except OSError as error:
                # No more processes or descriptors: tell the supervisor, which waits for a worker.
                why = str(error)
            for link in links:
                # Before `add`, which needs a descriptor for each, so that some are free.
                link.close_far()
            forked = zip(pids, links)  # noqa: B905 - there may be fewer pids
            whose = [(pid, link) for pid, link in forked if self.reaper.add(pid, link.mark)]
            if len(whose) < count:
                self.tell(wire.NOT_FORKED, n=count - len(whose), why=why)
            if whose:
                ends = [end for _, link in whose for end in link.near_ends()]
                self.tell(
                    wire.SPARES, ends, workers=[pid for pid, _ in whose], ready=not self.spawn
                )
            for link in links:
                link.close_near()
            self.reaper.free_marks += [link.mark for link in links[len(pids) :]]

    def fork_one(self, link: worker_start.Link) -> int:
        if prepared.held is not None:
            prepared.held.renew_globals()
        gc.freeze()  # so that the collector of a worker lists what is its call's
        pid = forking.fork()
        if pid == 0:
            worker_start.live(link, self.work)
        return pid

    def work(self, link: worker_start.Link) -> None:
        """In the worker: take one call, and serve it."""
        if self.spawn:
            interpreter_setup.prepare(self.start, lambda *_, **__: None)
            from ..running import worker

            self.worker = worker
            worker.look_around()
            gc.freeze()  # what is there now is no call's
            link.channel.send(wire.WORKER_READY, b"", b"", [])
        elif self.practise:
            self.rehearsal.limber_up(self.practise == "pickle")
        load = self.worker.serve(link.channel, self.marks, link.mark)
        if load is None:
            return
        if load.kind == wire.LOAD_APP:
            from ..running.apps import app_worker

            app_worker.live(link.channel, load)
        elif load.kind == wire.LOAD_JOBS:
            from ..running.jobs import job_worker

            job_worker.live(link.channel, load)
        else:
            from ..running import resident

            resident.live(link.channel, load)

    def new_link(self) -> worker_start.Link:
        """Create the channel and output between a worker and the supervisor."""
        mark = self.reaper.take_mark()
        try:
            try:
                return worker_start.Link(mark, self.split)
            except OSError as error:
                if error.errno != errno.EMFILE or not processes.raise_descriptors():
                    raise
                # With many workers this process needs more descriptors than calls should have.
                worker_start.limit_is_raised = True
                return worker_start.Link(mark, self.split)
        except OSError:
            self.reaper.free_marks.append(mark)
            raise

    def discard(self, link: worker_start.Link) -> None:
        """Close a link that no worker uses."""
        link.close_far()
        link.close_near()
        self.reaper.free_marks.append(link.mark)


def _parts(number: int, most: int) -> Iterator[int]:
    """A number in parts of at most so many."""
    for left in range(number, 0, -most):
        yield min(left, most)
