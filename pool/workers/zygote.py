"""The supervisor's end of one zygote: its process, control socket and output."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections import deque
from pathlib import Path
from typing import Final

from flashpool.pool import _child
from flashpool.pool._child import call_files, processes, shortage, wire
from flashpool.pool.calls import BASE_ENVIRONMENT
from flashpool.pool.config import PoolConfig
from flashpool.pool.scheduling.commands import ZygoteKey
from flashpool.pool.scheduling.compile_ahead import CompileAhead

from .output_buffer import OutputBuffer
from .poller import Poller
from .stack_file import StackFile
from .states import ZYGOTE_MOVES, StateMachine, ZygoteState
from .zygote_packets import fork_packet, in_packets, packet

_BOOT: Final = Path(_child.__file__).with_name("boot.py")
_FLAGS: Final = ("-I", "-S", str(_BOOT))
_WORDS_LIMIT: Final = 16 * 1024
#: A program on local disk that executes the program named by its arguments.
_STEP: Final = shutil.which("nice")


class ZygoteProcess:
    """A guard, started with exec, with its zygote.

    The guard's exit means that all processes below it are gone.
    """

    def __init__(
        self,
        key: ZygoteKey,
        python: str,
        config: PoolConfig,
        *,
        preload: tuple[str, ...],
        method: str,
        poller: Poller,
        now: float,
    ) -> None:
        self._poller = poller
        self.key = key
        self.python = python
        self.method = method
        self.preload = preload
        #: Seconds in which the zygote must start, and import each module that it preloads.
        self.start_limit_s = config.start_timeout_s
        #: When the zygote was started; when it last reported progress.
        self.started_at = self.progress_at = now
        self.ready_at: float | None = None
        self.pid: int | None = None
        self.version = ""
        self.skipped: dict[str, str] = {}
        #: Whether the workers find modules preloaded.
        self.has_preloaded = False
        #: Memory tricks in use.
        self.memory_tricks: tuple[str, ...] = ()
        self.loading: str | None = None
        self.unsafe: tuple[str, str] | None = None
        #: The resource that the machine lacks, as the zygote last reported.
        self.short_of = ""
        #: Forks that were requested and not answered: a stopped zygote answers no request.
        self._forks = 0
        #: Whether a PING is unanswered, and when the last one was answered.
        self._pinged = False
        self.ponged_at = now
        #: Since when the zygote has been stopped (SIGSTOP), as far as is known.
        self.stopped_since: float | None = None
        #: Whether the pool killed the zygote for a reason other than SIGSTOP from outside.
        self.failed = False
        #: When the pool killed the zygote.
        self.killed_at: float | None = None
        #: Whether it forked workers; whether user code began in any; and how many workers in a row
        #: have exited since before user code began in them.
        self.forked = False
        self.proven = False
        self.stillborn = 0
        self.sources = CompileAhead()
        #: When the control socket ended; when the zygote was asked to exit.
        self.hung_up_at: float | None = None
        self.exiting_at = now
        self.answered_at = now
        self.state = StateMachine(f"zygote {key}", ZygoteState.STARTING, ZYGOTE_MOVES)
        self.words = OutputBuffer(_WORDS_LIMIT)
        self._words_said = False
        #: The name of the directory for files of calls, and the first place to try for it.
        self._files = f"flashpool-{os.getpid()}-{os.urandom(6).hex()}"
        self._tmpdir = config.zygote_env().get("TMPDIR", "")
        self._unsent: deque[bytes] = deque()
        self.stack_file = StackFile()
        self._launch(config)

    def __repr__(self) -> str:
        return f"<zygote {self.key.environment}#{self.key.profile} pid={self.pid} {self.state.now.value}>"

    def _launch(self, config: PoolConfig) -> None:
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as unless_up:
            self.control, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            theirs.callback(far.close)
            unless_up.callback(self.control.close)
            self.words_fd, words_w = os.pipe()
            theirs.callback(os.close, words_w)
            unless_up.callback(os.close, self.words_fd)
            unless_up.callback(self.stack_file.close)
            # Calls get the limit of open files with which this process was started.
            descriptors = processes.descriptors_of_children() or 0
            stacks = self.stack_file.fd
            arguments = map(str, (far.fileno(), os.getpid(), descriptors, self._files, stacks))
            self.process = subprocess.Popen(
                [*self._step(), self.python, *_FLAGS, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=words_w,
                stderr=words_w,
                pass_fds=[fd for fd in (far.fileno(), stacks) if fd >= 0],
                env=self._environ(config),
                cwd="/",
                start_new_session=True,
            )
            unless_up.callback(self.process.wait)
            unless_up.callback(self.process.kill)
            _schedule_anew(self.process.pid)
            self.guard_fd = os.pidfd_open(self.process.pid)
            unless_up.pop_all()
        self.control_fd = self.control.fileno()
        self.control.setblocking(False)
        os.set_blocking(self.words_fd, False)

    def _step(self) -> list[str]:
        """Return the start of a command line that executes the interpreter in a second step.

        Until a child has executed a program, the thread that started the child is blocked, and with
        it the whole event loop; if a volume hangs, indefinitely. So the child first executes a
        program on local disk, and then waits for the volume alone.
        """
        apart = self.key.environment != BASE_ENVIRONMENT and _STEP is not None
        return [str(_STEP), "-n", "0"] if apart else []

    def _environ(self, config: PoolConfig) -> dict[str, str]:
        # With lazy binding, each worker would bind symbols again, in its own copy of the pages. The
        # zygote hides this variable from calls.
        return {**config.zygote_env(), wire.BIND_NOW: "1"}

    def send(self, op: str, **fields: object) -> None:
        """Send a command; if the socket does not accept it now, keep it until it does."""
        self._unsent.append(packet(op, **fields))
        self.flush()

    def ask_to_preload(self, names: tuple[str, ...]) -> None:
        """Send the names of modules for the zygote to import before it reports READY."""
        for modules in in_packets(names):
            self.send(wire.PRELOAD, modules=modules)

    def fork(self, number: int, practise: str, now: float) -> None:
        """Have the zygote fork spares, which warm up for the codec ``practise`` unless empty."""
        if self.unanswered == 0:
            self.answered_at = now
        self._forks += number
        # Encoding is cached: few distinct packets exist.
        self._unsent.append(fork_packet(number, practise))
        self.flush()

    def ping(self, now: float) -> None:
        """Ask whether the zygote lives, unless such a request is unanswered."""
        if self._pinged:
            return
        if self.unanswered == 0:
            self.answered_at = now
        self._pinged = True
        self.send(wire.PING)

    def answered_ping(self, now: float) -> None:
        """Record the answer to a PING."""
        self._pinged = False
        self.ponged_at = now

    @property
    def unanswered(self) -> int:
        """Return the number of unanswered requests: forks, and a PING."""
        return self._forks + self._pinged

    def answered_forks(self, number: int) -> int:
        """Record the answer to forks; return how many were awaited, as an answer may come twice."""
        number = min(number, self._forks)
        self._forks -= number
        return number

    def stop_worker(self, pid: int, *, grace: float, dump: bool) -> None:
        """Have the zygote stop a worker and its process tree."""
        self.send(wire.STOP, worker=pid, grace=grace, dump=dump)

    def soften_worker(self, pid: int) -> None:
        """Have the zygote signal a worker whose call has passed its soft limit."""
        self.send(wire.SOFT, worker=pid)

    def ask_for_stacks(self, pid: int) -> None:
        """Have the zygote signal a worker to write its stacks."""
        self.send(wire.STACK, worker=pid)

    def drop_worker(self, pid: int) -> None:
        """Have the zygote kill a worker, unless user code has begun in it."""
        self.send(wire.DROP, worker=pid)

    def flush(self, *, writable: bool = False) -> None:
        """Send waiting packets until the socket is full; the poller reports when it has room."""
        while self._unsent:
            try:
                self.control.send(self._unsent[0])
            except BlockingIOError:
                self._poller.want_to_write(self.control_fd, True)
                return
            except OSError:
                # The zygote is gone; the guard's pidfd reports that more reliably.
                self._unsent.clear()
                break
            self._unsent.popleft()
        if writable:
            self._poller.want_to_write(self.control_fd, False)

    def is_ready(self, message: wire.Meta, now: float) -> None:
        """Handle READY."""
        self.pid = message["pid"]
        self.version = message["python"]
        self.has_preloaded = message["preloaded"]
        self.memory_tricks = tuple(message["memory_tricks"])
        self.ready_at = now
        self.loading = None
        self.state.move(ZygoteState.READY)

    def read_words(self) -> bool:
        """Read and keep the zygote's own output; return False at the end."""
        for _ in range(4):
            try:
                chunk = os.read(self.words_fd, 65536)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self.words.append(chunk)
        return True

    @property
    def curable(self) -> bool:
        """Return whether the zygote would start if its workers were spawned."""
        return self.unsafe is not None and self.key.profile == 0 and self.ready_at is None

    @property
    def was_killed(self) -> bool:
        """Return whether the zygote was killed from outside, not for a fault, as far as known."""
        code = self.process.returncode
        killed = code is not None and (code < 0 or code == 128 + signal.SIGKILL)
        return killed and not self.failed

    @property
    def met_shortage(self) -> bool:
        """Return whether the zygote did not start because the machine lacks a resource."""
        short = self.short_of or self.process.returncode == shortage.EXIT_STATUS
        return bool(short) and self.ready_at is None

    def kill(self, why: str, now: float, *, failed: bool = True) -> None:
        """Kill the zygote; its guard kills the processes below it, and then exits.

        ``failed``: the zygote did not work; otherwise, something outside stopped it.
        """
        if not self._words_said:
            self.words.append(f"\n{why}".encode())
            self.killed_at = now
        self._words_said, self.failed = True, self.failed or failed
        below = processes.children(self.process.pid)
        for pid in below:
            processes.send(pid, signal.SIGKILL)
        if not below:
            processes.send(self.process.pid, signal.SIGKILL)

    def kill_with_guard(self) -> None:
        """Kill the zygote, all below it, and its guard, which does not act by itself."""
        for pid in (*processes.descendants(self.process.pid), self.process.pid):
            processes.send(pid, signal.SIGKILL)

    @property
    def cannot_exit(self) -> bool:
        """Return whether the guard waits in the kernel, probably for a volume that hangs, where no
        signal ends it.
        """
        return self.killed_at is not None and processes.state(self.process.pid) == "D"

    def kill_left(self, workers: list[int]) -> None:
        """Kill processes left behind if the guard was killed, perhaps together with the zygote."""
        if (self.process.returncode or 0) >= 0:
            return
        # A zygote that was stopped during its start has not reported its pid, but its processes
        # carry the name of its directory.
        for root in (*processes.named(self._files), *workers):
            for pid in (*reversed(processes.descendants(root)), root):
                processes.send(pid, signal.SIGKILL)

    def left_behind(self) -> list[str]:
        """Return directories that the guard would have removed if it had not been killed."""
        code = self.process.returncode
        if code is None or code >= 0:
            return []
        return list(filter(os.path.isdir, call_files.paths_of(self._files, self._tmpdir)))

    def close(self) -> None:
        """Reap the guard, which has exited, and close all descriptors."""
        self.process.wait()
        self._close_descriptors()

    def leave(self) -> None:
        """Close all descriptors without reaping the guard, which cannot exit."""
        self.process.returncode = -signal.SIGKILL
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        self.control.close()
        os.close(self.words_fd)
        os.close(self.guard_fd)
        self.stack_file.close()

    def reason(self) -> str:
        """Return why the zygote exited, as far as is known."""
        if self.unsafe:
            what = f"module {self.unsafe[0]!r}" if self.unsafe[0] else "what it preloaded"
            return f"{what}: {self.unsafe[1]}"
        words = self.words.tail(1500).strip()
        how = f"{_how_it_ended(self.process.returncode)}{self._while_doing()}"
        return f"{how}; its last words:\n{words}" if words else how

    def _while_doing(self) -> str:
        if self.loading:
            return f" while importing {self.loading!r}"
        return " during its start-up" if self.ready_at is None else ""


def _schedule_anew(pid: int) -> None:
    """Reset a child's scheduling policy to normal if this process has the reset-on-fork flag.

    The kernel itself resets only real-time policies.
    """
    if os.sched_getscheduler(0) == os.SCHED_BATCH | os.SCHED_RESET_ON_FORK:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))


def _how_it_ended(code: int | None) -> str:
    """Describe a guard's exit code: like a shell, a guard reports its zygote's signal as 128+n."""
    if not code:
        return "it ended"
    if code < 0:
        return f"its guard was killed by signal {-code}"
    return (
        f"it was killed by signal {code - 128}"
        if code > 128
        else f"it exited with exit code {code}"
    )
