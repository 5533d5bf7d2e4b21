"""The fork server of one environment: imports once, then forks a worker per call.

The zygote never runs a call, and stays small and single-threaded: every fork pays for the memory
that the zygote maps and touches. Its life:

    fork from the guard -> PRELOAD*, START -> prepare (site, runtime, preloads) -> check that
    forking is safe -> READY -> loop: commands in, deaths in, spares and exits out

``PRELOAD`` holds modules to preload, as many as fit one packet. ``START`` holds: ``path`` (entries
to put first on sys.path), ``app`` (the directory of the app that the workers serve, or empty),
``runtime`` (folders of cloudpickle and tblib, for an environment that lacks them), ``method``
(``fork``; or ``spawn``: the zygote prepares nothing, every worker prepares itself),
``split_output`` (descriptors 1 and 2 of a worker are two pipes), ``varying`` (variables that differ
between calls), ``workdir``, ``log_level``, ``grace`` (seconds in which orphans may exit),
``memory_tricks`` (tricks that the zygote may use), ``exit_s`` and ``exit_answer_s`` (see
`prepared`), ``example`` (a version of Python, and a call pickled by that version, as base64).

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
    """Serve until the supervisor sends LEAVE or is gone.

    ``files``: the name for `call_files`; ``stacks_fd``: the file of `stack_dumps`.
    """
    # The program that started the server may have ignored these signals, which is inherited.
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
    # Not earlier: afterwards, only root may write to /proc/self.
    processes.set_dumpable(0)
    status, supervised = 0, True
    try:
        Zygote(control, guard_fd, _how_to_start(control)).run()
    except (wire.Closed, BrokenPipeError, ConnectionResetError):
        # The supervisor is gone. A guard that was stopped (SIGSTOP) would never notice.
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
        call_files.remove_all()  # the guard does so, too, unless it was killed
    if not supervised:
        _kill_guard(guard_fd)
    sys.stderr.flush()
    os._exit(status)


def _how_to_start(control: socket) -> wire.Meta:
    """Receive START, with the modules of all PRELOAD messages as ``preload``."""
    preload: list[str] = []
    while True:
        message, _ = framing.receive_packet(control)
        assert isinstance(message, dict)
        if message["op"] == wire.START:
            return {**message, "preload": preload}
        preload += message["modules"]


def _kill_guard(guard_fd: int) -> None:
    """Kill the guard by its pidfd: its pid may belong to another process by now."""
    try:
        signal.pidfd_send_signal(guard_fd, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _prefer_as_oom_victim() -> None:
    """Make the kernel's OOM killer choose calls before the server; every worker inherits this.

    Calls get a higher score, because the server may not lower its own.
    """
    try:
        with open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
            score = min(max(_OOM_SCORE, int(file.read()) + 1), _HIGHEST_OOM_SCORE)
            file.seek(0)
            file.write(str(score))
    except (OSError, ValueError):
        pass


#: The OOM score of calls, unless the server's is as high; and the highest that the kernel accepts.
_OOM_SCORE, _HIGHEST_OOM_SCORE = 500, 1000


class Zygote:
    """The zygote's loop and its state."""

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
        #: See `Reaper.marks`; also here, because a worker pays for each object that it accesses.
        self.marks = self.reaper.marks
        call_files.watch(self.marks, MAX_WORKERS)

    def run(self) -> None:
        """Prepare, report READY, and serve."""
        forking.defer_lock_hooks()
        if not self.spawn:
            objects = interpreter_setup.prepare(self.start, self.tell)
            interpreter_setup.check_forking_is_safe("start-up")
            # Not earlier: imports must find the usual signal mask.
            guard.take_no_signals()
            from ..running import rehearsal, worker
            from ..serialization import user_code

            self.worker, self.rehearsal, self.user_code = worker, rehearsal, user_code
            worker.look_around()
            version, example = self.start["example"]
            if tuple(version) == sys.version_info[:2]:  # other versions cannot read its bytecode
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
        gc.freeze()  # as in workers: frozen objects belong to no call
        self.rehearse(self.rehearsal.ROUNDS)
        gc.collect()
        gc.freeze()  # so that the collections below skip these objects
        if arranged:
            objects += memory_layout.arrange(self.live_through, [worker_start.live], objects)
        if memory_tricks.IMMORTAL in self.tricks:
            immortal_objects.make(objects)
        self.rehearse(self.rehearsal.ROUNDS)
        gc.collect()  # empties the interpreter's free lists
        if arranged:
            memory_layout.fill_holes()
        self.worker.look_around()  # again, so that its results lie where workers write
        gc.freeze()

    def rehearse(self, rounds: int) -> None:
        """Run a worker's code in this process, apart from steps that would make it a worker."""
        link = self.new_link()
        for _ in range(rounds):
            worker_start.rehearse(link)
        self.rehearsal.rehearse(link.near, lambda: self.work(link), rounds)
        self.discard(link)

    def live_through(self) -> None:
        """Run a worker's and the zygote's code; to be called in a fork, which is discarded."""
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
        """Run one round: handle ready descriptors, then due stops; return False to exit."""
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
        """Compile a source that several calls had, so that later workers find it compiled."""
        code = self.user_code.compile_ahead(json.loads(source), name)
        if code is not None and memory_tricks.IMMORTAL in self.tricks:
            immortal_objects.make([(code,)])

    # Births.

    def fork(self, number: int, practise: str) -> None:
        """Fork spares, and send the supervisor its ends of their channels and outputs.

        With a codec to ``practise``, the spares warm up while they wait.

        As much as possible is done before or after the forks: between two forks, each page that
        this process writes to is copied once more.
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
                # Processes or descriptors are short: tell the supervisor, which waits for workers.
                why = str(error)
            for link in links:
                # Before `add`, which needs a free descriptor for each worker.
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
        gc.freeze()  # so that a worker's collector lists only objects of the call
        pid = forking.fork()
        if pid == 0:
            worker_start.live(link, self.work)
        return pid

    def work(self, link: worker_start.Link) -> None:
        """In the worker: receive one call or load, and serve it."""
        if self.spawn:
            interpreter_setup.prepare(self.start, lambda *_, **__: None)
            from ..running import worker

            self.worker = worker
            worker.look_around()
            gc.freeze()  # objects that exist now belong to no call
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
                # With many workers, this process needs more descriptors than calls should have.
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
    """Split a number into parts of at most ``most``."""
    for left in range(number, 0, -most):
        yield min(left, most)
